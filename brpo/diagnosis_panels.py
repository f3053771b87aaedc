"""The panels of `brpo diagnose`: what each shows of a run, and why a run lacks one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FormatStrFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from brpo.callbacks.recorder import WEIGHTS
from brpo.diagnosis import AT_BOUND, CLIPPED, EFFECTIVE, FITS, TERMS, VALUES, Curve, Diagnosis, effective, number
from brpo.functional import series
from brpo.modules.diffusion import DiffusionActor

COLORS = ("#1f5a96", "#c8581d", "#3b8a4e", "#8a4f9e", "#a3892a", "#4a4a4a")
KL = "kl/pathwise"
MOST_POINTS = 2000  # of a scatter
WORDS = {
    "ratio/clipped_share": "ratio t outside the clip range",
    "ratio/above_max_share": "$\\rho$ above its cap",
    "weight/clipped_share": "weight at its upper clip",
    "weight/lowest_share": "weight at its lower end",
    "weight/zero_share": "weight 0",
    "value/clipped_share": "exponent of V's loss at its clip",
    "q/clipped_share": "error of Q beyond Huber's delta",
    AT_BOUND: "policy's action at a bound, held-out",
    "weight/effective_share": "w, batches",
    "heldout/weight/w/effective_share": "w, held-out",
    "heldout/ratio/rho/effective_share": "$\\rho$, held-out",
    "behavior/log_prob": "behaviour model",
    "actor/log_prob": "policy",
    "actor/error": "policy",
    "behavior/denoising_error": "behaviour model",
    "actor/denoising_error": "policy",
    "actor/regression": "advantage regression",
    "actor/symmetry": "symmetry term, before its coefficient",
    "actor/bc_term": "squared distance to the data",
    "actor/lambda": "lambda, the factor on Q",
}


@dataclass(frozen=True)
class Panel:
    """One picture of the page.

    Attributes:
        title: what it shows.
        absent: why this run has no such panel; empty where it has.
        draw: draws it.
        concerns: whether this kind of run could have it; the page does not say of others that they lack it.
    """

    title: str
    absent: Callable[[Diagnosis], str]
    draw: Callable[[Axes, Diagnosis], None]
    concerns: Callable[[Diagnosis], bool] = lambda _: True


# --- Why a panel is left out ------------------------------------------------------------------------------------------


def not_recorded(*names: str) -> str:
    """Reason where something that the algorithm itself records or gives is not there; it may have it all the same."""
    return f"not recorded ({' or '.join(names)}; docs/diagnose.md)"


def no_quantity(name: str) -> Callable[[Diagnosis], str]:
    """Reason where the algorithm does not give a quantity, or gives no finite number of it."""

    def reason(diagnosis: Diagnosis) -> str:
        if name not in diagnosis.quantities:
            return not_recorded(f"`{name}` of `diagnose`")
        positive = (diagnosis.quantities[name] > 0) & np.isfinite(diagnosis.quantities[name])
        return "" if positive.any() else "no value of it is positive and finite"

    return reason


def no_curve(tags: tuple[str, ...], words: str) -> Callable[[Diagnosis], str]:
    """Reason where none of some tags was recorded; `words` are that where other tags were."""

    def reason(diagnosis: Diagnosis) -> str:
        if any(tag in diagnosis.curves for tag in tags):
            return ""
        return words if diagnosis.curves else "the run folder has no TensorBoard events"

    return reason


def no_fit(diagnosis: Diagnosis) -> str:
    """Reason where nothing says how a policy fits held-out actions."""
    names = ("`actor/log_prob`", "`behavior/log_prob`", "`actor/error`", "`actor/denoising_error` of `diagnose`")
    return "" if diagnosis.fits else not_recorded(*names)


def no_fit_over_time(diagnosis: Diagnosis) -> str:
    """As `no_fit`, over time."""
    tags = tuple(f"heldout/{name}/mean" for name in diagnosis.fits)
    return no_fit(diagnosis) or no_curve(tags, "not recorded")(diagnosis)


def no_series(diagnosis: Diagnosis) -> str:
    """Reason where no truncated series is used."""
    if diagnosis.series is None:
        return f"{diagnosis.name} uses no series of a divergence"
    return "algo.regularizer.exact=true: the function itself is used" if diagnosis.series.exact else ""


def no_value_gap(diagnosis: Diagnosis) -> str:
    """Reason where the critic cannot be compared with returns."""
    if diagnosis.value_gaps:
        return ""
    if diagnosis.algorithm.spec.environment is None:
        return "the data set names no environment to roll out in"
    return "no rollouts were made" if "critic" in diagnosis.algorithm.trained else f"{diagnosis.name} has no part `critic`"


def judged_by_data(diagnosis: Diagnosis) -> bool:
    """Whether the critic can be compared with the returns of the data alone."""
    return diagnosis.value is not None and not diagnosis.value_gaps


def of_diffusion(diagnosis: Diagnosis) -> bool:
    """Whether the policy is a diffusion."""
    return any(isinstance(part, DiffusionActor) for part in diagnosis.algorithm.modules())


def no_terms(diagnosis: Diagnosis) -> str:
    """Reason where no two terms of the policy loss were recorded."""
    pairs = not_recorded(*(" and ".join(f"`{tag}`" for tag in pair) for pair in TERMS))
    return "" if diagnosis.terms() else no_curve((), pairs)(diagnosis)


# --- Panels -----------------------------------------------------------------------------------------------------------


def draw_weights(name: str, symbol: str) -> Callable[[Axes, Diagnosis], None]:
    """Histogram of positive factors, all seeds together; on a logarithmic axis where they span more than a decade."""

    def draw(axes: Axes, diagnosis: Diagnosis) -> None:
        values = diagnosis.quantities[name]
        positive = values[np.isfinite(values) & (values > 0)]
        low, high = np.quantile(positive, (0.001, 0.999))
        low, high = (low, high) if high > low * 1.01 else (low / 1.5, high * 1.5)
        wide = high > 10.0 * low
        bins = np.geomspace(low, high, 51) if wide else np.linspace(low, high, 51)
        share = np.full(positive.size, 100.0 / values.size)
        axes.hist(positive.clip(low, high), bins, weights=share, color=COLORS[0], alpha=0.8)  # pyright: ignore[reportArgumentType]
        axes.set_xscale("log" if wide else "linear")
        if wide:  # minor ticks need no labels: on little more than a decade they cover one another
            axes.xaxis.set_minor_formatter(NullFormatter())
            few = high < 100.0 * low  # decades; else labels of many digits would cover one another
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if few else LogLocator(numticks=6))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 2.5, 5, 10)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        words = [summary(values)]
        if low < 1.0 < high:
            axes.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
        elif not low == 1.0 == high:  # a line out there would squeeze the bars
            words.append("1 lies to the right" if high <= 1.0 else "1 lies to the left")
        cap = getattr(diagnosis.algorithm, "max_ratio", None) if name == "ratio/rho" else None
        if cap is not None and low < cap < high:
            axes.axvline(cap, color=COLORS[1], linewidth=0.8, linestyle="--", label=f"cap {cap:g}")
            axes.legend(loc="center right")
        axes.set_xlabel(f"{symbol} (outer 0.1 % in the end bins)")
        axes.set_ylabel("share of transitions (%)")
        axes.set_ylim(top=1.4 * axes.get_ylim()[1])
        write_inside(axes, "\n".join(words))

    return draw


def summary(values: np.ndarray) -> str:
    """Mean, quantiles and effective share in three lines, which are no wider than a panel."""
    kept = values[np.isfinite(values)]
    shares = [share for share in effective(values) if share is not None]
    second = [f"effective {100 * np.mean(shares):.3g} %"] if shares else []
    second += [f"zero {100 * (kept == 0).mean():.3g} %"] if (kept == 0).any() else []
    second += [f"not finite {100 * (1 - kept.size / values.size):.2g} %"] if kept.size < values.size else []
    return middle(values) + "\n" + ", ".join(second)


def middle(values: np.ndarray) -> str:
    """Mean and quantiles of what is finite, in two lines."""
    kept = values[np.isfinite(values)]
    low, median, high = np.quantile(kept, (0.05, 0.5, 0.95))
    return f"mean {kept.mean():.3g}, median {median:.3g}\n90 % in {low:.3g} to {high:.3g}"


def write_inside(axes: Axes, words: str) -> None:
    """Small text in the upper left corner."""
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0}
    axes.text(0.02, 0.97, words, transform=axes.transAxes, va="top", size=7, linespacing=1.4, bbox=behind)


def plot(axes: Axes, curve: Curve, color: str, label: str, factor: float = 1.0, **style: Any) -> None:
    """A curve, its neighbours averaged where there are many."""
    thin = curve.binned()
    if len(thin.values) <= 2:  # of one point there is no line
        style = {"marker": "o", "markersize": 2.5, **style}
    axes.plot(thin.updates, factor * thin.values, color=color, label=label, **style)


def draw_clipped(axes: Axes, diagnosis: Diagnosis) -> None:
    """Shares of what is clipped and of the policy's actions that lie at a bound, mean over the seeds."""
    for tag, color in zip([tag for tag in (AT_BOUND, *CLIPPED) if tag in diagnosis.curves], COLORS, strict=False):
        plot(axes, diagnosis.curves[tag], color, diagnosis.worded(WORDS[tag]), 100.0)
    over_updates(axes, "share of the batch (%)")
    top = max(axes.get_ylim()[1], 5.0)
    axes.set_ylim(-0.03 * top, top)  # a share of 0 is seen too


