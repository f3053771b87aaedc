"""Comparisons as Markdown and as CSV. A hole in the grid is a dash."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from brpo.evaluation.scores import spread
from brpo.files import write_csv
from brpo.reports import aggregates
from brpo.reports.aggregates import Aggregate
from brpo.reports.comparison import Comparison, Method, Task, Tasks
from brpo.reports.seed_result import METRICS, RULES, SeedResult, plural
from brpo.reports.statistics import Interval

_AGGREGATES = ["method", "runs", "mean [95 %]", "IQM [95 %]", "CVaR 10 %", "worst data set", "worst seed"]
HOLE = "–"  # noqa: RUF001


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[str] = ()) -> str:
    """A Markdown table; what is right of the first column is numbers, flush right, but for columns of `words`."""
    lines = [header, ["---", *("---" if name in words else "---:" for name in header[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# --- Markdown ---------------------------------------------------------------------------------------------------------


def results(comparison: Comparison, metric: str, rule: str) -> str:
    """Mean ± standard deviation over seeds, a row for each method and a column for each data set."""
    tasks = comparison.columns(metric)
    counts = {len(found) for (_, task), found in comparison.cells.items() if task in tasks}

    def cell(method: Method, task: Task) -> str:
        values = comparison.values(method, task, rule)
        count = f" ({len(values)})" if len(counts) > 1 else ""
        return f"{spread(list(values), METRICS[metric].digits)}{count}" if len(values) else HOLE

    rows = ([method.name, *(cell(method, task) for task in tasks)] for method in comparison.rows(tasks))
    seeds = "in brackets the number of seeds" if len(counts) > 1 else plural(max(counts), "seed")
    text = f"**{rule}** {METRICS[metric].words} ({RULES[rule]}); mean ± standard deviation over seeds, {seeds}.\n\n"
    return text + markdown(["method", *map(_column, tasks)], rows)


def over_tasks(comparison: Comparison, tasks: Tasks) -> str:
    """Final scores over some data sets."""
    found = aggregates.over_tasks(comparison, tasks)
    rows = [_aggregate_row(comparison, method, tasks, found[method, "final"]) for method in comparison.rows(tasks)]
    if tasks != comparison.columns("score"):
        names = ", ".join(f"`{task.dataset}`" for task in tasks)
        common = f"**The same, and what follows, over the {len(tasks)} data sets that every method has**: {names}.\n\n"
        return common + markdown(_AGGREGATES, rows)
    return (
        f"**final** normalized score over {plural(len(tasks), 'data set')} and their seeds (runs). Mean: over data sets of "
        "the mean over seeds. IQM: mean without the lower and the upper quarter of all runs. CVaR: mean of the worst tenth "
        "of all runs, at least of one. In brackets 95 % intervals, runs drawn again within each data set (stratified "
        "percentile bootstrap).\n\n" + markdown(_AGGREGATES, rows)
    )


def _aggregate_row(comparison: Comparison, method: Method, tasks: Sequence[Task], found: Aggregate | None) -> list[str]:
    if found is None:
        there = sum((method, task) in comparison.cells for task in tasks)
        return [method.name, f"{there} of {plural(len(tasks), 'data set')}", *[HOLE] * 5]
    worst_task, mean = found.worst_task
    task, seed, value = found.worst_seed
    return [
        method.name,
        str(found.runs),
        _with_interval(found.mean, found.mean_interval),
        _with_interval(found.iqm, found.iqm_interval),
        f"{found.cvar:.1f}",
        f"{mean:.1f} ({worst_task.dataset})",
        f"{value:.1f} ({task.dataset}, seed {seed})",
    ]


def robustness(comparison: Comparison) -> str:
    """What a method keeps of the best one's score where it does worst; nothing where there is one method."""
    found, over_curves = (aggregates.worst_shares(comparison, rule) for rule in ("final", "auc"))
    if len(found) < 2:
        return ""
    tasks = comparison.columns("score")
    rows = []
    for method, (share, task) in sorted(found.items(), key=lambda item: -item[1][0]):
        there = sum((method, column) in comparison.cells for column in tasks)
        curve = over_curves.get(method)  # no method may be above 0 over the whole of a curve
        of_curve = [_percent(curve[0]), curve[1].dataset] if curve else [HOLE, HOLE]
        rows.append([method.name, _percent(share), task.dataset, *of_curve, f"{there} of {len(tasks)}"])
    header = ["method", "final", "data set", "auc", "data set", "of data sets"]
    return (
        "Where a method does worst: its mean score over that of the best method on the same data set, the smallest of these "
        "over the data sets that it has; by the final policy, and by the mean over all evaluations (auc).\n\n"
        + markdown(header, rows, ["data set"])
    )


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"  # a whole number has no -0


