"""Holds `brpo estimate` to what policies earn in their environment: a table, and a row for each run and seed.

    python benchmarks/estimates.py runs/grid/comparison/*/brpo-walker2d-medium-v0 --output docs/results/estimates.csv

Of each run Q is fitted to the data, and its policies are rolled out. Runs that the file has already, fitted alike, are left
out; the table is of all rows in it. Both sides are discounted returns in the rewards of the data, at the run's discount: the
estimate from the starts of the data's episodes, what is achieved from new starts of the environment.
"""

import csv
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from scipy.stats import spearmanr

from brpo import estimates, saved_runs
from brpo.evaluation.evaluate import DISCOUNT
from brpo.evaluation.scores import spread
from brpo.exits import run_command
from brpo.files import write_records
from brpo.reports import run_folders

EMPTY = (None, "")  # a number that there is not, here and in a file


def rows(run: Path, updates: int, episodes: int) -> list[dict[str, Any]]:
    """A row for each seed of a run, of its mean action."""
    path = saved_runs.checkpoint_of(run, "last")
    discount = saved_runs.load_algorithm(path)[1]["algo"].get("discount", DISCOUNT)  # that of the rollouts
    fitted = estimates.estimate(path, updates=updates, discount=discount, mode="mean")
    rolled = saved_runs.evaluate_checkpoint(path, episodes=episodes, mode="mean")["rows"]
    return [
        {
            "run": run_folders.label(run),
            **row,
            **{name: rounded(row[name]) for name in ("value", "missing", "data_return", "data_best")},
            "achieved": round(achieved.return_discounted, 2),
            "episodes": episodes,
            "score": rounded(achieved.score),
        }
        for row, achieved in zip(fitted.rows()[-len(rolled) :], rolled, strict=True)
    ]


def rounded(value: float | None) -> float | None:
    """To two digits, where there is one."""
    return None if value is None else round(value, 2)


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: for each data set a line for each run, mean ± standard deviation over its seeds, and how well they agree."""
    lines = []
    for dataset in dict.fromkeys(row["dataset"] for row in found):
        own = [row for row in found if row["dataset"] == dataset]
        best = _numbers(own[:1], "data_best")
        earned = "".join([f"{_numbers(own, 'data_return')[0]:.1f}", *(f", at most {value:.1f}" for value in best)])
        lines += [f"`{dataset}` (its data: {earned})", ""]
        shown = ["value", "achieved"] + ["score"] * all(row["score"] not in EMPTY for row in own)
        titles = {"value": "estimated", "achieved": "achieved", "score": "normalized score"}
        lines += [f"| method | {' | '.join(titles[name] for name in shown)} |", f"|---|{'---|' * len(shown)}"]
        means = []
        for run in sorted(dict.fromkeys(row["run"] for row in own), key=lambda run: -_mean(own, run, "achieved")):
            seeds = [row for row in own if row["run"] == run]
            lines.append(f"| {' | '.join([seeds[0]['algo'], *(spread(_numbers(seeds, name)) for name in shown)])} |")
            means.append(tuple(_mean(own, run, name) for name in shown))
        policies = [tuple(float(row[name]) for name in ("value", "achieved")) for row in own]
        lines += ["", agreement(means, policies), ""]
    return "\n".join(lines)


def agreement(means: list[tuple[float, ...]], policies: list[tuple[float, ...]]) -> str:
    """Of the means of several runs, (estimated, achieved, and score if any), and of each policy, (estimated, achieved)."""
    if len(means) < 3:
        return ""
    value, achieved, *scores = zip(*means, strict=True)
    error = fmean(abs(v - a) / abs(a) for v, a in zip(value, achieved, strict=True))
    chosen = max(range(len(means)), key=lambda k: value[k])
    ranks = [f"with the score {_rank(value, score)}; of what is achieved with the score {_rank(achieved, score)}"
             for score in scores]  # fmt: skip
    reached = [f"scores {score[chosen]:.1f} of at most {max(score):.1f}" for score in scores]
    first = (
        f"Rank correlation of the estimate with what is achieved {_rank(value, achieved)} (of single policies "
        f"{_rank(*zip(*policies, strict=True))})"
    )
    largest = f"The run with the largest estimate achieves {achieved[chosen]:.1f} of at most {max(achieved):.1f}"
    return f"{', '.join([first, *ranks])}. Mean error {100 * error:.0f} %. {', and '.join([largest, *reached])}."


def _rank(left: tuple[float, ...], right: tuple[float, ...]) -> str:
    found: Any = spearmanr(left, right)
    return f"{found.statistic:.2f}"


def _mean(found: list[dict[str, Any]], run: str, name: str) -> float:
    return fmean(_numbers([row for row in found if row["run"] == run], name))


def _numbers(found: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in found if row[name] not in EMPTY]


def main(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    output: Annotated[Path, typer.Option(help="The rows, as CSV: read if it is there, and added to.")],
    updates: Annotated[int, typer.Option(help="Of each fit.")] = 20_000,
    episodes: Annotated[int, typer.Option(help="Of each seed.")] = 10,
) -> None:
    """Estimate, roll out, and print the table."""
    found: list[dict[str, Any]] = []
    if output.exists():
        with output.open(newline="") as file:
            found = list(csv.DictReader(file))
    wanted = str(updates), str(episodes)
    there = {(row["run"], row["updates"], row["episodes"]) for row in found}
    for run in runs:
        if (run_folders.label(run), *wanted) not in there:
            found += rows(run, updates, episodes)
            write_records(output, found)
            print(f"{run}: done", flush=True)
    print(table([row for row in found if (str(row["updates"]), str(row["episodes"])) == wanted]))


if __name__ == "__main__":
    run_command(main)
