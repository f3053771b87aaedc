"""Learning curves and performance profiles as PNG or PDF. Nothing is shown on a screen."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from brpo.reports import statistics
from brpo.reports.comparison import Comparison, Method, Task
from brpo.reports.seed_result import METRICS

# Okabe and Ito's colours, which colour-blind readers can tell apart. An algorithm has the same one in every picture.
_COLORS = {
    "bc": "#999999", "iql": "#E69F00", "sfac": "#0072B2", "td3_bc": "#009E73", "awac": "#56B4E9", "xql": "#CC79A7",
    "bdpo": "#D55E00", "sql": "#882255", "eql": "#000000",
}  # fmt: skip
_OTHERS = ("#6A3D9A", "#B8A800", "#8C510A", "#35978F")  # algorithms that are not in the table, in turn
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX*<>"
_STROKES = 3  # variants that strokes alone tell apart at a glance
_COLUMNS = 3  # panels beside one another, at most
_PANEL = (4.4, 3.2)  # inches
_LEGEND_ROW = 0.24  # inches
_FEW = 10  # fewer runs than this have a band from nothing to everything
_CHARACTERS = 15.0  # of a legend's text in an inch of width


def looks(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """How the lines of methods look, by name: colours and markers tell algorithms apart, strokes the variants of one.

    Where there is one algorithm alone, and where one has more than a few variants, these run through a scale of colours and
    the markers in their order.
    """
    algos = list(dict.fromkeys(method.algo for method in methods))
    others = [algo for algo in algos if algo not in _COLORS]
    found = {}
    for method in methods:
        variants = [other for other in methods if other.algo == method.algo]
        place, scaled = variants.index(method), len(variants) > (1 if len(algos) == 1 else _STROKES)
        if scaled:
            color: Any = matplotlib.colormaps["viridis"](0.9 * place / (len(variants) - 1))
        else:
            color = _COLORS.get(method.algo) or _OTHERS[others.index(method.algo) % len(_OTHERS)]
        again = method.variant // len(_STYLES)  # its stroke is taken: another marker
        marker = place if scaled else algos.index(method.algo) + again * len(algos)
        found[method.name] = {
            "color": color,
            "linestyle": _STYLES[method.variant % len(_STYLES)],
            "marker": _MARKERS[marker % len(_MARKERS)],
        }
    return found


def draw_curves(comparison: Comparison, path: Path) -> None:
    """A panel for each data set: mean over seeds against updates, with a band from the worst seed to the best.

    Raises:
        OSError: the file cannot be written.
    """
    tasks, style = comparison.tasks, looks(comparison.methods)
    rows = math.ceil(len(tasks) / _COLUMNS)
    columns = math.ceil(len(tasks) / rows)
    width = max(columns * _PANEL[0], 5.4)
    legend = _legend_layout(comparison.methods, width)
    figure = _figure(width, rows * _PANEL[1], legend)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place < len(tasks):
            _curves(axes, comparison, tasks[place], style)
        else:
            axes.axis("off")
    figure.suptitle(f"{comparison.protocol}\nmean over seeds; band: worst to best seed", fontsize=9)
    _save(figure, comparison.methods, style, legend, path)


def _curves(axes: Any, comparison: Comparison, task: Task, style: dict[str, dict[str, Any]]) -> None:
    for method in comparison.methods:
        curves = [dict(result.curve) for result in comparison.cells.get((method, task), []) if result.curve]
        updates = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        if not updates:
            continue
        values = np.array([[curve[update] for update in updates] for curve in curves])  # (seeds, evaluations)
        look = style[method.name]
        axes.plot(updates, values.mean(0), markersize=3.5, linewidth=1.5, **look)
        axes.fill_between(updates, values.min(0), values.max(0), alpha=_alpha(style), color=look["color"], linewidth=0)
    axes.set_title(task.dataset, fontsize=9)
    axes.set_xlabel("updates", fontsize=9)
    axes.set_ylabel(METRICS[task.metric].words, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)


def _alpha(style: dict[str, Any]) -> float:
    return 0.15 if len(style) <= 5 else 0.08


def draw_profile(comparison: Comparison, tasks: Sequence[Task], path: Path) -> None:
    """Share of runs whose final score is above a threshold, over some data sets with scores; bands are 95 % intervals.

    They are left out for fewer than ten runs. Methods with holes among the data sets are left out.

    Raises:
        OSError: the file cannot be written.
    """
    style = looks(comparison.methods)
    found = {method: comparison.all_values(method, tasks, "final") for method in comparison.methods}
    whole = {method: values for method, values in found.items() if values is not None}
    every = np.concatenate([comparison.values(method, task, "final") for method, task in comparison.cells if task in tasks])
    margin = max(1.0, 0.04 * float(np.ptp(every)))
    thresholds = np.linspace(every.min() - margin, every.max() + margin, 201)
    legend = _legend_layout(tuple(whole), 5.6)
    figure = _figure(5.6, 3.4, legend)
    axes = figure.subplots()
    for method, values in whole.items():
        shares, band = statistics.performance_profile(values, thresholds)
        look = {**style[method.name], "marker": None}
        axes.step(thresholds, shares, where="post", linewidth=1.6, **look)
        if band is not None and sum(map(len, values)) >= _FEW:
            axes.fill_between(thresholds, *band, alpha=_alpha(style), color=look["color"], linewidth=0, step="post")
    several = tasks[0].dataset if len(tasks) == 1 else f"{len(tasks)} data sets"
    axes.set_title(f"Performance profile, final policy, {several}\n{comparison.protocol}", fontsize=9)
    axes.set_xlabel("normalized score τ", fontsize=9)
    axes.set_ylabel("share of runs with score > τ", fontsize=9)
    axes.set_ylim(-0.03, 1.03)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    plain = {name: {**look, "marker": None} for name, look in style.items()}
    _save(figure, tuple(whole), plain, legend, path)


# --- Figures ----------------------------------------------------------------------------------------------------------


def _legend_layout(methods: Sequence[Method], width: float) -> tuple[int, float]:
    """Columns of a legend below the panels, and its height in inches."""
    if not methods:
        return 1, 0.0
    longest = max(len(method.name) for method in methods)
    fit = max(1, int(width / (longest / _CHARACTERS + 0.6)))
    rows = math.ceil(len(methods) / fit)
    return math.ceil(len(methods) / rows), _LEGEND_ROW * rows + 0.15


def _figure(width: float, height: float, legend: tuple[int, float]) -> Figure:
    return Figure(figsize=(width, height + legend[1] + 0.3), dpi=150, layout="constrained")


def _save(
    figure: Figure, methods: Sequence[Method], style: dict[str, dict[str, Any]], legend: tuple[int, float], path: Path
) -> None:
    lines = [Line2D([], [], label=method.name, linewidth=1.6, markersize=4, **style[method.name]) for method in methods]
    if lines:
        figure.legend(handles=lines, loc="outside lower center", ncols=legend[0], fontsize=8, frameon=False)
    if path.suffix == ".pdf":
        FigureCanvasPdf(figure).print_pdf(path, metadata={"CreationDate": None})  # the same results, the same file
    else:
        FigureCanvasAgg(figure).print_png(path)