def by_rule(comparison: Comparison, tasks: Tasks) -> str:
    """IQM over some data sets by each rule."""
    found = aggregates.over_tasks(comparison, tasks)

    def cell(method: Method, rule: str) -> str:
        value = found[method, rule]
        return HOLE if value is None else _with_interval(value.iqm, value.iqm_interval)

    rows = ([method.name, *(cell(method, rule) for rule in RULES)] for method in comparison.rows(tasks))
    return "IQM [95 %] of the normalized score by the rule that picks a number from a run.\n\n" + markdown(
        ["method", *RULES], rows
    )


def improvement(comparison: Comparison, tasks: Tasks) -> str:
    """Each method against each other; nothing where fewer than two have no holes."""
    found = aggregates.improvements(comparison, tasks)
    methods = [method for method in comparison.methods if any(method in pair for pair in found)]
    if not methods:
        return ""
    rows = (
        [ours.name, *("" if ours == theirs else _with_interval(*found[ours, theirs], digits=2) for theirs in methods)]
        for ours in methods
    )
    return (
        "Probability that a run of the row is better than a run of the column (final score; draws count half; mean over "
        "data sets) [95 %].\n\n" + markdown(["", *(method.name for method in methods)], rows)
    )


def episodes(comparison: Comparison) -> str:
    """Mean return of the worst tenth of the episodes; nothing where the files do not say it."""

    def cell(method: Method, task: Task) -> str:
        found = [result.cvar for result in comparison.cells.get((method, task), []) if result.cvar is not None]
        return spread(found) or HOLE

    rows = [[method.name, *(cell(method, task) for task in comparison.tasks)] for method in comparison.methods]
    if all(entry == HOLE for row in rows for entry in row[1:]):
        return ""
    return (
        "CVaR 10 % of episodes: mean **return** of the worst tenth of the episodes of the final evaluation, at least of "
        "one; mean ± standard deviation over seeds.\n\n" + markdown(["method", *map(_column, comparison.tasks)], rows)
    )


def cost(comparison: Comparison) -> str:
    """Wall time and speed of the runs."""
    rows = (
        [name, runs, together, *(HOLE if mean is None else f"{mean:.0f}" for mean in means), engine]
        for name, runs, together, *means, engine in _costs(comparison)
    )
    header = ["method", "runs", "seeds in a run", "wall time of a run (s)", "updates/s", "engine"]
    return "Mean over runs; wall time with evaluations, of all parts of a resumed run.\n\n" + markdown(
        header, rows, ["engine"]
    )


def _costs(comparison: Comparison) -> Iterator[list[Any]]:
    """Method, runs, seeds in a run, wall seconds and updates per second (means over the runs that have them), engine."""
    groups: dict[tuple[str, int, str], dict[str, SeedResult]] = {}
    for (method, _), found in comparison.cells.items():
        for result in found:
            groups.setdefault((method.name, result.together, result.engine), {})[result.run] = result
    for (name, together, engine), runs in groups.items():
        means = (_mean([getattr(run, key) for run in runs.values()]) for key in ("wall_seconds", "updates_per_second"))
        yield [name, str(len(runs)), str(together), *means, engine]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _column(task: Task) -> str:
    return f"`{task.dataset}`<br>{task.digest[:12]}"


