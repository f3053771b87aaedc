"""What runs logged besides their scores, at some of their updates: a row for each run, tag and update.

    python benchmarks/scalars.py runs/grid/hopper_replay/*/* --output docs/results/hopper_replay/scalars.csv

A value is that of the chunk (or the evaluation) which ends at the update, the mean over the seeds; `run` is the name that a
run has in the stored report of its grid. Tags that a run has not are left out.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from brpo.errors import UserError
from brpo.exits import run_command
from brpo.files import write_csv
from brpo.reports import run_folders

TAGS = ("weight/effective_share", "ratio/clipped_share", "q/mean", "actor/symmetry", "heldout/behavior/log_prob/mean")
COLUMNS = ["run", "tag", "update", "value"]


def rows(run: Path, tags: list[str], every: int) -> list[dict[str, Any]]:
    """A row for each tag that a run has and each multiple of `every` that it has a value at.

    Raises:
        UserError: there are no events.
    """
    if not list(run.glob("events.*")):
        raise UserError(f"{run} has no events of TensorBoard. Give run folders, runs/<algo>/<data set>/<time>-<id>.")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})  # 0 keeps all of them
    events.Reload()
    known, name = set(events.Tags()["scalars"]), run_folders.label(run)
    return [
        {"run": name, "tag": tag, "update": event.step, "value": f"{event.value:.4g}"}
        for tag in tags
        if tag in known
        for event in events.Scalars(tag)
        if event.step > 0 and event.step % every == 0
    ]


def main(
    runs: list[Path],
    tags: Annotated[list[str] | None, typer.Option("--tag", help="May be given several times.")] = None,
    every: Annotated[int, typer.Option(help="Updates from one row to the next.", min=1)] = 10000,
    output: Annotated[Path | None, typer.Option(help="A CSV file; without it the rows are printed.")] = None,
) -> None:
    """Read the events of each run and write the rows."""
    found = [row for run in runs for row in rows(run, tags or list(TAGS), every)]
    if output is None:
        for row in found:
            print(*row.values())
        return
    write_csv(output, COLUMNS, ([row[name] for name in COLUMNS] for row in found))


if __name__ == "__main__":
    run_command(main)
