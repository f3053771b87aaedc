"""What the policies of a run are worth, without an environment: fitted Q evaluation on the data of the run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brpo import config as configuration
from brpo import resume, saved_runs, training
from brpo.algorithms.fqe import FQE
from brpo.datasets.datamodule import OfflineDataModule
from brpo.datasets.ids import is_toy
from brpo.datasets.transitions import Transitions
from brpo.engine.choose import choose, make_runner
from brpo.errors import UserError
from brpo.evaluation.kinds import MODES
from brpo.modules.critics import QEnsemble
from brpo.options import require_number, require_one_of, require_whole

# The same for every run, whatever its own units and networks: estimates are there to be compared.
DATA = {"normalize_observations": True, "reward_scale": "return_range", "reward_shift": 0.0, "heldout": 0.0}
CRITIC = partial(QEnsemble, critics=1, hidden=[256, 256], activation="relu", layer_norm=True)
# Q moves towards its target by 1/(1 - discount) steps of the average: 20,000 updates are some ten times as many at 0.99.
OPTIONS = {
    "optimizer": partial(torch.optim.Adam, lr=1e-3, fused=True),
    "schedule": {"critic": "cosine"},
    "gradient_clip": None,
    "polyak": 0.05,
}
ENGINE = {"name": "auto", "chunk": 100, "backend": "inductor", "compiled": "auto"}
POINTS = 5  # estimates on the way, which show whether it has settled
BATCH = 256
PIECE = 4096  # starts that go through the networks at once
WHAT = ("algo", "dataset", "digest", "checkpoint", "update", "mode", "discount")
COLUMNS = (*WHAT, "updates", "seed", "value", "data_return", "data_best")  # of a table of estimates


@dataclass(frozen=True)
class Estimate:
    """Estimated discounted return of the policies of a run from the starts of the data's episodes, in the data's rewards.

    Attributes:
        what: of which policies, and how they act: `WHAT`.
        values: by the number of updates of the fit, for each seed.
        seeds: their names.
        data_return: mean discounted return of the episodes in the data, each as far as it was recorded.
        data_best: the largest of them. An estimate above it is an extrapolation beyond all that the data show.
    """

    what: dict[str, Any]
    values: dict[int, list[float]]
    seeds: list[int]
    data_return: float
    data_best: float

    @property
    def points(self) -> list[list[float]]:
        """The estimates in their order, the last one last."""
        return list(self.values.values())

    def rows(self) -> list[dict[str, Any]]:
        """For a table: each seed at each point."""
        data = {"data_return": self.data_return, "data_best": self.data_best}
        return [
            {**self.what, "updates": updates, "seed": seed, "value": value, **data}
            for updates, values in self.values.items()
            for seed, value in zip(self.seeds, values, strict=True)
        ]


def estimate(
    path: Path | str,
    *,
    updates: int = 20_000,
    mode: str | None = None,
    discount: float = 0.99,
    on_point: Callable[[int, list[float]], None] = lambda update, values: None,
) -> Estimate:
    """Fit Q of a checkpoint's policies to the data that they were trained on, held-out episodes included.

    Args:
        path: the checkpoint; of a run folder the last one.
        updates: of the fit.
        mode: `mean` or `sampled`, how the policies act; None: as in the run's own evaluations.
        discount: in [0, 1).
        on_point: told of each estimate on the way.

    Raises:
        UserError: the checkpoint cannot be used, its data are not here or have changed, or an option is out of range.
        TrainingDiverged: Q became NaN or infinite.
    """
    require_whole(1, updates=updates)
    require_number("discount", discount, "in [0, 1)", lambda v: 0 <= v < 1)
    if mode is not None:
        require_one_of(MODES, mode=mode)
    path = saved_runs.checkpoint_of(path, "last")
    evaluated, config = saved_runs.load_algorithm(path)
    if is_toy(evaluated.spec.dataset_id):
        raise UserError(f"{evaluated.spec.dataset_id} needs no estimate: brpo evaluate compares samples with its target.")
    mode = mode or str(config["eval"]["mode"])
    datamodule = training.make_datamodule({**config, "data": {**config["data"], **DATA}})
    resume.check_data(path, datamodule.spec, evaluated.spec, " to estimate this run")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seeds = evaluated.seeds.tolist()
    fqe = FQE(
        datamodule.spec,
        evaluated=evaluated,
        deterministic=mode == "mean",
        critic=CRITIC,
        seeds=seeds,
        max_updates=updates,
        discount=discount,
        **OPTIONS,
    ).to(device)
    fqe.configure_optimizers()
    transitions = datamodule.train_transitions.to(device)
    engine, _ = choose("auto", fqe, device, config["data"]["storage"])
    runner = make_runner(engine, fqe, transitions, ENGINE, BATCH)
    begins, returns = starts(datamodule, discount)
    points = {round(updates * k / POINTS) for k in range(1, POINTS + 1)} - {0}
    stops = sorted(points | set(range(ENGINE["chunk"], updates, ENGINE["chunk"])))
    values: dict[int, list[float]] = {}
    for start, stop in zip([0, *stops], stops, strict=False):
        runner.run(fqe, start, stop)
        fqe.take_records()  # stops what has diverged
        if stop in points:
            values[stop] = start_values(fqe, transitions, begins)
            on_point(stop, values[stop])
    what = {
        "algo": configuration.algorithm_name(config),
        "dataset": evaluated.spec.dataset_id,
        "digest": evaluated.spec.digest,
        "checkpoint": path.name,
        "update": evaluated.update_count,
        "mode": mode,
        "discount": discount,
    }
    return Estimate(what, values, seeds, float(returns.mean()), float(returns.max()))


def starts(datamodule: OfflineDataModule, discount: float) -> tuple[Tensor, np.ndarray]:
    """Index of the first transition of each episode, and the episodes' discounted returns in the data's rewards."""
    transitions, lengths = datamodule.train_transitions, datamodule.flat.lengths
    begins, returns = np.cumsum(lengths) - lengths, []
    for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
        rewards = transitions.gather(torch.arange(begin, begin + length)[None]).rewards[0].double()
        returns.append(float(rewards @ discount ** torch.arange(length, dtype=torch.float64)))
    return torch.from_numpy(begins), np.array(returns) / datamodule.spec.reward_scale


def start_values(fqe: FQE, transitions: Transitions, begins: Tensor) -> list[float]:
    """Mean of `Q(s, pi(s))` over the first observations of the episodes, for each seed, in the data's rewards."""
    total = torch.zeros(len(fqe.seeds), dtype=torch.float64)
    for piece in begins.split(PIECE):
        batch = transitions.gather(piece.expand(len(fqe.seeds), -1).to(transitions.index_device))
        total += fqe.policy_value(batch.observations).double().sum(-1).cpu()
    return (total / len(begins) / fqe.spec.reward_scale).tolist()
