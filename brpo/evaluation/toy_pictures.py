"""Pictures of toy tasks as in figures 4 and 5 of arXiv:2502.04778: samples beside data and target, and generation paths."""

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from brpo.datasets import toy
from brpo.evaluation.toy import Paths, Target
from brpo.functional.exact_values import diffusion_value

SHOWN = 3000  # points of a panel
FIELD_POINTS = 2000  # of the data that the exact field is made of
SIDE = 2.2  # inches of a panel
DPI = 130
SIDE_OF_FIELD = 48  # points of a field along an axis
_COLOURS: dict[str, Any] = {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}  # of energies, everywhere
_ENERGIES = ScalarMappable(Normalize(0.0, 1.0), "viridis")


class Row(NamedTuple):
    """A row of a picture: a task, and points (n, 2) by the title of their panel."""

    dataset_id: str
    panels: dict[str, np.ndarray]

    @classmethod
    def of(cls, target: Target, samples: dict[str, np.ndarray]) -> "Row":
        """Data, their re-weighting, then samples by method."""
        data, optimum = target.points[:SHOWN], target.draw(SHOWN, "picture")
        return cls(target.dataset_id, {"data": data, "re-weighted data": optimum, **samples})


def draw_samples(rows: Sequence[Row], *, across: bool = False) -> Figure:
    """Panels of points, coloured by their energy: a row for each task, a column for each title.

    Args:
        rows: a panel that a row lacks stays empty.
        across: a column for each task instead, and a row for each title.
    """
    titles = list(dict.fromkeys(title for row in rows for title in row.panels))
    shape = (len(titles), len(rows)) if across else (len(rows), len(titles))
    figure = Figure(figsize=(SIDE * shape[1] + 0.9, SIDE * shape[0] + 0.3), dpi=DPI, layout="compressed")
    all_panels = figure.subplots(*shape, squeeze=False)
    by_task = all_panels.T if across else all_panels
    for panels, row in zip(by_task, rows, strict=True):
        for panel, title in zip(panels, titles, strict=True):
            _draw_points(panel, row, title)
    for panels, names in ((by_task[:, 0], [row.dataset_id for row in rows]), (by_task[0], titles)):
        on_top = across == (names is not titles)
        for panel, name in zip(panels, names, strict=True):
            panel.set_title(name, fontsize=10) if on_top else panel.set_ylabel(name)
    figure.colorbar(_ENERGIES, ax=all_panels, label="energy", shrink=0.9, aspect=30, pad=0.01)
    return figure


def _draw_points(panel: Any, row: Row, title: str) -> None:
    _frame(panel)
    if title not in row.panels:
        panel.set_visible(False)
        return
    points = row.panels[title][:SHOWN]
    panel.scatter(*points.T, c=toy.energy(row.dataset_id, points), s=2, linewidths=0, rasterized=True, **_COLOURS)


def grid(side: int, reach: float) -> np.ndarray:
    """The points of a square grid over [-reach, reach]^2, (side^2, 2): rows from the bottom, x runs fastest."""
    axis = np.linspace(-reach, reach, side)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def value_field(
    points: np.ndarray,
    energies: np.ndarray,
    alpha_bar: float,
    temperature: float,
    side: int = SIDE_OF_FIELD,
    reach: float = 1.0,
) -> np.ndarray:
    """The exact `V_n` on a square grid over [-reach, reach]^2, (side, side): rows from the bottom, as `imshow` wants them.

    Args:
        points: the data, (n, 2).
        energies: of the data, (n,).
        alpha_bar: in [0, 1]; at 1, where there is no noise, it is the energy of the nearest point.
        temperature: `eta`.
        side: points of the grid along an axis.
        reach: half the width of the square.
    """
    data, values = torch.from_numpy(points).double(), torch.from_numpy(energies).double()
    noisy = min(alpha_bar, 1.0 - 1e-4)  # the limit of little noise is the nearest point
    blocks = torch.from_numpy(grid(side, reach)).split(256)
    return torch.cat([diffusion_value(block, data, values, noisy, temperature) for block in blocks]).view(side, side).numpy()


