"""The final results of a comparison as a LaTeX table with booktabs: data sets in rows, methods in columns."""

from collections.abc import Iterator, Sequence

from brpo.evaluation.scores import spread
from brpo.reports import aggregates
from brpo.reports.comparison import Comparison, Method, Task
from brpo.reports.seed_result import METRICS, plural
from brpo.reports.statistics import Interval

_ESCAPED = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip
_HOLE = "--"


def latex(comparisons: Sequence[Comparison]) -> str:
    r"""A table for each protocol and metric, to `\input` where `\usepackage{booktabs}` stands."""
    tables = (
        "\n".join(_table(comparison, metric))
        for comparison in comparisons
        for metric in METRICS
        if comparison.columns(metric)
    )
    return "% Made by brpo report --paper. Needs \\usepackage{booktabs}.\n\n" + "\n\n".join(tables) + "\n"


def escape(text: str) -> str:
    """Text in which LaTeX sees no commands."""
    return "".join(_ESCAPED.get(character, character) for character in text)


def _table(comparison: Comparison, metric: str) -> Iterator[str]:
    tasks = comparison.columns(metric)
    methods = comparison.rows(tasks)
    counts = {
        len(comparison.cells[method, task]) for task in tasks for method in methods if (method, task) in comparison.cells
    }
    for task in tasks:
        yield f"% {task.dataset}: digest {task.digest}"
    yield r"\begin{table}"
    yield r"  \centering"
    yield rf"  \caption{{{_caption(comparison, metric, counts)}}}"
    yield rf"  \begin{{tabular}}{{l{'r' * len(methods)}}}"
    yield r"    \toprule"
    yield _row("data set", [escape(method.name) for method in methods])
    yield r"    \midrule"
    for task in tasks:
        yield _row(rf"\texttt{{{escape(task.dataset)}}}", _results(comparison, methods, task, several=len(counts) > 1))
    if metric == "score" and len(tasks) > 1:
        yield r"    \midrule"
        found = [aggregates.aggregate(comparison, method, tasks, "final") for method in methods]
        for name, numbers in (
            ("mean", [whole and (whole.mean, whole.mean_interval) for whole in found]),
            ("IQM", [whole and (whole.iqm, whole.iqm_interval) for whole in found]),
        ):
            yield _row(name, [_numbers(f"{number[0]:.1f}") if number else _HOLE for number in numbers])
            yield _row("", [_interval(number[1]) if number else "" for number in numbers])
            yield r"    \addlinespace"
    yield r"    \bottomrule"
    yield r"  \end{tabular}"
    yield r"\end{table}"


def _row(name: str, entries: Sequence[str]) -> str:
    return f"    {' & '.join([name, *entries])} \\\\"


def _results(comparison: Comparison, methods: Sequence[Method], task: Task, several: bool) -> list[str]:
    """Mean ± standard deviation; bold where the mean, as it is printed, is the row's best."""
    metric = METRICS[task.metric]
    values = [list(comparison.values(method, task, "final")) for method in methods]
    printed = [float(spread(own, metric.digits).partition(" ")[0]) if own else None for own in values]
    best = max(metric.sign * mean for mean in printed if mean is not None)

    def cell(own: list[float], mean: float | None) -> str:
        if mean is None:
            return _HOLE
        text = _numbers(spread(own, metric.digits)) + (rf"\,({len(own)})" if several else "")
        return rf"\textbf{{{text}}}" if metric.sign * mean == best and len(methods) > 1 else text

    return [cell(own, mean) for own, mean in zip(values, printed, strict=True)]


def _interval(interval: Interval) -> str:
    return "" if interval is None else _numbers(f"[{interval[0]:.1f}, {interval[1]:.1f}]")


def _numbers(text: str) -> str:
    return escape(text).replace("-", "$-$")  # else a hyphen is printed


def _caption(comparison: Comparison, metric: str, counts: set[int]) -> str:
    protocol, words = comparison.protocol, METRICS[metric].words
    seeds = "the number of seeds in brackets" if len(counts) > 1 else plural(max(counts), "seed")
    parts = [
        f"{words[0].upper()}{words[1:]} of the policy after {protocol.updates} updates "
        f"({protocol.mode} action, {plural(protocol.episodes, 'episode')}); mean ± population standard deviation, {seeds}."
    ]
    if len(comparison.rows(comparison.columns(metric))) > 1:
        parts.append(f"Bold: the {'largest' if METRICS[metric].larger_is_better else 'smallest'} mean of a row.")
    if metric == "score" and len(comparison.columns(metric)) > 1:
        parts.append(
            "Below: over the data sets, each of which counts the same, the mean and the interquartile mean over all runs, "
            "with 95 % stratified bootstrap intervals."
        )
    return escape(" ".join(parts))