def draw_effective(axes: Axes, diagnosis: Diagnosis) -> None:
    """Effective sample shares, mean over the seeds, of batches and of the held-out batch."""
    for tag, color in zip(EFFECTIVE, COLORS, strict=False):
        if tag in diagnosis.curves:
            marker = {"marker": "o", "markersize": 2.5} if tag.startswith("heldout") else {}
            plot(axes, diagnosis.curves[tag], color, diagnosis.worded(WORDS[tag]), 100.0, **marker)
    over_updates(axes, f"effective share (%), batches of {diagnosis.batch_size}")
    axes.set_ylim(0.0, 1.04 * max(axes.get_ylim()[1], 10.0))  # a share near 100 is seen too


def draw_fit_over_time(axes: Axes, diagnosis: Diagnosis) -> None:
    """Mean fit of held-out actions at each evaluation, with the middle half of the transitions."""
    for name, color in zip(diagnosis.fits, COLORS, strict=False):
        mean, low, high = (diagnosis.curves.get(f"heldout/{name}/{key}") for key in ("mean", "q25", "q75"))
        if mean is None:
            continue
        axes.plot(mean.updates, mean.values, color=color, marker="o", markersize=2.5, label=f"{label(name)}, mean")
        if low is not None and high is not None:
            axes.fill_between(low.updates, low.values, high.values, color=color, alpha=0.15, linewidth=0)
    over_updates(axes, unit_of(diagnosis), "bands: middle half of the transitions")


