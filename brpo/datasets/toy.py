"""Two-dimensional tasks with a known answer: points in the plane as actions, the energy of a point as its reward.

A task has one state and episodes of one step that is terminated. Its KL-regularized optimum is the re-weighted data,
`p* ~ p_data exp(energy / eta)`.

Source: Lu et al. (2023), arXiv:2304.12824 (QGPO), with its public code, which defines points and energies,
and Gao et al. (2025), arXiv:2502.04778 (BDPO), figures 4 and 5. Ours: the points are divided by 4.5, the edge of these
figures, so that they lie in [-1, 1]; and an energy is a function of the point alone, where some of theirs go by how the
point was drawn (see each task). docs/toy.md shows them.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from brpo.datasets.ids import TOY
from brpo.errors import UserError
from brpo.functional import streams

FRAME = 4.5  # the points of the source lie within this distance of the axes; ours are divided by it
POINTS = 100_000  # of a data set
SEED = 20_250_206  # of its points, whatever is trained on them


class Draws:
    """Random numbers of a task: functions of the seed, the task and what they are for.

    Args:
        task: its name.
        count: number of points.
        seed: another one gives independent points.
    """

    def __init__(self, task: str, count: int, seed: int) -> None:
        self.count = count
        self._task = streams.key(torch.tensor(seed), streams.purpose(f"toy/{task}"))

    def uniform(self, use: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Uniform in (low, high), float64 (count,)."""
        key = streams.key(self._task, streams.purpose(use))
        return low + (high - low) * streams.uniform(key, (self.count,), torch.float64).numpy()

    def choice(self, use: str, among: int) -> np.ndarray:
        """Uniform in 0..among-1, int64 (count,)."""
        return streams.integers(streams.key(self._task, streams.purpose(use)), self.count, among).numpy()

    def noise(self, std: float, use: str = "noise") -> np.ndarray:
        """Gaussian with mean 0, float64 (count, 2)."""
        key = streams.key(self._task, streams.purpose(use))
        return std * streams.normal(key, (self.count, 2), torch.float64).numpy()


@dataclass(frozen=True)
class Task:
    """A task in the units of its source (see `FRAME`).

    Attributes:
        draw: points (n, 2), float64.
        energy: of any points (n, 2): (n,) in [0, 1].
        description: what the energy is, in words.
        modes: names the part of the distribution that any point (n, 2) belongs to, int64 (n,); None without parts.
        mode_count: number of these parts.
    """

    draw: Callable[[Draws], np.ndarray]
    energy: Callable[[np.ndarray], np.ndarray]
    description: str
    modes: Callable[[np.ndarray], np.ndarray] | None = None
    mode_count: int = 0


