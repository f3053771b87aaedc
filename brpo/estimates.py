"""What the policies of a run are worth, without an environment: fitted Q evaluation on the data of the run."""

from collections.abc import Callable, Iterator
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
from brpo.datasets.minari_io import TERMINATED
from brpo.datasets.transitions import Transitions
from brpo.engine.choose import choose, make_runner
from brpo.errors import UserError
from brpo.evaluation.kinds import MODES
from brpo.modules.critics import QEnsemble
from brpo.options import require_number, require_one_of, require_whole
from brpo.types import Batch

# The same for every run, whatever its own units and networks: estimates are there to be compared.
DATA = {
    "normalize_observations": True, "reward_scale": "return_range", "reward_shift": 0.0, "return_temperature": None,
    "heldout": 0.0,
}  # fmt: skip
CRITIC = partial(QEnsemble, critics=1, hidden=[256, 256], activation="relu", layer_norm=True)
# Q moves towards its target by 1/(1 - discount) steps of the average: 20,000 updates are some ten times as many at 0.99.
OPTIONS = {
    "optimizer": partial(torch.optim.Adam, lr=1e-3, fused=True),
    "schedule": {"critic": "cosine"},
    "gradient_clip": None,
    "polyak": 0.05,
}
ENGINE = {"name": "auto", "chunk": 100, "backend": "inductor", "compiled": "auto"}
SIZES = (10.0, 1000.0)  # of Q: one that is much larger is not reached in 20,000 updates, one much smaller is lost in noise
POINTS = 5  # estimates on the way
BATCH = 256
PIECE = 4096  # transitions that go through the networks at once
READ = 262_144  # transitions that are read at once, and of which the fit is judged
UNFINISHED = 0.1  # share of an estimate that may be missing at the end of a fit
LEFT_OUT = 0.01  # share of a discounted return that an episode's end may leave out
WHAT = ("algo", "dataset", "digest", "checkpoint", "update", "mode", "discount")
COLUMNS = (*WHAT, "updates", "seed", "value", "missing", "data_return", "data_best")  # of a table of estimates