def draw_fit_by_episode(axes: Axes, diagnosis: Diagnosis) -> None:
    """Fit of each episode at the checkpoint against its return."""
    spread = float(np.ptp(diagnosis.returns)) or 1.0
    for number_, (name, color) in enumerate(zip(diagnosis.fits, COLORS, strict=False)):
        mean, low, high = diagnosis.by_episode(name).T
        at = diagnosis.returns + 0.006 * spread * (number_ - 0.5 * (len(diagnosis.fits) - 1))  # bars side by side
        axes.vlines(at, low, high, color=color, linewidth=0.9, alpha=0.5)
        axes.plot(at, mean, "o", color=color, markersize=3, label=label(name))
    axes.set_xlabel("return of the episode (bars: middle half of it)")
    number_ticks(axes.xaxis)
    axes.set_ylabel(unit_of(diagnosis))
    low, high = axes.get_ylim()
    axes.set_ylim(top=high + 0.2 * (high - low))  # room for the legend, which does not see the bars
    axes.legend(loc="upper right", ncols=2)


def label(name: str) -> str:
    """A quantity in words."""
    return WORDS.get(name, name)


def unit_of(diagnosis: Diagnosis) -> str:
    """Label of what `fits` are."""
    return next(unit for kind, unit in FITS.items() if diagnosis.fits[0].endswith(kind))


