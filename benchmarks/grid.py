"""Runs a grid of trainings one after another and prints its table; finished cells are skipped, broken ones resumed.

    python benchmarks/grid.py comparison        # docs/results.md
    python benchmarks/grid.py search            # docs/sfac.md
    python benchmarks/grid.py comparison --table --target docs/results   # nothing is run; tables and CSV

The shared data sets are looked for in MINARI_DATASETS_PATH. `--only` picks cells by a regular expression, so that
several of these can run side by side; `--table` prints without training.
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import typer

ROOT = Path(__file__).resolve().parents[1]
MEDIUM = ("brpo/hopper/medium-v0", "brpo/walker2d/medium-v0", "brpo/halfcheetah/medium-v0")
BUNDLED = "brpo/halfcheetah/medium-replay-v0"

# The seed of the search is not among those of the comparison.
# Rows are named by what they set (T is the temperature); everything else is the default.
SEARCH = {
    "T 1/3, epsilon 1, coefficient 1": [
        "algo.temperature=0.3333",
        "algo.regularizer.epsilon=1",
        "algo.symmetry_coefficient=1",
    ],
    "T 1/3, coefficient 0": ["algo.temperature=0.3333", "algo.regularizer.epsilon=0.5", "algo.symmetry_coefficient=0"],
    "T 1, epsilon 0.5, coefficient 1": ["algo.temperature=1", "algo.regularizer.epsilon=0.5", "algo.symmetry_coefficient=1"],
    "T 1, epsilon 0.5, coefficient 0.3": [
        "algo.temperature=1",
        "algo.regularizer.epsilon=0.5",
        "algo.symmetry_coefficient=0.3",
    ],
    "T 3, epsilon 1, coefficient 1": ["algo.temperature=3", "algo.regularizer.epsilon=1", "algo.symmetry_coefficient=1"],
    "T 3, epsilon 0.5, coefficient 1": ["algo.temperature=3", "algo.regularizer.epsilon=0.5", "algo.symmetry_coefficient=1"],
    "T 3, epsilon 0.5, coefficient 0.3": [
        "algo.temperature=3",
        "algo.regularizer.epsilon=0.5",
        "algo.symmetry_coefficient=0.3",
    ],
    "T 3, JS order 3": [
        "algo.temperature=3",
        "algo.divergence=jensen_shannon",
        "algo.regularizer.loss_order=3",
        "algo.regularizer.epsilon=0.5",
        "algo.symmetry_coefficient=0.3",
    ],
    "T 3, softmax": [
        "algo.temperature=3",
        "algo.regularizer.epsilon=0.5",
        "algo.symmetry_coefficient=0.3",
        "algo.value_loss=softmax",
    ],
    "T 3, coefficient 0": ["algo.temperature=3", "algo.regularizer.epsilon=0.5", "algo.symmetry_coefficient=0"],
}


def cells(grid: str) -> dict[tuple[str, str], list[str]]:
    """(row, data set) -> overrides."""
    if grid == "comparison":
        options = ["seeds=3", "max_updates=30000", "eval.every=5000", "eval.episodes=10"]
        return {
            (algo, dataset): [f"algo={algo}", f"dataset={dataset}", *options]
            for dataset in (BUNDLED, *MEDIUM)
            for algo in ("bc", "iql", "sfac")
        }
    if grid == "search":
        options = ["algo=sfac", "seeds=[100]", "max_updates=20000", "eval.every=5000", "eval.episodes=10"]
        return {
            (row, dataset): [f"dataset={dataset}", *options, "engine.matmul_precision=medium", *overrides]
            for row, overrides in SEARCH.items()
            for dataset in (*MEDIUM, BUNDLED)
        }
    raise typer.BadParameter(f"{grid}: known grids are comparison and search")


def folder(grid: str, row: str, dataset: str) -> Path:
    """Run folder of a cell."""
    return ROOT / "runs" / "grid" / grid / re.sub(r"[^a-z0-9.]+", "-", row.lower()) / dataset.replace("/", "-")


def results(grid: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The finished cells."""
    paths = {cell: folder(grid, *cell) / "result.json" for cell in cells(grid)}
    return {cell: json.loads(path.read_text()) for cell, path in paths.items() if path.exists()}


def show(grid: str, rule: str) -> None:
    """Print the finished cells as a Markdown table: mean and standard deviation over seeds of a score."""
    found = results(grid)
    digests = {dataset: result["dataset"]["digest"][:12] for (_, dataset), result in found.items()}
    columns = list(dict.fromkeys(dataset for _, dataset in cells(grid) if dataset in digests))
    print(f"\n| {rule} score | " + " | ".join(f"`{dataset}`<br>{digests[dataset]}" for dataset in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for row in dict.fromkeys(row for row, _ in found):
        entries = []
        for dataset in columns:
            scores = found[row, dataset][rule]["score"] if (row, dataset) in found else []
            spread = f" ± {pstdev(scores):.1f}" if len(scores) > 1 else ""
            entries.append(f"{mean(scores):.1f}{spread}" if scores else "not run")
        print(f"| {row} | " + " | ".join(entries) + " |")


def publish(grid: str, target: Path) -> None:
    """Write what the tables are made from, a line per seed, as CSV."""
    target.mkdir(parents=True, exist_ok=True)
    with (target / f"{grid}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        keys = ("final", "best", "auc")
        writer.writerow(
            ["row", "dataset", "digest", "seed", *keys, "worst_episode_return", "cvar_return"]
            + ["best_update", "updates", "mode", "episodes", "torch", "git"]
        )
        for (row, dataset), result in results(grid).items():
            for k, seed in enumerate(result["seeds"]):
                scores = [round(result[key]["score"][k], 2) for key in keys]
                returns = [round(result[key][k], 1) for key in ("worst_episode", "cvar")]
                writer.writerow(
                    [row, dataset, result["dataset"]["digest"], seed, *scores, *returns, result["best"]["update"]]
                    + [result["updates"], *result["evaluation"].values(), result["versions"]["torch"], result["git"]]
                )
    with (target / f"{grid}_curves.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "dataset", "update", "seed", "score", "return_worst", "value_gap"])
        for row, dataset in results(grid):
            with (folder(grid, row, dataset) / "metrics.csv").open() as metrics:
                for line in csv.DictReader(metrics):
                    values = [line[key] and round(float(line[key]), 2) for key in ("score", "return_worst", "value_gap")]
                    writer.writerow([row, dataset, line["update"], line["seed"], *values])


def main(grid: str, only: str = "", table: bool = False, threads: int = 1, target: Path | None = None) -> None:
    """Run the cells of a grid that are not finished, print the tables, and write them to a folder if one is given."""
    for (row, dataset), overrides in cells(grid).items():
        if table or not re.search(only, f"{row} on {dataset}"):
            continue
        command = [sys.executable, "train.py", *overrides, f"run_dir={folder(grid, row, dataset)}", "resume=auto"]
        print(" ".join(command), flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if code := subprocess.run(command, cwd=ROOT, env=environment).returncode:
            if code == 130:
                raise typer.Exit(130)
            print(f"{row} on {dataset} ended with exit code {code}", flush=True)
    for rule in ("final", "auc"):
        show(grid, rule)
    if target is not None:
        publish(grid, target)


if __name__ == "__main__":
    typer.run(main)
