"""The `brpo` command: train; data sets; evaluate, estimate, diagnose, export and report runs; collect sweeps."""

import csv
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brpo import cli_cache, cli_data, installation
from brpo.errors import Interrupted, UserError
from brpo.exits import exit_code_of_command

if TYPE_CHECKING:
    from brpo.estimates import Estimate
    from brpo.sweeps.collect import Row

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(cli_data.app, name="data")
console = Console()


def _version(wanted: bool) -> None:
    if wanted:
        from brpo import runs

        print(f"brpo {runs.versions().get('brpo', 'not installed')}, commit {runs.git_commit() or 'unknown'}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print version and commit.")
    ] = False,
) -> None:
    """What stands before a command."""


class Mode(StrEnum):
    """How a policy acts."""

    mean = "mean"
    sampled = "sampled"


class Rule(StrEnum):
    """Which checkpoint of a run."""

    last = "last"
    best = "best"


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint inside one.")]
CheckpointRule = Annotated[Rule, typer.Option(help="Which checkpoint of a run folder.")]
Sampler = Annotated[str | None, typer.Option(help="Of a diffusion policy, ddpm or ddim; the run's own unless given.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Of its reverse pass; few steps want ddim.")]


# Hydra reads what follows, --help too.
@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context) -> None:
    """Train, as `python train.py` does in a clone, from any folder: brpo train algo=sfac dataset=ID."""
    program = str(installation.ROOT / "train.py")
    os.execv(sys.executable, [sys.executable, program, *context.args])  # in this process, so signals reach the training