def draw_series(axes: Axes, diagnosis: Diagnosis) -> None:
    """Error of the series on the clip range for several orders, over where the ratios of held-out transitions lie."""
    term = diagnosis.series
    assert term is not None
    order, used = len(term.coefficients) - 1, term.divergence
    low, high = series.clip_range(term.epsilon)
    t = torch.linspace(low, high, 401, dtype=torch.float64)
    g = used.conditional_symmetry_taylor(max(order, 7))
    exact = series.tail(used, g, t)
    for n in sorted({2, 3, 4, 5, 6, 7, order}):
        error = (exact - series.evaluate(g[: n + 1], t)).abs().clamp(min=1e-12)
        style: dict[str, Any] = {"color": COLORS[1], "linewidth": 2.0} if n == order else {"color": "0.6", "linewidth": 0.7}
        axes.plot(t, error, **style, zorder=3 if n == order else 2)
        axes.annotate(f"{n}", (high, float(error[-1])), (2, 0), textcoords="offset points", size=6, va="center")
    axes.set_yscale("log")
    axes.set_ylim(1e-8, 10.0 * axes.get_ylim()[1])
    axes.set_xlabel("ratio t in the clip range; " + diagnosis.worded("grey bars: held-out transitions"))
    axes.set_ylabel(f"error of the series of order {order} (others grey)")
    converges = "converges" if term.converges else f"does not converge (radius {used.series_radius:g})"
    words = f"{used.name}, at most {number(term.remainder)}; {converges}"
    ratio = diagnosis.quantities.get("ratio/t")
    if ratio is not None:
        behind: Any = axes.twinx()
        inside = ratio[(ratio >= low) & (ratio <= high)]
        behind.hist(inside, 40, (low, high), color="0.85", zorder=0)
        behind.set_yticks([])
        behind.grid(False)
        axes.set_zorder(behind.get_zorder() + 1)
        axes.patch.set_visible(False)
        words += f"\n{100 * (diagnosis.outside_share or 0.0):.1f} % of t lie outside the clip range"
        if "series/epsilon" in diagnosis.quantities:
            words += f"\nof each; epsilon there {number(float(diagnosis.quantities['series/epsilon'].mean()))} on average"
    write_inside(axes, words)


def draw_kl(axes: Axes, diagnosis: Diagnosis) -> None:
    """Pathwise KL of the policy to the behaviour model, mean over the seeds."""
    plot(axes, diagnosis.curves[KL], COLORS[0], "sum over the diffusion steps")
    over_updates(axes, "pathwise KL to the behaviour model (nats)")
    axes.set_ylim(bottom=0.0)


def draw_value_gap(axes: Axes, diagnosis: Diagnosis) -> None:
    """The value gap of each seed at each evaluation, and their mean."""
    curves = list(diagnosis.value_gaps.values())
    for seed, curve in diagnosis.value_gaps.items():
        name = f"seed {seed}" if len(curves) == 1 else "each seed" if curve is curves[0] else "_"
        axes.plot(curve.updates, curve.values, color=COLORS[0], linewidth=0.8, marker="o", markersize=2.5, label=name)
    updates = sorted(set.intersection(*(set(curve.updates.tolist()) for curve in curves)))
    if len(curves) > 1 and updates:
        mean = [np.mean([curve.values[curve.updates == update][-1] for curve in curves]) for update in updates]
        axes.plot(updates, mean, color=COLORS[1], linewidth=2.0, label="mean")
    axes.axhline(0.0, color="black", linewidth=0.8, linestyle="--")
    over_updates(axes, "Q - discounted return (scaled rewards)", "above 0: over-estimation")


