"""Pictures of the distribution fits: densities on the line, contours in the plane."""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brpo.experiments.mixture_fits import Fits
from brpo.experiments.mixtures import Grid, Mixture

COLUMNS = 5
INSIDE = 0.86  # share of a density's mass within its contour: two standard deviations of a Gaussian in the plane
EXACT: dict[str, Any] = {"color": "black", "linewidth": 1.6}
CLIPPED: dict[str, Any] = {"color": "#c8581d", "linewidth": 1.2, "linestyle": "--"}


def draw(families: Sequence[Fits]) -> bytes:
    """One panel for each family and divergence, as a PNG: the target, the exact fit, the clipped one, the truncated ones."""
    names = families[0].names
    rows = math.ceil(len(names) / COLUMNS)
    with matplotlib.rc_context({"font.size": 7, "axes.titlesize": 8}):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=(10.0, 1.75 * rows * len(families) + 0.8), layout="constrained")
        parts = figure.subfigures(len(families), 1, squeeze=False).flat
        for fits, part in zip(families, parts, strict=True):
            part.suptitle(f"{fits.family} fits, {fits.task.dimension}-D", weight="bold", x=0.01, ha="left", size=9)
            grid = list(part.subplots(rows, COLUMNS, sharex=True, sharey=True).flat)
            for name, axes in zip(names, grid, strict=False):
                axes.set_title(name)
                axes.set_xticks([])
                axes.set_yticks([])
                panel(axes, fits, name)
            for axes in grid[len(names) :]:
                axes.axis("off")
        handles = legend(families[0])
        figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]), frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def styles(fits: Fits) -> dict[str, dict[str, Any]]:
    """How each kind of objective is drawn: exact, clipped, and the orders from dark to light."""
    orders = sorted({objective.order for objective in fits.chosen if objective.order is not None})
    colors = matplotlib.colormaps["viridis"]
    shades = {
        str(n): {"color": colors(0.1 + 0.8 * k / max(len(orders) - 1, 1)), "linewidth": 0.9} for k, n in enumerate(orders)
    }
    return {**shades, "clipped": CLIPPED, "exact": EXACT}


def legend(fits: Fits) -> tuple[list[Any], list[str]]:
    """Handles and labels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = {label: Line2D([], [], **style) for label, style in styles(fits).items()}
    words = {"exact": "exact", "clipped": "clipped, exact g"} | {key: f"N = {key}" for key in lines if key.isdigit()}
    order = ["exact", "clipped", *(key for key in lines if key.isdigit())]
    return [Patch(color="0.85"), *(lines[key] for key in order)], ["target", *(words[key] for key in order)]


def panel(axes: Axes, fits: Fits, name: str) -> None:
    """The target and all fits of one divergence, the exact one on top; without those that became NaN."""
    show = show_line if fits.task.dimension == 1 else show_plane
    show(axes, fits.task.measure, fits.task.target, None)
    indices = {o.label: k for k, o in enumerate(fits.chosen) if o.divergence.name == name}
    for label, style in styles(fits).items():
        if label not in indices:
            continue
        density = fits.found[indices[label],]
        if density.log_density(fits.task.measure.points).isfinite().all():
            show(axes, fits.task.measure, density, style)


def show_line(axes: Axes, grid: Grid, density: Mixture, style: dict[str, Any] | None) -> None:
    """A density over the line; filled without a style."""
    x, y = grid.points[:, 0].numpy(), density.log_density(grid.points).exp().numpy()
    if style is None:
        axes.fill_between(x, y, color="0.85")
        axes.set_xlim(-6.0, 6.0)
        axes.set_ylim(0.0, 1.8 * y.max())
    else:
        axes.plot(x, y, **style)


def show_plane(axes: Axes, grid: Grid, density: Mixture, style: dict[str, Any] | None) -> None:
    """The contour that holds `INSIDE` of the mass; filled levels without a style."""
    size = math.isqrt(len(grid.points))
    values = density.log_density(grid.points).exp()
    x, y, z = (v.reshape(size, size).numpy() for v in (*grid.points.unbind(-1), values))
    if style is None:
        axes.contourf(x, y, z, levels=8, cmap="Greys", vmax=1.6 * z.max())
        axes.set_aspect("equal")
        axes.set_xlim(-4.2, 4.2)
        axes.set_ylim(-3.6, 4.0)
        return
    ordered = values.sort(descending=True).values
    count = int(torch.searchsorted(ordered.cumsum(0) / ordered.sum(), INSIDE))
    drawn: dict[str, Any] = {"linewidths" if key == "linewidth" else f"{key}s": [v] for key, v in style.items()}
    axes.contour(x, y, z, levels=[float(ordered[count])], **drawn)