def _with_interval(value: float, interval: Interval, digits: int = 1) -> str:
    return f"{value:.{digits}f}" + ("" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]")


# --- CSV --------------------------------------------------------------------------------------------------------------

_PROTOCOL = ("mode", "episodes", "updates", "every")
_NUMBERS = ("runs", "mean", "mean_low", "mean_high", "std", "iqm", "iqm_low", "iqm_high", "cvar")


def write_tables(folder: Path, comparisons: Sequence[Comparison]) -> None:
    """Write `scores.csv`, `aggregates.csv`, `improvement.csv` and `cost.csv` with all digits.

    Raises:
        OSError: they cannot be written.
    """
    scores = ("method", "dataset", "digest", "metric", *_PROTOCOL, "rule", *_NUMBERS, "worst_seed", "worst_seed_value")
    write_csv(folder / "scores.csv", (*scores, "worst_episode_return", "episodes_cvar_return"), _score_rows(comparisons))
    worst = (
        "worst_dataset", "worst_dataset_mean", "worst_seed_dataset", "worst_seed", "worst_seed_value",
        "worst_share", "worst_share_dataset",
    )  # fmt: skip
    write_csv(
        folder / "aggregates.csv",
        ("method", *_PROTOCOL, "scope", "rule", "datasets", *_NUMBERS, *worst),
        _aggregate_rows(comparisons),
    )
    rows = (
        [ours.name, theirs.name, *_protocol(comparison), scope, value, *(interval or ("", ""))]
        for comparison in comparisons
        for scope, tasks in comparison.scopes().items()
        for (ours, theirs), (value, interval) in aggregates.improvements(comparison, tasks).items()
    )
    header = ("method", "over", *_PROTOCOL, "scope", "probability", "low", "high")
    write_csv(folder / "improvement.csv", header, rows)
    costs = ([name, *_protocol(comparison), *rest] for comparison in comparisons for name, *rest in _costs(comparison))
    header = ("method", *_PROTOCOL, "runs", "seeds_in_a_run", "wall_seconds", "updates_per_second", "engine")
    write_csv(folder / "cost.csv", header, costs)


def _protocol(comparison: Comparison) -> list[Any]:
    return [getattr(comparison.protocol, name) for name in _PROTOCOL]


def _numbers(found: Aggregate) -> list[Any]:
    none = ("", "")
    return [found.runs, found.mean, *(found.mean_interval or none), found.std, found.iqm, *(found.iqm_interval or none),
            found.cvar]  # fmt: skip


def _score_rows(comparisons: Sequence[Comparison]) -> Iterator[list[Any]]:
    for comparison in comparisons:
        for (method, task), seeds in comparison.cells.items():
            worst = [result.worst_episode for result in seeds if result.worst_episode is not None]
            tail = [result.cvar for result in seeds if result.cvar is not None]
            for rule in RULES:
                found = aggregates.aggregate(comparison, method, [task], rule)
                assert found is not None, "a cell has seeds"
                yield [
                    method.name, task.dataset, task.digest, task.metric, *_protocol(comparison), rule, *_numbers(found),
                    *found.worst_seed[1:], min(worst, default=""), fmean(tail) if tail else "",
                ]  # fmt: skip


def _aggregate_rows(comparisons: Sequence[Comparison]) -> Iterator[list[Any]]:
    for comparison in comparisons:
        shares = {rule: aggregates.worst_shares(comparison, rule) for rule in RULES}
        for scope, tasks in comparison.scopes().items():
            for (method, rule), found in aggregates.over_tasks(comparison, tasks).items():
                share: list[Any] = ["", ""]
                if scope == "all" and method in shares[rule]:
                    value, at = shares[rule][method]
                    share = [value, at.dataset]
                named = [method.name, *_protocol(comparison), scope, rule]
                if found is None:
                    yield [*named, *[""] * (len(_NUMBERS) + 6), *share]
                else:
                    task, mean = found.worst_task
                    where, *worst = found.worst_seed
                    yield [*named, found.tasks, *_numbers(found), task.dataset, mean, where.dataset, *worst, *share]
