"""What the critic of a run thinks of a mixture's agents: those whose episodes reached the time limit, and the others.

    MINARI_DATASETS_PATH=FOLDER python benchmarks/agents.py runs/grid/hopper_medium_expert/sfac/brpo-hopper-medium-expert-v0

On Hopper `medium-expert` the first are the expert's episodes and the others the medium agent's (docs/sfac.md). For each seed
the score that it ends with, and means over the rows of each kind, in units of scaled rewards: V in an episode's first
steps, where both kinds are in much the same states; Q - V, the weight w and the log-likelihood of the actions everywhere.
For runs of methods that know all of these: Sf-AC, SQL, EQL, XQL, IQL and AWAC.
"""

from pathlib import Path

import numpy as np
import torch
import typer

from brpo import saved_runs, training
from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.datamodule import OfflineDataModule
from brpo.datasets.minari_io import TRUNCATED
from brpo.exits import run_command
from brpo.reports import run_folders
from brpo.runs import RunFolder

FIRST = 100  # steps of an episode in which V is looked at
CHUNK = 10_000  # rows at a time
COLUMNS = {"V, first steps": "value/v", "Q - V": "advantage", "w": "weight/w", "log-likelihood": "actor/log_prob"}


def seen(algorithm: OfflineAlgorithm, datamodule: OfflineDataModule) -> dict[str, np.ndarray]:
    """What the algorithm says of every row, (seeds, rows); Q - V is `advantage`."""
    transitions, seeds = datamodule.train_transitions, len(algorithm.seeds)
    parts = []
    with torch.no_grad():
        for indices in torch.arange(len(transitions)).split(CHUNK):
            parts.append(algorithm.diagnose(transitions.gather(indices.expand(seeds, -1))))
    found = {name: torch.cat([part[name] for part in parts], 1).numpy() for name in parts[0]}
    if lacking := {"q/target", "value/v", "weight/w", "actor/log_prob"} - set(found):
        raise typer.BadParameter(f"{type(algorithm).__name__} knows no {', '.join(sorted(lacking))}")
    return {**found, "advantage": found["q/target"] - found["value/v"]}


def table(algorithm: OfflineAlgorithm, datamodule: OfflineDataModule, scores: list[float | None]) -> str:
    """A row for each seed, a cell for both kinds: at the time limit, and before."""
    flat, found = datamodule.flat, seen(algorithm, datamodule)
    whole = np.repeat(flat.ended == TRUNCATED, flat.lengths)
    first = np.concatenate([np.arange(length) < FIRST for length in flat.lengths])
    lines = [f"| seed | score | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for place, (seed, score) in enumerate(zip(algorithm.seeds.tolist(), scores, strict=True)):
        cells = [str(seed), "-" if score is None else f"{score:.1f}"]
        for column, name in COLUMNS.items():
            rows = first if column.startswith("V") else np.ones_like(first)
            groups = [found[name][place][rows & kind] for kind in (whole, ~whole)]
            cells.append("; ".join(f"{group.mean():.2f}" if len(group) else "-" for group in groups))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(runs: list[Path]) -> None:
    """Print a table for each run."""
    for run in runs:
        algorithm, config = saved_runs.load_algorithm(run)
        datamodule = training.make_datamodule({**config, "data": {**config["data"], "heldout": 0.0}})
        final = RunFolder(run).read_result()["final"]
        print(f"{run_folders.label(run)}: episodes at the time limit; those that ended before\n")
        print(table(algorithm, datamodule, final.get("score") or [None] * len(algorithm.seeds)), end="\n\n", flush=True)


if __name__ == "__main__":
    run_command(main)