@app.command()
def evaluate(
    run: RunPath,
    episodes: Annotated[int | None, typer.Option(min=1, help="For each seed; the run's own number unless given.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="The mode or a sample; the run's own unless given.")] = None,
    checkpoint: CheckpointRule = Rule.last,
    first_seed: Annotated[
        int | None, typer.Option(min=0, help="Of the episodes' start states; those of training begin at 10000.")
    ] = None,
    sampler: Sampler = None,
    steps: Steps = None,
    candidates: Annotated[
        int | None, typer.Option(min=0, help="BDPO: actions that Q chooses among; 0: from no noise.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Also add a row for each seed to this file.", dir_okay=False)
    ] = None,
    video: Annotated[bool, typer.Option(help="Also film one episode of each seed into RUN/videos.")] = False,
    frames: Annotated[int, typer.Option(min=1, help="Longest video, in environment steps.")] = 500,
) -> None:
    """Roll the policy of a run out and print what each seed reaches."""
    from brpo import saved_runs

    path = saved_runs.checkpoint_of(run, checkpoint.value)
    try:
        options = {"sampler": sampler, "steps": steps, "candidates": candidates}
        acting = {name: value for name, value in options.items() if value is not None}
        if table is not None:  # before the rollouts, which take long
            _check_table(table, [*_ROW, *options, "seed", *saved_runs.columns_of(path, acting)])
        result = saved_runs.evaluate_checkpoint(
            path, episodes=episodes, mode=mode.value if mode else None, first_seed=first_seed, acting=acting
        )
        _print_evaluation(result, acting)
        if table is not None:
            what = {"run": str(run), **{name: result[name] for name in _ROW[1:]}, **options}
            _add_rows(table, [{**what, "seed": row.seed, **row.numbers()} for row in result["rows"]])
        if video:
            if "MUJOCO_GL" not in os.environ and sys.platform == "linux" and not os.environ.get("DISPLAY"):
                os.environ["MUJOCO_GL"] = "egl"  # renders without a screen
            for file in saved_runs.film(path, mode=result["mode"], max_frames=frames, acting=acting):
                print(f"video: {file}")
    except KeyboardInterrupt:
        raise Interrupted("the evaluation was given up") from None


@app.command()
def export(
    run: RunPath,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="What to write, NAME.onnx or NAME.pt2; RUN/policy.onnx unless given.", dir_okay=False
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Whose policy; the run's first seed unless given.")] = None,
    checkpoint: CheckpointRule = Rule.last,
    sampler: Sampler = None,
    steps: Steps = None,
    candidates: Annotated[
        int | None, typer.Option(min=0, help="BDPO: 0, the action from no noise, can be exported.")
    ] = None,
) -> None:
    """Write the policy of one seed, its mean action, to a file that acts without brpo. docs/use.md shows how."""
    from brpo import saved_runs
    from brpo.export import export as write

    options = {"sampler": sampler, "steps": steps, "candidates": candidates}
    acting = {name: value for name, value in options.items() if value is not None}
    path = saved_runs.checkpoint_of(run, checkpoint.value)
    file = file or saved_runs.folder_of(path).path / "policy.onnx"
    found, moment, difference = write(path, file, seed=seed, acting=acting)
    print(
        f"{file}: the mean action of {found['algorithm']} on {found['dataset']}, seed {found['seed']}, "
        f"{found['checkpoint']}, {moment}; {found['observation_dim']} numbers of an observation to "
        f"{len(found['action_low'])} of an action. The file differs from the run's policy by {difference:.0e} of an "
        f"action's range at most."
    )


_COLUMNS: dict[str, str] = {
    "return_mean": "return",
    "sliced_wasserstein": "SW distance",
    "return_std": "std",
    "return_worst": "worst",
    "return_cvar": "CVaR 10 %",
    "return_discounted": "disc.",
}


def _print_evaluation(result: dict[str, Any], acting: Mapping[str, Any]) -> None:
    table = Table(title=f"{result['algo']} on {result['dataset']}, {result['checkpoint']}", title_justify="left")
    rows, digits = result["rows"], result["digits"]
    names = [name for name in rows[0].numbers() if not name.startswith("mode_share")]  # mode_error sums them up
    for column in ["seed", *(_COLUMNS.get(name) or name.replace("_", " ") for name in names)]:
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        numbers = row.numbers()
        table.add_row(str(row.seed), *("" if numbers[n] is None else f"{numbers[n]:.{digits}f}" for n in names))
    console.print(table)
    where = f"episodes a seed in {result['environment']}" if result["environment"] else "samples a seed"
    other = "".join(f", {name} {value}" for name, value in acting.items())
    print(f"{result['episodes']} {where}, {result['mode']} action{other}, {result['moment']}")


_ROW = (
    "run",
    "algo",
    "dataset",
    "digest",
    "checkpoint",
    "update",
    "mode",
    "episodes",
    "first_seed",
)  # a row of --csv begins so


def _check_table(path: Path, header: list[str]) -> None:
    """Refuse a CSV file that rows with these columns cannot be added to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a+", newline="") as file:
        file.seek(0)
        first, wanted = file.readline(), ",".join(header)
    if new:
        path.resolve().unlink()  # it can be made; what follows may yet be refused
    if first not in ("", f"{wanted}\n"):
        raise UserError(f"{path} has other columns than the rows to be added: {wanted}. Name another file.")


def _add_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a CSV file, after what is there."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


@app.command()
def estimate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or checkpoints inside them.")],
    updates: Annotated[int, typer.Option(min=1, help="Of the fit; more where much is still missing.")] = 20_000,
    discount: Annotated[float, typer.Option(help="Of the rewards, per step, in [0, 1).")] = 0.99,
    mode: Annotated[Mode | None, typer.Option(help="The policy's mode or a sample; the run's own unless given.")] = None,
    checkpoint: CheckpointRule = Rule.last,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Also add a row for each seed and point to this file.", dir_okay=False)
    ] = None,
) -> None:
    """Estimate what policies are worth without an environment, by fitted Q evaluation. docs/estimate.md explains it."""
    from brpo import estimates, saved_runs
    from brpo.evaluation.scores import spread

    paths = [saved_runs.checkpoint_of(run, checkpoint.value) for run in runs]
    if table is not None:  # before the fits, which take long
        _check_table(table, ["run", *estimates.COLUMNS])

    def say(update: int, values: list[float]) -> None:
        print(f"  update {update}/{updates}  {spread(values, 2)}", flush=True)

    found: list[tuple[Path, Estimate]] = []
    how = mode.value if mode else None
    try:
        for run, path in zip(runs, paths, strict=True):
            print(f"{run}:", flush=True)
            each = estimates.estimate(path, updates=updates, discount=discount, mode=how, on_point=say)
            found.append((run, each))
            if table is not None:
                _add_rows(table, [{"run": str(run), **row} for row in each.rows()])
    except KeyboardInterrupt:
        raise Interrupted("the estimation was given up") from None
    finally:  # also of those before one that fails
        _print_estimates(found, discount)


def _print_estimates(found: Sequence[tuple[Path, "Estimate"]], discount: float) -> None:
    """A table for each data set, the largest estimate first."""
    from brpo.evaluation.scores import spread

    for digest in dict.fromkeys(each.what["digest"] for _, each in found):
        own = [(run, each) for run, each in found if each.what["digest"] == digest]
        first = own[0][1]
        table = Table()
        for column, number in (("run", False), ("algo", False), ("value", True), ("still missing", True)):
            table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for run, each in sorted(own, key=lambda pair: -fmean(pair[1].points[-1])):
            values, missing = spread(each.points[-1], 2), spread(each.missing, 2)
            table.add_row(*map(Text, (str(run), each.what["algo"], values, missing)))
        best = "" if first.data_best is None else f", at most {first.data_best:.2f}"
        data = f"of the data {first.data_return:.2f}{best}"
        title = f"{first.what['dataset']}: discounted return ({discount:g}), estimated; {data}"
        console.print(title, markup=False, highlight=False, soft_wrap=True)
        console.print(table)
        if first.data_best is None:
            print(
                "note: every episode of the data was cut off where a hundredth of its discounted return or more may follow: "
                "none says how large an estimate may be"
            )
        for run, each in own:
            if not each.has_ended:
                print(f"note: {run}: the fit has not ended: give more --updates, until little is still missing")
            if each.is_beyond_the_data:
                print(f"note: {run} is above every episode of the data: an extrapolation, not to be believed")


@app.command()
def diagnose(
    run: RunPath,
    checkpoint: CheckpointRule = Rule.last,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A panel of its own for a quantity of `diagnose` or a TensorBoard tag; repeatable."
        ),
    ] = None,
) -> None:
    """Ratios, weights, support and values of a run on one page: RUN/diagnosis.png, and its numbers as .json and .md."""
    from brpo import diagnosis, diagnosis_page, saved_runs

    for file in diagnosis_page.write(diagnosis.diagnose(saved_runs.checkpoint_of(run, checkpoint.value), also or ())):
        print(file)


@app.command()
def divergences(
    order: Annotated[
        int, typer.Option(min=2, max=1000, help="Of the series in the last column, algo.regularizer.loss_order.")
    ] = 4,
    epsilon: Annotated[float, typer.Option(help="Of its clip range, algo.regularizer.epsilon; above 0.")] = 0.5,
) -> None:
    """Print the known f-divergences with their series, radius and bounds. docs/divergences.md explains the columns."""
    from brpo import divergence_table
    from brpo.functional.divergences import DIVERGENCES
    from brpo.options import require_positive

    require_positive(epsilon=epsilon)
    print(divergence_table.table(DIVERGENCES.values(), order, epsilon))


@app.command("collect")
def collect_sweep(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP_DIR", help="The folder that the sweep named, runs/sweeps/<time>.")],
) -> None:
    """Show what became of the jobs of a sweep, and write it to SWEEP_DIR/results.csv."""
    from brpo.sweeps import collect
    from brpo.sweeps.folder import SweepFolder

    folder = SweepFolder(sweep)
    rows = collect.collect(folder)
    ambiguous = collect.several_digests(rows)
    _print_rows(f"sweep {sweep}", rows, ambiguous)
    for line in collect.notes(rows, ambiguous):
        print(line)
    collect.write_table(folder.table, rows)
    print(folder.table)
    if any(row.metric for row in rows):  # a report without scores is refused
        print(f"brpo report {sweep}  # over seeds, side by side")


@app.command("report")
def report_runs(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, folders with runs below, sweeps, or what a report wrote."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for report.md, CSV tables and pictures.")] = None,
    published: Annotated[bool, typer.Option(help="Add published scores of the same data set ids.")] = False,
    last: Annotated[
        bool, typer.Option("--last", help="Of runs with the same seed the one that is found last counts.")
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="With --out: also tables.tex, for LaTeX, and the pictures as PDF.")
    ] = False,
) -> None:
    """Compare finished runs, from their result files alone: Markdown here, and CSV and pictures in a folder."""
    from brpo.reports import run_folders
    from brpo.reports.report import report

    if paper and out is None:
        raise UserError("--paper writes files: give a folder, --out FOLDER.")
    if out is not None and (holding := run_folders.run_below(out)):
        raise UserError(
            f"{out} holds runs ({holding}); a report in it would be read in their place. Give a folder of its own."
        )
    made = out is not None and not out.exists()
    if out is not None:  # before the reading, which takes long
        _make_folder(out)
    try:
        found = report(runs, last)
    except UserError:
        if out is not None and made:
            out.rmdir()  # which is empty
        raise
    print(found.markdown(with_published=published))
    if out is not None:
        found.write(out, with_published=published, for_paper=paper)
        print(out / "report.md")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}). Give a folder that can.") from error


FOLDED = 24  # characters of a text in a table, where there is no room for more


def _print_rows(title: str, rows: Sequence["Row"], ambiguous: dict[str, list[str]]) -> None:
    """A table without empty columns. One data set stands in the title; what a narrow terminal can do without goes."""
    from brpo.sweeps import collect

    columns = dict(zip(collect.HEADER, zip(*(collect.cells(row, ambiguous) for row in rows), strict=True), strict=True))
    if len(datasets := set(filter(None, columns["data set"]))) == 1:
        title = f"{title}: {datasets.pop()}"
        del columns["data set"]
    shown = {name: column for name, column in columns.items() if any(column)}
    for name in ("run", "updates/s", "worst seed", "auc", "best"):
        if _width(shown) > console.width:
            shown.pop(name, None)  # results.csv has it
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(_table(shown))


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Of the table, where texts are folded to what can still be read."""
    from brpo.sweeps.collect import NUMBERS

    widths = {name: max(map(len, (name, *column))) for name, column in columns.items()}
    return 1 + sum(3 + (width if name in NUMBERS else min(width, FOLDED)) for name, width in widths.items())


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    from brpo.sweeps.collect import NUMBERS

    table = Table()
    for name in columns:
        number = name in NUMBERS
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))  # as text: brackets are no markup
    return table


app.command()(cli_cache.cache)


def main() -> None:
    """Entry point: one line and exit code 2 for wrong input, as `train.py`."""
    sys.exit(exit_code_of_command(app, debug=bool(os.environ.get("BRPO_DEBUG"))))


if __name__ == "__main__":
    main()
