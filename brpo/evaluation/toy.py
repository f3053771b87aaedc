"""Evaluation on toy tasks: samples of the policy against the re-weighted data, which is the known optimum."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from brpo.datasets import toy
from brpo.errors import Interrupted
from brpo.evaluation.distances import resample, sliced_wasserstein, tilted_weights
from brpo.functional import streams

PATHS = 24  # ways from noise to action that are drawn
STARTS = 2000  # draws of noise, over which the learned value of the start is averaged


class Paths(NamedTuple):
    """How samples came about, step by step.

    Attributes:
        points: (steps + 1, n, 2), from noise to the action.
        alpha_bars: (steps + 1,), the share of the data's variance in each of these; 1 at the action.
        value: the learned value (m,) of any points (m, 2) at a position along the ways; None where nothing learns it.
    """

    points: np.ndarray
    alpha_bars: np.ndarray
    value: Callable[[np.ndarray, int], np.ndarray] | None = None


@dataclass(frozen=True)
class ToySummary:
    """What one evaluation says about one seed. Distances in units of the action, whose range is [-1, 1].

    Attributes:
        seed: the member's.
        update: number of updates made.
        sliced_wasserstein: distance of the policy's samples to the target's.
        noise_floor: the same distance between two independent samples of the target: nothing does better for sure.
        energy_mean: of the policy's samples.
        energy_target: of the target, exact.
        start_value: learned value of the noise that generation starts from, its mean; None where nothing learns it.
        start_exact: what it is worth under the optimum, `eta log mean exp(energy / eta)` over the data.
        mode_error: total variation distance between the mode shares of policy and target; None without modes.
        mode_shares: of the policy's samples.
    """

    seed: int
    update: int
    sliced_wasserstein: float
    noise_floor: float
    energy_mean: float
    energy_target: float
    start_value: float | None
    start_exact: float
    mode_error: float | None
    mode_shares: tuple[float, ...]

    def numbers(self) -> dict[str, float | None]:
        """All but seed and update; a column for each mode."""
        values = asdict(self)
        shares = values.pop("mode_shares")
        plain = {name: value for name, value in values.items() if name not in ("seed", "update")}
        return plain | {f"mode_share_{mode}": share for mode, share in enumerate(shares)}


class Target(NamedTuple):
    """A task's data and its optimum at a temperature.

    Attributes:
        dataset_id: of the task.
        points: the data, float32 (n, 2).
        energies: of the data, float32 (n,).
        weights: of the data in the optimum `p* ~ p_data exp(energy / eta)`, float64 (n,), with sum 1.
        value: of the regularized problem, `eta log mean exp(energy / eta)`: mean energy less eta times the KL to the data.
    """

    dataset_id: str
    points: np.ndarray
    energies: np.ndarray
    weights: np.ndarray
    value: float

    @classmethod
    def of(cls, dataset_id: str, temperature: float) -> "Target":
        """The target of a task."""
        points = toy.sample(dataset_id)
        energies = toy.energy(dataset_id, points)
        exponents = torch.from_numpy(energies).double() / temperature
        value = temperature * (exponents.logsumexp(0).item() - math.log(len(points)))
        return cls(dataset_id, points, energies, tilted_weights(energies, temperature), value)

    def draw(self, count: int, name: str) -> np.ndarray:
        """Points of the optimum, float32 (count, 2): the data resampled by their weights; another name, other points."""
        key = streams.key(torch.tensor(toy.SEED), streams.purpose(f"target/{name}"))
        return self.points[resample(self.weights, streams.uniform(key, (count,), torch.float64).numpy())]

    @property
    def energy_mean(self) -> float:
        """Mean energy of the optimum."""
        return float(self.weights @ self.energies)

    @property
    def mode_shares(self) -> np.ndarray | None:
        """Mass of the optimum in each mode; None for a task without modes."""
        return toy.mode_shares(self.dataset_id, self.points, self.weights)


class ToyEvaluator:
    """Draws actions of every seed at the one state and compares them with the target.

    Args:
        dataset_id: a toy task.
        samples: for each seed; two independent samples of the target have as many.
        temperature: `eta` of the target.

    Raises:
        UserError: there is no such task.
    """

    def __init__(self, dataset_id: str, samples: int, temperature: float) -> None:
        self.target, self.samples = Target.of(dataset_id, temperature), samples
        self.temperature = temperature
        self.reference = self.target.draw(samples, "reference")
        self.noise_floor = sliced_wasserstein(self.target.draw(samples, "second"), self.reference)
        self.drawn: np.ndarray | None = None  # (seeds, samples, 2), of the last evaluation
        self.paths: Paths | None = None  # of its first seed

    def evaluate(
        self, algorithm: Any, seeds: list[int], update: int, stop: Callable[[], bool] = lambda: False
    ) -> list[ToySummary]:
        """Sample every policy once and summarize.

        Raises:
            Interrupted: `stop` said so.
        """
        if stop():
            raise Interrupted("evaluation given up")
        self.drawn = draw(algorithm, len(seeds), self.samples)
        self.paths = _paths_of(algorithm, len(seeds))
        values = _start_values(algorithm, len(seeds))
        return [
            self._summarize(seed, update, points, value)
            for seed, points, value in zip(seeds, self.drawn, values, strict=True)
        ]

    def _summarize(self, seed: int, update: int, points: np.ndarray, start_value: float | None) -> ToySummary:
        shares, wanted = toy.mode_shares(self.target.dataset_id, points), self.target.mode_shares
        return ToySummary(
            seed=seed,
            update=update,
            sliced_wasserstein=sliced_wasserstein(points, self.reference),
            noise_floor=self.noise_floor,
            energy_mean=float(toy.energy(self.target.dataset_id, points).mean()),
            energy_target=self.target.energy_mean,
            start_value=start_value,
            start_exact=self.target.value,
            mode_error=None if shares is None or wanted is None else float(np.abs(shares - wanted).sum() / 2.0),
            mode_shares=tuple(shares.tolist()) if shares is not None else (),
        )

    def pictures(self) -> dict[str, bytes]:
        """Data, target and samples of the first seed; and how these came about, where the policy works step by step."""
        from brpo.evaluation import toy_pictures  # with matplotlib, which only these runs need

        if self.drawn is None:
            return {}
        row = toy_pictures.Row.of(self.target, {"policy": self.drawn[0]})
        found = {"samples": toy_pictures.png(toy_pictures.draw_samples([row]))}
        if self.paths is not None:
            figure = toy_pictures.draw_generation(self.paths, self.target.points, self.target.energies, self.temperature)
            found["paths"] = toy_pictures.png(figure)
        return found

    def close(self) -> None:
        """Nothing is held."""


def draw(algorithm: Any, seeds: int, samples: int) -> np.ndarray:
    """Sampled actions at the one state, float32 (seeds, samples, 2), from the streams of evaluation."""
    observations = torch.zeros(seeds, samples, 1, device=algorithm.device)
    return algorithm.act(observations, deterministic=False, step=0).float().cpu().numpy()


def _paths_of(algorithm: Any, seeds: int, count: int = PATHS) -> Paths | None:
    """Ways from noise to action of the first seed's policy, or None where it acts at once."""
    with torch.no_grad():
        found = algorithm.generation_paths(torch.zeros(seeds, count, 1, device=algorithm.device))
    if found is None:
        return None
    points, alpha_bars = found
    last, value = len(alpha_bars) - 1, partial(_first_value, algorithm, seeds)
    learned = _values(algorithm, points[:, last], last) is not None
    return Paths(points[0].float().cpu().numpy(), alpha_bars.float().cpu().numpy(), value if learned else None)


def _first_value(algorithm: Any, seeds: int, points: np.ndarray, position: int) -> np.ndarray:
    """The first seed's learned value of points (m, 2), (m,)."""
    values = _values(algorithm, torch.from_numpy(points).float().to(algorithm.device).expand(seeds, -1, -1), position)
    assert values is not None
    return values[0].float().cpu().numpy()


def _start_values(algorithm: Any, seeds: int) -> list[float | None]:
    """Mean of each seed's learned value over the noise that generation starts from."""
    noise = streams.normal(streams.key(torch.tensor(toy.SEED), streams.purpose("starts")), (STARTS, 2), torch.float32)
    values = _values(algorithm, noise.to(algorithm.device).expand(seeds, -1, -1), 0)
    return [None] * seeds if values is None else values.mean(-1).tolist()


def _values(algorithm: Any, points: torch.Tensor, position: int) -> torch.Tensor | None:
    """The learned value (seeds, m) of points (seeds, m, 2) at the one state."""
    return algorithm.generation_value(torch.zeros_like(points[..., :1]), points, position)