@dataclass(frozen=True)
class Estimate:
    """Estimated discounted return of the policies of a run from the starts of the data's episodes, in the data's rewards.

    Attributes:
        what: of which policies, and how they act: `WHAT`.
        values: by the number of updates of the fit, for each seed.
        seeds: their names.
        missing: what the last values are still below their own equation, for each seed: `still_missing`.
        data_return: mean discounted return of the episodes in the data, each as far as it was recorded.
        data_best: the largest one among those that were recorded to their end (`bounded_by`). An estimate above it is an
            extrapolation beyond all that the data show. None where there are none.
    """

    what: dict[str, Any]
    values: dict[int, list[float]]
    seeds: list[int]
    missing: list[float]
    data_return: float
    data_best: float | None

    @property
    def points(self) -> list[list[float]]:
        """The estimates in their order, the last one last."""
        return list(self.values.values())

    @property
    def has_ended(self) -> bool:
        """Whether every seed's Q is where its equation wants it, but for `UNFINISHED`."""
        last = zip(self.points[-1], self.missing, strict=True)
        sizes = [max(abs(value), abs(value + lacks), abs(self.data_return)) for value, lacks in last]
        return all(abs(lacks) <= UNFINISHED * size for lacks, size in zip(self.missing, sizes, strict=True))

    @property
    def is_beyond_the_data(self) -> bool:
        """Whether a seed is above every episode, and would stay there if what is missing came to it."""
        last = zip(self.points[-1], self.missing, strict=True)
        return self.data_best is not None and any(value + min(lacks, 0.0) > self.data_best for value, lacks in last)

    def rows(self) -> list[dict[str, Any]]:
        """For a table: each seed at each point."""
        data = {"data_return": self.data_return, "data_best": self.data_best}
        unknown: list[float | None] = [None] * len(self.seeds)
        missing = {**dict.fromkeys(self.values, unknown), max(self.values): self.missing}
        return [
            {**self.what, "updates": updates, "seed": seed, "value": value, "missing": lacks, **data}
            for updates, values in self.values.items()
            for seed, value, lacks in zip(self.seeds, values, missing[updates], strict=True)
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
    transitions = datamodule.train_transitions.to(device)
    begins, returns = starts(datamodule, discount)
    largest = float(np.abs(returns).max()) * datamodule.spec.reward_scale
    fqe = FQE(
        datamodule.spec,
        evaluated=evaluated,
        deterministic=mode == "mean",
        critic=CRITIC,
        reward_factor=factor_for(transitions, discount, largest),
        seeds=seeds,
        max_updates=updates,
        discount=discount,
        **OPTIONS,
    ).to(device)
    fqe.configure_optimizers()
    engine, _ = choose("auto", fqe, device, config["data"]["storage"])
    runner = make_runner(engine, fqe, transitions, ENGINE, BATCH)
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
    best = bounded_by(datamodule, discount, returns)
    return Estimate(what, values, seeds, still_missing(fqe, transitions), float(returns.mean()), best)


def starts(datamodule: OfflineDataModule, discount: float) -> tuple[Tensor, np.ndarray]:
    """Index of the first transition of each episode, and the episodes' discounted returns in the data's rewards."""
    transitions, lengths = datamodule.train_transitions, datamodule.flat.lengths
    begins = np.cumsum(lengths) - lengths
    rewards = torch.cat([transitions.gather(rows[None]).rewards[0] for rows in torch.arange(len(transitions)).split(READ)])
    steps = np.arange(len(transitions)) - np.repeat(begins, lengths)  # from the start of the episode
    returns = np.add.reduceat(rewards.double().cpu().numpy() * discount**steps, begins)
    return torch.from_numpy(begins), returns / datamodule.spec.reward_scale


def bounded_by(datamodule: OfflineDataModule, discount: float, returns: np.ndarray) -> float | None:
    """The largest discounted return among the episodes that were recorded until hardly anything could follow; None of none.

    They terminated, or what came after counts less than `LEFT_OUT`.
    """
    flat = datamodule.flat
    whole = (flat.ended == TERMINATED) | (discount**flat.lengths < LEFT_OUT)
    return float(returns[whole].max()) if whole.any() else None


def spread_over(transitions: Transitions) -> Tensor:
    """Indices of `READ` transitions at equal distances; of all, where there are no more."""
    count = len(transitions)
    return torch.arange(min(count, READ)) * count // min(count, READ)


def factor_for(transitions: Transitions, discount: float, largest: float) -> float:
    """Factor on the rewards with which the size of Q is in `SIZES`, as far as one can tell: else 1.

    Rewards are in units of the spread of the returns. Where these hardly differ Q would be far beyond what the optimizer
    reaches in its updates.

    Args:
        transitions: all of them.
        discount: of the rewards, per step.
        largest: discounted return of an episode by its magnitude, in the rewards of the transitions.
    """
    chosen = spread_over(transitions)
    rewards = transitions.gather(chosen[None].to(transitions.index_device)).rewards
    size = max(largest, rewards.abs().mean().item() / (1.0 - discount))
    return min(max(size, SIZES[0]), SIZES[1]) / size if size > 0 else 1.0


def pieces(fqe: FQE, transitions: Transitions, chosen: Tensor) -> Iterator[tuple[int, Batch]]:
    """Number and batch of each `PIECE` of the chosen transitions, the same for every seed."""
    for number, piece in enumerate(chosen.split(PIECE)):
        yield number, transitions.gather(piece.expand(len(fqe.seeds), -1).to(transitions.index_device))


def in_the_datas_rewards(fqe: FQE, values: Tensor) -> list[float]:
    """Numbers for each seed out of the units that the fit is made in."""
    return (values / fqe.spec.reward_scale / fqe.reward_factor).tolist()


def start_values(fqe: FQE, transitions: Transitions, begins: Tensor) -> list[float]:
    """Mean of `Q(s, pi(s))` over the first observations of the episodes, for each seed, in the data's rewards."""
    total = torch.zeros(len(fqe.seeds), dtype=torch.float64)
    for number, batch in pieces(fqe, transitions, begins):
        total += fqe.policy_value(batch.observations, number).double().sum(-1).cpu()
    return in_the_datas_rewards(fqe, total / len(begins))


def still_missing(fqe: FQE, transitions: Transitions) -> list[float]:
    """What Q is still below its own equation, for each seed, in the data's rewards: an estimate moves by as much, roughly.

    The mean over the data of `r + discount (1 - terminated) Q(s', pi(s')) - Q(s, a)` times the steps that count from there
    on: each step of an episode adds its own.
    """
    chosen = spread_over(transitions)
    total, ended = torch.zeros(len(fqe.seeds), dtype=torch.float64), 0.0
    for number, batch in pieces(fqe, transitions, chosen):
        total += fqe.residual(batch, number).double().sum(-1).cpu()
        ended += batch.terminated[0].double().sum().item()
    steps = 1.0 / (1.0 - fqe.discount * (1.0 - ended / len(chosen)))
    return in_the_datas_rewards(fqe, steps * total / len(chosen))