def draw_generation(paths: Paths, points: np.ndarray, energies: np.ndarray, temperature: float, panels: int = 6) -> Figure:
    """Paths over the fields of `V_n` at some steps, the last one at the action: the exact ones, and below those learned.

    Each panel is as wide as its points need: they come nearer to each other from step to step.

    Args:
        paths: of a policy.
        points: the data, (n, 2); the first `FIELD_POINTS` make the exact field.
        energies: of the data, (n,).
        temperature: `eta`.
        panels: at most so many steps.
    """
    last = len(paths.points) - 1
    steps = np.unique(np.linspace(0, last, min(panels, last + 1)).round().astype(int)).tolist()
    reaches = [max(1.0, 1.05 * float(np.abs(paths.points[step]).max())) for step in steps]
    data, shape = (points[:FIELD_POINTS], energies[:FIELD_POINTS]), (SIDE_OF_FIELD, SIDE_OF_FIELD)
    places = list(zip(steps, reaches, strict=True))
    rows = {"exact V": [value_field(*data, float(paths.alpha_bars[k]), temperature, reach=reach) for k, reach in places]}
    if paths.value is not None:
        rows["learned V"] = [paths.value(grid(SIDE_OF_FIELD, reach), k).reshape(shape) for k, reach in places]
    return draw_paths(paths.points, rows, steps, reaches)


def draw_paths(
    paths: np.ndarray, fields: dict[str, list[np.ndarray]], steps: Sequence[int], reaches: Sequence[float]
) -> Figure:
    """A panel for each of some steps: the field there, the paths since the last panel, and where they stand.

    Args:
        paths: (steps + 1, n, 2), from noise to the action.
        fields: by what they are, a row each: a square array (side, side) for each panel, rows from the bottom
            (see `value_field`).
        steps: the index along `paths` of each panel.
        reaches: half the width of the square that a panel and its field cover.
    """
    size = (SIDE * len(steps) + 0.9, SIDE * len(fields) + 0.3)
    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    panels = figure.subplots(len(fields), len(steps), squeeze=False)
    stretches = [paths[start : stop + 1] for start, stop in zip([0, *steps], steps, strict=False)]
    for row, (name, of_steps) in zip(panels, fields.items(), strict=True):
        for drawn in zip(row, stretches, of_steps, reaches, strict=True):
            _draw_paths(*drawn)
        row[0].set_ylabel(name)
    for panel, step in zip(panels[0], steps, strict=True):
        panel.set_title(f"{len(paths) - 1 - step} steps left", fontsize=10)  # which is n, where all of them are taken
    figure.colorbar(_ENERGIES, ax=panels, label="V", shrink=0.9, aspect=15 * len(fields), pad=0.01)
    return figure


def _draw_paths(panel: Any, paths: np.ndarray, field: np.ndarray, reach: float) -> None:
    _frame(panel, reach)
    panel.imshow(field, origin="lower", extent=(-reach, reach, -reach, reach), interpolation="bilinear", **_COLOURS)
    panel.plot(*paths.transpose(2, 0, 1), color="white", linewidth=0.5, alpha=0.7)
    panel.scatter(*paths[-1].T, s=9, color="red", edgecolors="white", linewidths=0.4, zorder=3)


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _frame(panel: Any, reach: float = 1.0) -> None:
    outer = 1 if reach < 3.0 else math.floor(reach)  # labels of others would lie on one another
    panel.set_xticks([-outer, 0, outer])
    panel.set_yticks([-outer, 0, outer])
    panel.set_xlim(-reach, reach)  # after the ticks, which widen the axes to hold themselves
    panel.set_ylim(-reach, reach)
    panel.set_aspect("equal")
    panel.tick_params(labelsize=7)
