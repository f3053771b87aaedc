"""Evaluates runs by their mean and by their sampled actions: a table of scores, and a row for each run, mode and seed.

python benchmarks/grid.py modes                     # trains the runs
python benchmarks/modes.py runs/grid/modes/*/* --output docs/results/modes.csv
"""

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from brpo import saved_runs
from brpo.evaluation.scores import spread

MODES = ("mean", "sampled")
COLUMNS = ["algo", "dataset", "update", "mode", "episodes", "seed", "return", "score"]


def rows(run: Path, mode: str, episodes: int) -> list[dict[str, Any]]:
    """A row for each seed of a run."""
    found = saved_runs.evaluate_checkpoint(saved_runs.checkpoint_of(run, "last"), episodes=episodes, mode=mode)
    shared = {key: found[key] for key in ("algo", "dataset", "update", "mode")}
    return [
        {**shared, "episodes": episodes, "seed": row.seed, "return": round(row.return_mean, 2), "score": round(row.score, 2)}
        for row in found["rows"]
    ]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line for each data set and method, mean ± standard deviation over the seeds."""
    lines = ["| data set | method | mean action | sampled action |", "|---|---|---|---|"]
    for dataset, algo in dict.fromkeys((row["dataset"], row["algo"]) for row in results):
        scores = [
            spread([row["score"] for row in results if (row["dataset"], row["algo"], row["mode"]) == (dataset, algo, mode)])
            for mode in MODES
        ]
        lines.append(f"| `{dataset}` | {algo} | {' | '.join(scores)} |")
    return "\n".join(lines)


def main(runs: list[Path], output: Annotated[Path | None, typer.Option()] = None, episodes: int = 50) -> None:
    """Evaluate the last checkpoint of each run in both modes, from the same starts."""
    results = [row for run in runs for mode in MODES for row in rows(run, mode, episodes)]
    print(table(results))
    if output is not None:
        with output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(results)


if __name__ == "__main__":
    typer.run(main)