def draw_value(axes: Axes, diagnosis: Diagnosis) -> None:
    """The critic's value of transitions, mean over the seeds, against the return that the data had from there on."""
    assert diagnosis.value is not None
    name, values, behind = VALUES[diagnosis.value], diagnosis.quantities[diagnosis.value].mean(0), diagnosis.returns_to_go
    every = math.ceil(len(values) / MOST_POINTS)
    axes.plot(behind[::every], values[::every], "o", color=COLORS[0], markersize=2, alpha=0.4, markeredgewidth=0)
    axes.axline((behind.mean(), behind.mean()), slope=1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("return-to-go of the behaviour: no rollouts\n(discounted, scaled rewards)")
    number_ticks(axes.xaxis)
    number_ticks(axes.yaxis)
    axes.set_ylabel(diagnosis.worded(f"{name} of the same held-out transition"))
    low, high = axes.get_ylim()
    axes.set_ylim(top=high + 0.25 * (high - low))
    write_inside(axes, f"mean {name} {number(float(values.mean()))}\nmean return-to-go {number(float(behind.mean()))}")


def draw_terms(axes: Axes, diagnosis: Diagnosis) -> None:
    """Both terms of the policy loss, each on an axis of its own."""
    other: Any = axes.twinx()
    other.spines["right"].set_visible(True)
    other.grid(False)
    for side, tag, color in zip((axes, other), diagnosis.terms(), COLORS, strict=False):
        plot(side, diagnosis.curves[tag], color, WORDS[tag])
        side.set_ylabel(WORDS[tag], color=color)
        side.tick_params(axis="y", colors=color)
    axes.set_xlabel("updates")
    number_ticks(axes.xaxis, integer=True)


def asked_for(name: str) -> Panel:
    """A panel of whatever has this name: a histogram of a quantity, a line of what was logged over time."""

    def draw(axes: Axes, diagnosis: Diagnosis) -> None:
        if name in diagnosis.quantities:
            draw_quantity(axes, diagnosis, name)
        else:
            plot(axes, diagnosis.curves[name], COLORS[0], "mean over the seeds" if len(diagnosis.seeds) > 1 else name)
            over_updates(axes, name)

    def absent(diagnosis: Diagnosis) -> str:
        found = diagnosis.quantities.get(name)
        return "" if found is None or np.isfinite(found).any() else "no value of it is finite"

    return Panel(name, absent, draw)


def draw_quantity(axes: Axes, diagnosis: Diagnosis, name: str) -> None:
    """Histogram of a quantity, all seeds together."""
    values = diagnosis.quantities[name]
    kept = values[np.isfinite(values)]
    low, high = np.quantile(kept, (0.001, 0.999))
    share = np.full(kept.size, 100.0 / values.size)
    axes.hist(kept.clip(low, high), 50, weights=share, color=COLORS[0], alpha=0.8)  # pyright: ignore[reportArgumentType]
    axes.set_xlabel("outer 0.1 % in the end bins")
    number_ticks(axes.xaxis)
    axes.set_ylabel("share of transitions (%)")
    axes.set_ylim(top=1.4 * axes.get_ylim()[1])
    write_inside(axes, middle(values))


def over_updates(axes: Axes, words: str, note: str = "") -> None:
    """Labels of a panel over time."""
    axes.set_xlabel(f"updates ({note})" if note else "updates")
    number_ticks(axes.xaxis, integer=True)
    axes.set_ylabel(words)
    axes.legend(loc="best")


def number_ticks(axis: Axis, integer: bool = False) -> None:
    """Few ticks, in thousands (k) or millions (M) where they are large: labels of many digits cover one another."""

    def words(value: float, _: int) -> str:
        largest = float(np.abs(axis.get_view_interval()).max())
        size, unit = (1e6, "M") if largest >= 1e7 else (1e3, "k") if largest >= 1e4 else (1.0, "")
        return f"{value / size:.6g}{unit}".replace("-", "\N{MINUS SIGN}") if value else "0"

    axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=integer, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(words))


PANELS = (
    Panel(
        "Ratio of policy and behaviour model",
        no_quantity(WEIGHTS[1]),
        draw_weights(WEIGHTS[1], "$\\rho = \\pi/\\pi_D$"),
    ),
    Panel("Weights w", no_quantity(WEIGHTS[0]), draw_weights(WEIGHTS[0], "w")),
    Panel(
        "Shares at a clip or a bound", no_curve((AT_BOUND, *CLIPPED), not_recorded("`weight/clipped_share`")), draw_clipped
    ),
    Panel("Effective sample size", no_curve(EFFECTIVE, not_recorded(f"`{EFFECTIVE[0]}`")), draw_effective),
    Panel("Fit of held-out actions over time", no_fit_over_time, draw_fit_over_time),
    Panel("Fit of held-out actions by episode", no_fit, draw_fit_by_episode),
    Panel("Truncated series", no_series, draw_series),
    Panel("Pathwise KL", no_curve((KL,), not_recorded(f"`{KL}`")), draw_kl, of_diffusion),
    Panel("Value gap", no_value_gap, draw_value_gap),
    Panel(
        "Value and return-to-go",
        lambda diagnosis: "" if judged_by_data(diagnosis) else "rollouts show more",
        draw_value,
        judged_by_data,
    ),
    Panel("Terms of the policy loss", no_terms, draw_terms),
)