def _polar(radius: np.ndarray | float, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


# --- Eight Gaussians --------------------------------------------------------------------------------------------------

_CENTRES = _polar(4.0 / math.sqrt(2.0), math.pi / 2 + math.pi / 4 * np.arange(8))


def _draw_gaussians(draws: Draws) -> np.ndarray:
    return _CENTRES[draws.choice("mode", 8)] + draws.noise(0.5 / math.sqrt(2.0))


def _nearest_centre(points: np.ndarray) -> np.ndarray:
    return ((points[:, None] - _CENTRES) ** 2).sum(-1).argmin(-1)


# --- Rings and circles ------------------------------------------------------------------------------------------------

_RINGS, _RING_ENERGIES = np.array([0.75, 1.5, 2.25, 3.0]), np.array([0.0, 1.0, 1.0 / 3.0, 2.0 / 3.0])
_CIRCLES, _CIRCLE_ENERGIES = np.array([1.5, 3.0]), np.array([1.0, 0.0])


def _draw_around(radii: np.ndarray, std: float) -> Callable[[Draws], np.ndarray]:
    def draw(draws: Draws) -> np.ndarray:
        chosen = radii[draws.choice("mode", len(radii))]
        return _polar(chosen, draws.uniform("angle", high=2 * math.pi)) + draws.noise(std)

    return draw


def _nearest_radius(radii: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda points: np.abs(np.linalg.norm(points, axis=-1)[:, None] - radii).argmin(-1)


# --- Moons ------------------------------------------------------------------------------------------------------------


def _draw_moons(draws: Draws) -> np.ndarray:
    angle, lower = draws.uniform("angle", high=math.pi), draws.choice("mode", 2)
    upper_moon = _polar(1.0, angle)
    moons = np.where(lower[:, None] == 1, np.array([1.0, 0.5]) - upper_moon, upper_moon)
    return 2.0 * (moons + draws.noise(0.1)) + np.array([-1.0, -0.2])


def _nearest_moon(points: np.ndarray) -> np.ndarray:
    unit = (points - np.array([-1.0, -0.2])) / 2.0
    lower = _distance_to_upper_half_circle(np.array([1.0, 0.5]) - unit)
    return (lower < _distance_to_upper_half_circle(unit)).astype(np.int64)


def _distance_to_upper_half_circle(points: np.ndarray) -> np.ndarray:
    to_circle = np.abs(np.linalg.norm(points, axis=-1) - 1.0)
    to_ends = np.hypot(np.abs(points[:, 0]) - 1.0, points[:, 1])
    return np.where(points[:, 1] >= 0.0, to_circle, to_ends)


# --- Spirals, roll and board ------------------------------------------------------------------------------------------


def _draw_spirals(draws: Draws) -> np.ndarray:
    angle = 3.0 * math.pi * np.sqrt(draws.uniform("angle"))
    shift = np.stack([draws.uniform("x", high=0.5), draws.uniform("y", high=0.5)], axis=-1)
    arm = _polar(angle, math.pi - angle) + shift
    sign = 1.0 - 2.0 * draws.choice("arm", 2)
    return sign[:, None] * arm / 3.0 + draws.noise(0.1)


def _draw_roll(draws: Draws) -> np.ndarray:
    angle = 1.5 * math.pi * (1.0 + 2.0 * draws.uniform("angle"))
    return (_polar(angle, angle) + draws.noise(1.0)) / 5.0


def _draw_board(draws: Draws) -> np.ndarray:
    x, y = draws.uniform("x", -2.0, 2.0), draws.uniform("y")
    return 2.0 * np.stack([x, y - 2.0 * draws.choice("row", 2) + np.floor(x) % 2.0], axis=-1)


def _column(points: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(points[:, 0] / 2.0) + 2, 0, 3).astype(np.int64)


TASKS: dict[str, Task] = {
    "8gaussians": Task(
        _draw_gaussians,
        lambda points: _nearest_centre(points) / 7.0,
        "k/7 for the nearest centre k = 0..7, anticlockwise from the top (the source: of the Gaussian it was drawn from)",
        _nearest_centre,
        8,
    ),
    "2spirals": Task(
        _draw_spirals,
        lambda points: np.clip(1.0 - 0.3 * np.linalg.norm(points, axis=-1), 0.0, 1.0),
        "1 - 0.3 r, falling with the distance r from the centre (the source: 1 - n/10 with n = 3 r before noise)",
    ),
    "moons": Task(
        _draw_moons,
        lambda points: _nearest_moon(points).astype(np.float64),
        "1 nearer to the lower moon, 0 nearer to the upper one (the source: the moon it was drawn from)",
        _nearest_moon,
        2,
    ),
    "swissroll": Task(
        _draw_roll,
        lambda points: np.minimum((points**2).sum(-1) / 9.0, 1.0),
        "r^2/9, growing with the distance r from the centre, at most 1 (the source does not bound it)",
    ),
    "rings": Task(
        _draw_around(_RINGS, 0.08),
        lambda points: _RING_ENERGIES[_nearest_radius(_RINGS)(points)],
        "of the nearest ring, from the inside: 0, 1, 1/3, 2/3",
        _nearest_radius(_RINGS),
        4,
    ),
    "circles": Task(
        _draw_around(_CIRCLES, 0.24),
        lambda points: _CIRCLE_ENERGIES[_nearest_radius(_CIRCLES)(points)],
        "1 nearer to the inner circle, 0 nearer to the outer one (ours: the source gives none)",
        _nearest_radius(_CIRCLES),
        2,
    ),
    "checkerboard": Task(
        _draw_board,
        lambda points: (_column(points) % 2 == 0).astype(np.float64),
        "1 in the first and third column of squares from the left, 0 in the others",
        _column,
        4,
    ),
}  # fmt: skip


def ids() -> list[str]:
    """The ids of all tasks."""
    return [TOY + name for name in TASKS]


def task_of(dataset_id: str) -> Task:
    """The task of an id.

    Raises:
        UserError: there is none of this name.
    """
    name = dataset_id.removeprefix(TOY)
    if name not in TASKS:
        raise UserError(f"dataset={dataset_id} is not a toy task. Known: {', '.join(ids())}.")
    return TASKS[name]


def sample(dataset_id: str, count: int = POINTS, seed: int = SEED) -> np.ndarray:
    """Points of a task, float32 (count, 2) in [-1, 1]. The defaults give those of the data set.

    They are rounded to 6 digits: the last bits of a cosine differ between machines, and the data set should not.

    Raises:
        UserError: there is no such task, or it draws something else.
    """
    points = task_of(dataset_id).draw(Draws(dataset_id.removeprefix(TOY), count, seed)) / FRAME
    if points.shape != (count, 2) or not np.isfinite(points).all():
        raise UserError(f"{dataset_id} must draw finite points ({count}, 2), got {points.shape}.")
    return np.clip(np.round(points, 6), -1.0, 1.0).astype(np.float32)


def energy(dataset_id: str, points: np.ndarray) -> np.ndarray:
    """Energy in [0, 1] of any points (n, 2) in the units of `sample`: float32 (n,).

    Raises:
        UserError: there is no such task, or its energies are others.
    """
    found = task_of(dataset_id).energy(FRAME * points.astype(np.float64)).astype(np.float32)
    if found.shape != points.shape[:1] or not ((found >= 0) & (found <= 1)).all():
        raise UserError(
            f"The energies of {dataset_id} must be one number in [0, 1] for each of {len(points)} points, got {found.shape}"
            + (f" from {found.min():g} to {found.max():g}." if found.size else ".")
        )
    return found


def mode_shares(dataset_id: str, points: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray | None:
    """Share of the points (n, 2), or of their weights (n,), in each mode: (modes,). None for a task without modes."""
    task = task_of(dataset_id)
    if task.modes is None:
        return None
    mass = np.bincount(task.modes(FRAME * points.astype(np.float64)), weights, minlength=task.mode_count)
    return mass / mass.sum()


def digest(points: np.ndarray, energies: np.ndarray) -> str:
    """SHA-256 over shapes, types and bytes of points and energies."""
    found = hashlib.sha256()
    for array in (points, energies):
        found.update(f"{array.dtype.str} {array.shape};".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
