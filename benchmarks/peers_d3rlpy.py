"""d3rlpy as it comes (https://github.com/takuseno/d3rlpy): its replay buffer, its batches, its algorithms."""

import logging
from collections.abc import Callable
from typing import Any

import d3rlpy
import numpy as np
import structlog
from d3rlpy.models.encoders import VectorEncoderFactory
from peers_workload import Peer, Unavailable, Workload


def make(workload: Workload) -> Peer:
    """d3rlpy's algorithm on the same episodes."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if workload.algo not in ALGORITHMS:
        raise Unavailable(f"no d3rlpy algorithm is chosen for {workload.algo}; there are {', '.join(ALGORITHMS)}")
    config, note = ALGORITHMS[workload.algo](workload)
    learner = config.create(device="cuda:0" if workload.device == "cuda" else "cpu")
    dataset = make_dataset(workload)
    learner.build_with_dataset(dataset)

    def run(updates: int) -> None:
        for _ in range(updates):
            learner.update(dataset.sample_transition_batch(workload.batch_size))

    return Peer(f"d3rlpy {d3rlpy.__version__} {type(learner).__name__}", run, note)


def make_dataset(workload: Workload) -> Any:
    """The episodes as d3rlpy keeps them; an episode that did not terminate timed out."""
    fields = {name: tensor.cpu().numpy() for name, tensor in workload.fields().items()}
    ends = np.zeros(len(fields["rewards"]), np.float32)
    ends[np.cumsum(workload.lengths) - 1] = 1.0
    return d3rlpy.dataset.MDPDataset(
        observations=fields["observations"],
        actions=fields["actions"],
        rewards=fields["rewards"],
        terminals=fields["terminated"],
        timeouts=ends * (1.0 - fields["terminated"]),
    )


def shared(workload: Workload) -> dict[str, Any]:
    """The options that every actor-critic of d3rlpy has."""
    options, encoder = workload.options, VectorEncoderFactory(list(workload.sizes.hidden))
    return {
        "batch_size": workload.batch_size,
        "actor_learning_rate": options["optimizer"]["lr"],
        "critic_learning_rate": options["optimizer"]["lr"],
        "actor_encoder_factory": encoder,
        "critic_encoder_factory": encoder,
        "gamma": options["discount"],
        "tau": options["polyak"],
        "n_critics": options["critic"]["critics"],
    }


def iql(workload: Workload) -> tuple[Any, str]:
    """IQL with the options of conf/algo/iql.yaml."""
    options, common = workload.options, shared(workload)
    return d3rlpy.algos.IQLConfig(
        **common,
        value_encoder_factory=common["actor_encoder_factory"],
        expectile=options["expectile"],
        weight_temp=options.get("inverse_temperature") or 1.0 / options["temperature"],
        max_weight=options["max_weight"],
    ), "two optimizers: Q and V share one, and Q is fitted to the old V"


def sfac(workload: Workload) -> tuple[Any, str]:
    """IQL in the place of Sf-AC: the same networks, another V and other weights."""
    return iql(workload)[0], "d3rlpy has no Sf-AC; its IQL stands in, which has no behaviour model to fit: less work"


def td3_bc(workload: Workload) -> tuple[Any, str]:
    """TD3+BC with the options of conf/algo/td3_bc.yaml."""
    options = workload.options
    return d3rlpy.algos.TD3PlusBCConfig(
        **shared(workload),
        target_smoothing_sigma=options["target_noise"],
        target_smoothing_clip=options["target_noise_clip"],
        alpha=options["q_coefficient"],
        update_actor_interval=options["policy_delay"],
    ), ""


ALGORITHMS: dict[str, Callable[[Workload], tuple[Any, str]]] = {"iql": iql, "sfac": sfac, "td3_bc": td3_bc}
