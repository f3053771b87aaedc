"""Pictures and a table of the toy tasks: what they are, and what the policies of several runs make of them.

python -m brpo.experiments.toy tasks                  # data and target of all tasks, as in docs/toy.md
python -m brpo.experiments.toy compare RUN RUN ...    # a row for each task, a column for each algorithm
python -m brpo.experiments.toy table RUN RUN ...      # what they reached, in numbers
"""

import csv
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from brpo import config as configuration
from brpo import saved_runs
from brpo.datasets import toy
from brpo.datasets.ids import TOY, is_toy
from brpo.errors import UserError
from brpo.evaluation import toy_pictures
from brpo.evaluation.toy import Target, draw
from brpo.exits import exit_code_of_command
from brpo.files import write_atomically, write_records
from brpo.options import require_positive
from brpo.runs import RunFolder, comparable

ETA = 0.06  # of the targets, arXiv:2502.04778
SUBJECT = "bdpo"  # the algorithm that the table is about
MISSING = "-"
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def tasks(
    out: Annotated[Path, typer.Option(help="The picture.", dir_okay=False)] = Path("runs/toy_tasks.png"),
    eta: Annotated[float, typer.Option(help="Temperature of the targets.")] = ETA,
) -> None:
    """Draw data and re-weighted data of every task; a column for each, a row for each of the two."""
    require_positive(eta=eta)
    rows = [toy_pictures.Row.of(Target.of(dataset_id, eta), {}) for dataset_id in toy.ids()]
    _write(out, rows, across=True)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or checkpoints inside them.")],
    out: Annotated[Path, typer.Option(help="The picture.", dir_okay=False)] = Path("runs/toy_runs.png"),
) -> None:
    """Draw samples of the runs' policies beside data and target. Of a run with several seeds, the first one is shown."""
    _write(out, rows_of(runs))


@app.command()
def table(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[Path, typer.Option(help="The CSV file.", dir_okay=False)] = Path("runs/toy_runs.csv"),
) -> None:
    """Write a line for each run: the last evaluation, mean and standard deviation over its seeds, and CPU minutes.

    Prints the comparison of BDPO with the other algorithms as Markdown, where there are runs of both (see `markdown`).
    """
    lines = [numbers_of(run) for run in runs]
    for key, why in (("eta", "data.eta makes other targets"), ("noise_floor", "eval.episodes makes other noise floors")):
        values = {(line["task"], line[key]) for line in lines}
        if unlike := sorted(
            f"{task} with {value}" for task, value in values if sum(task == other for other, _ in values) > 1
        ):
            raise UserError(f"{why}: {', '.join(unlike)}. Give runs of one value for each task.")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_records(out, lines)
    print(out)
    if any(line["algorithm"] == SUBJECT for line in lines):
        print(markdown(lines))


def markdown(lines: list[dict[str, Any]]) -> str:
    """A table with a row for each task: distances of all algorithms, and how far BDPO is from three limits (ours).

    (a) its distance over 1.5 times the noise floor + 0.05; (b) its distance over half of the smallest of the others;
    (c) the error of V_N at the start, relative to the exact one, of which 5 % are the limit. At most 1 is wanted of (a) and
    (b). `-` where a run is missing; of several runs of an algorithm on a task, the last one counts.

    Args:
        lines: of `numbers_of`.
    """
    by_task: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        by_task.setdefault(line["task"], {})[line["algorithm"]] = line
    others = sorted({line["algorithm"] for line in lines} - {SUBJECT})
    titles = ["task", "floor", SUBJECT, *others, "(a)", "(b)", "V_N: exact", "learned", "(c)"]
    titles += ["wrong mode shares", f"CPU minutes ({', '.join([SUBJECT, *others])})"]
    rows = [titles, ["---"] * len(titles)]
    rows += [[task.removeprefix(TOY), *_cells(found, others)] for task, found in by_task.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(found: dict[str, dict[str, Any]], others: list[str]) -> list[str]:
    """The cells of a task after its name; `found` has a line for each algorithm that ran."""
    ours, any_line = found.get(SUBJECT, {}), next(iter(found.values()))
    rivals = [float(found[name]["sliced_wasserstein"]) for name in others if name in found]
    distances = [_spread(found.get(name, {}), "sliced_wasserstein") for name in (SUBJECT, *others)]
    floor, distance = float(any_line["noise_floor"]), float(ours.get("sliced_wasserstein") or "nan")
    limits = [distance / (1.5 * floor + 0.05), distance / (0.5 * min(rivals)) if rivals else math.nan]
    exact, learned = float(any_line["start_exact"]), float(ours.get("start_value") or "nan")
    minutes = [str(found[name]["cpu_minutes"]) if name in found else MISSING for name in (SUBJECT, *others)]
    shares = [f"{value:.2f}" if math.isfinite(value) else MISSING for value in limits]
    error = f"{100 * (learned / exact - 1):+.1f} %" if math.isfinite(learned) else MISSING
    return [f"{floor:.4f}", *distances, *shares, f"{exact:.3f}", _spread(ours, "start_value", 3), error,
            _spread(ours, "mode_error", 3), ", ".join(minutes)]  # fmt: skip


def _spread(line: dict[str, Any], name: str, digits: int = 4) -> str:
    """Mean ± standard deviation over the seeds; the number alone where there is one seed."""
    if not line.get(name):
        return MISSING
    mean = f"{float(line[name]):.{digits}f}"
    return mean if int(line["seeds"]) == 1 else f"{mean} ± {float(line[f'{name}_std']):.{digits}f}"


def numbers_of(run: Path) -> dict[str, Any]:
    """What a finished run on a toy task reached at its end; empty where it has no such number.

    Raises:
        UserError: the run has not ended, or is not one on a toy task.
    """
    folder = RunFolder(run)
    result = folder.read_result()
    try:
        with folder.metrics.open() as file:
            rows = [row for row in comparable(csv.DictReader(file)) if int(row["update"]) == result["updates"]]
    except OSError as error:
        raise UserError(f"{run} is not the folder of a finished run: {error.strerror}: {error.filename}.") from error
    if not is_toy(result["dataset"]["id"]) or not rows:
        raise UserError(f"{run} has no evaluation on a toy task at its end. Give runs on {', '.join(toy.ids())}.")
    eta = result["config"].get("data", {}).get("eta", ETA)  # the only one that there was before it was an option
    line = {
        "task": result["dataset"]["id"],
        "eta": eta,
        "algorithm": result["algo"],
        "seeds": len(rows),
        "updates": result["updates"],
    }
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
        if not is_toy(dataset_id):
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


def _write(out: Path, rows: list[toy_pictures.Row], across: bool = False) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, toy_pictures.png(toy_pictures.draw_samples(rows, across=across)))
    print(out)


if __name__ == "__main__":
    sys.exit(exit_code_of_command(app, program="python -m brpo.experiments.toy"))
