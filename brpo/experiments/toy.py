"""Pictures and a table of the toy tasks: what they are, and what the policies of several runs make of them.

python -m brpo.experiments.toy tasks                  # data and target of all tasks, as in docs/toy.md
python -m brpo.experiments.toy compare RUN RUN ...    # a row for each task, a column for each algorithm
python -m brpo.experiments.toy table RUN RUN ...      # what they reached, in numbers
"""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from brpo import config as configuration
from brpo import saved_runs
from brpo.datasets import toy
from brpo.errors import UserError
from brpo.evaluation import toy_pictures
from brpo.evaluation.toy import Target, draw
from brpo.exits import exit_code_of
from brpo.files import write_atomically
from brpo.runs import RunFolder

ETA = 0.06  # of the targets, arXiv:2502.04778
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def tasks(output: Path = Path("toy_tasks.png"), eta: float = ETA) -> None:
    """Draw data and re-weighted data of every task; a column for each, a row for each of the two."""
    rows = [toy_pictures.Row.of(Target.of(dataset_id, eta), {}) for dataset_id in toy.ids()]
    _write(output, rows, across=True)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or checkpoints inside them.")],
    output: Path = Path("toy_runs.png"),
) -> None:
    """Draw samples of the runs' policies beside data and target. Of a run with several seeds, the first one is shown."""
    _write(output, rows_of(runs))


@app.command()
def table(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    output: Path = Path("toy_runs.csv"),
) -> None:
    """Write a line for each run: the last evaluation, mean and standard deviation over its seeds, and CPU minutes."""
    lines = [numbers_of(run) for run in runs]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomically(output, text.getvalue().encode())
    print(output)


def numbers_of(run: Path) -> dict[str, Any]:
    """What a finished run on a toy task reached at its end; empty where it has no such number.

    Raises:
        UserError: the run has not ended, or is not one on a toy task.
    """
    folder = RunFolder(run)
    try:
        result = json.loads(folder.result.read_text())
        with folder.metrics.open() as file:
            rows = [row for row in csv.DictReader(file) if int(row["update"]) == result["updates"]]
    except OSError as error:
        raise UserError(f"{run} is not the folder of a finished run: {error.strerror}: {error.filename}.") from error
    if not toy.is_toy(result["dataset"]["id"]) or not rows:
        raise UserError(f"{run} has no evaluation on a toy task at its end. Give runs on {', '.join(toy.ids())}.")
    line = {"task": result["dataset"]["id"], "algorithm": result["algo"], "seeds": len(rows), "updates": result["updates"]}
    line["pretrain_updates"] = result["config"]["algo"].get("pretrain_updates", 0)
    for name in ("sliced_wasserstein", "energy_mean", "mode_error", "start_value"):
        values = [float(row[name]) for row in rows if row.get(name)]
        line[name] = f"{np.mean(values):.4f}" if values else ""
        line[f"{name}_std"] = f"{np.std(values):.4f}" if values else ""
    for name in ("noise_floor", "energy_target", "start_exact"):
        line[name] = f"{float(rows[0][name]):.4f}" if rows[0].get(name) else ""
    return line | {"cpu_minutes": f"{result['cpu_seconds'] / 60:.1f}"}


def rows_of(runs: list[Path]) -> list[toy_pictures.Row]:
    """A row for each task and temperature of these runs, a panel for each run.

    Raises:
        UserError: a run is not one on a toy task, or cannot be read.
    """
    rows: dict[tuple[str, float], toy_pictures.Row] = {}
    for run in runs:
        algorithm, config = saved_runs.load_algorithm(saved_runs.checkpoint_of(run, "last"))
        dataset_id, eta = algorithm.spec.dataset_id, config["data"].get("eta", ETA)
        if not toy.is_toy(dataset_id):
            raise UserError(
                f"{run} was trained on {dataset_id}; only runs on toy tasks can be drawn: {', '.join(toy.ids())}."
            )
        key = dataset_id, eta
        if key not in rows:
            rows[key] = toy_pictures.Row.of(Target.of(dataset_id, eta), {})
        seeds = len(configuration.seed_list(config["seeds"]))
        title = _unused(configuration.algorithm_name(config), rows[key])
        rows[key].panels[title] = draw(algorithm, seeds, toy_pictures.SHOWN)[0]
    return list(rows.values())


def _unused(name: str, row: toy_pictures.Row) -> str:
    """A title that the row does not have: `sfac`, `sfac 2`, ..."""
    titles = [name, *(f"{name} {number}" for number in range(2, len(row.panels) + 2))]
    return next(title for title in titles if title not in row.panels)


def _write(output: Path, rows: list[toy_pictures.Row], across: bool = False) -> None:
    write_atomically(output, toy_pictures.png(toy_pictures.draw_samples(rows, across=across)))
    print(output)


if __name__ == "__main__":
    sys.exit(exit_code_of(app))
