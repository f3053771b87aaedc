"""The targets of the distribution-fitting experiment, fits of two families to them, and the tables of these."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from brpo.experiments.mixtures import Grid, Mixture, Objective, divergence_between, fit, objectives

ORDERS = range(2, 8)
RESTARTS = 3  # as many as a target has modes


@dataclass(frozen=True)
class Task:
    """A target, and the grids for fitting to it and for measuring the fits."""

    target: Mixture
    grid: Grid
    measure: Grid

    @property
    def dimension(self) -> int:
        """Of the points."""
        return self.target.means.shape[-1]

    @property
    def families(self) -> dict[str, int]:
        """Components of the fits: one, and as many as the target has."""
        return {"gaussian": 1, "mixture": self.target.means.shape[-2]}


@dataclass(frozen=True)
class Fits:
    """The fits of one family to one target.

    Attributes:
        task: the target.
        family: `gaussian` or `mixture`.
        chosen: the objective of each fit.
        found: the fits, (objectives, components, ...).
        losses: final value of each objective, (objectives,).
        divergences: every divergence that was fitted, of each fit, (objectives, divergences).
        mass: of each fit inside the cube, (objectives,).
    """

    task: Task
    family: str
    chosen: list[Objective]
    found: Mixture
    losses: torch.Tensor
    divergences: torch.Tensor
    mass: torch.Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Of the divergences, in the order of `divergences`."""
        return tuple(dict.fromkeys(objective.divergence.name for objective in self.chosen))


def tasks() -> list[Task]:
    """Two Gaussians on a line, and three in the plane."""
    line = mixture([0.6, 0.4], [[-2.0], [2.0]], [[[0.36]], [[0.64]]])
    plane = mixture(
        [0.4, 0.35, 0.25],
        [[-1.6, -1.0], [1.6, -1.0], [0.0, 1.7]],
        [[[0.3, 0.12], [0.12, 0.3]], [[0.3, -0.12], [-0.12, 0.3]], [[0.4, 0.0], [0.0, 0.2]]],
    )
    return [
        Task(line, Grid.cube(8.0, 321, 1), Grid.cube(8.0, 1601, 1)),
        Task(plane, Grid.cube(5.0, 41, 2), Grid.cube(5.0, 161, 2)),
    ]


def mixture(weights: Sequence[float], means: Sequence[Any], covariances: Sequence[Any]) -> Mixture:
    """A mixture from its weights (components,), means (components, d) and covariances (components, d, d)."""
    log_weights, centers, spreads = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
    return Mixture(log_weights.log(), centers, torch.linalg.cholesky(spreads))


def fit_family(task: Task, family: str, *, clip: float, updates: int, seed: int, also: Sequence[str] = ()) -> Fits:
    """Fit a family under every objective, and measure all divergences on the finer grid."""
    chosen, components = objectives(ORDERS, clip, also), task.families[family]
    found, losses = fit(task.target, chosen, task.grid, components=components, updates=updates, restarts=RESTARTS, seed=seed)
    log_p, log_q = (m.log_density(task.measure.points) for m in (task.target, found))
    mass = task.measure.integrate(log_q.exp())
    log_p, log_q = task.measure.normalized(log_p), task.measure.normalized(log_q)
    used = {objective.divergence.name: objective.divergence for objective in chosen}
    divergences = [divergence_between(d, log_p, log_q, task.measure) for d in used.values()]
    return Fits(task, family, chosen, found, losses, torch.stack(divergences, -1), mass)


def rows(results: Sequence[Fits]) -> list[dict[str, Any]]:
    """A row for each fit: its objective, the objective's final value, and every divergence from the target to it."""
    return [
        {
            "dimension": fits.task.dimension,
            "family": fits.family,
            "objective": objective.divergence.name,
            "order": objective.label,
            "epsilon": "" if math.isinf(objective.epsilon) else objective.epsilon,
            "loss": float(loss),
            "mass": float(mass),
            **{name: float(value) for name, value in zip(fits.names, values, strict=True)},
        }
        for fits in results
        for objective, loss, mass, values in zip(fits.chosen, fits.losses, fits.mass, fits.divergences, strict=True)
    ]


def table(results: Sequence[Fits]) -> str:
    """For each divergence its own exact value of the fits: exact, clipped, and truncated at each order. Markdown."""
    labels = ["exact", "clipped", *map(str, ORDERS)]
    lines = []
    for fits in results:
        lines += [f"{fits.task.dimension}-D, {fits.family}", "", f"| objective | {' | '.join(labels)} |"]
        lines += ["|---" * (len(labels) + 1) + "|"]
        for column, name in enumerate(fits.names):
            own = {
                objective.label: short(float(values[column]))
                for objective, values in zip(fits.chosen, fits.divergences, strict=True)
                if objective.divergence.name == name
            }
            lines.append(f"| `{name}` | {' | '.join(own.get(label, '') for label in labels)} |")
        lines.append("")
    return "\n".join(lines)


def short(value: float) -> str:
    """Four decimals; a power of ten for what is large or small."""
    return f"{value:.4f}" if 1e-4 <= abs(value) < 1000 else f"{value:.0e}"
