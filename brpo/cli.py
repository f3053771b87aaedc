"""The `brpo` command: look at data sets, evaluate runs."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from brpo.errors import Interrupted
from brpo.exits import exit_code_of

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
data_app = typer.Typer(help="Look at Minari data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console()


class Mode(StrEnum):
    """How a policy acts."""

    mean = "mean"
    sampled = "sampled"


class Rule(StrEnum):
    """Which checkpoint of a run."""

    last = "last"
    best = "best"


@data_app.command("list")
def list_data(
    remote: Annotated[bool, typer.Option(help="Ask the hub too.")] = True,
    prefix: Annotated[str, typer.Option(help="Only remote ids that begin like this.")] = "",
) -> None:
    """List the data sets of this machine and, when it can be reached, of the hub."""
    from brpo.datasets import catalog

    local = catalog.local_ids()
    console.print(f"On this machine ({len(local)}):")
    for dataset_id, folder in local.items():
        print(f"  {dataset_id}  {folder}")
    if remote:
        found = catalog.remote_ids(prefix)
        if found is None:
            console.print("The hub cannot be reached; without a network only the ids above can be used.")
        else:
            console.print(f"On the hub ({len(found)}):")
            for dataset_id in found:
                print(f"  {dataset_id}")


@data_app.command("info")
def data_info(dataset_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Sizes, returns, terminations, quantiles and boundary actions of a data set."""
    from brpo.datasets import minari_io
    from brpo.datasets.statistics import describe

    table = Table(title=dataset_id, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in describe(minari_io.load(dataset_id)).items():
        table.add_row(name, value)
    console.print(table)


@data_app.command("check")
def data_check(dataset_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Read every episode of a data set; exit code 2 and the first fault where it cannot be trained on."""
    from brpo.datasets import minari_io

    found = minari_io.check(dataset_id)
    print(f"{dataset_id}: good. {found.lengths.sum()} transitions in {len(found.lengths)} episodes, digest {found.digest}")
    if found.clipped:
        print(f"{found.clipped} action entries lie outside the bounds; training clips them.")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint inside one.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes for each seed.")] = 10,
    mode: Annotated[Mode, typer.Option(help="The policy's mode, or sampled actions.")] = Mode.mean,
    checkpoint: Annotated[Rule, typer.Option(help="Which checkpoint of a run folder.")] = Rule.last,
    video: Annotated[bool, typer.Option(help="Also film one episode of each seed into RUN/videos.")] = False,
    frames: Annotated[int, typer.Option(min=1, help="Longest video, in environment steps.")] = 500,
) -> None:
    """Roll the policy of a run out and print what each seed reaches."""
    from brpo import saved_runs

    path = saved_runs.checkpoint_of(run, checkpoint.value)
    try:
        result = saved_runs.evaluate_checkpoint(path, episodes=episodes, mode=mode.value)
        _print_evaluation(result)
        if video:
            if "MUJOCO_GL" not in os.environ and sys.platform == "linux" and not os.environ.get("DISPLAY"):
                os.environ["MUJOCO_GL"] = "egl"  # renders without a screen
            for file in saved_runs.film(path, mode=mode.value, max_frames=frames):
                print(f"video: {file}")
    except KeyboardInterrupt:
        raise Interrupted("the evaluation was given up") from None


def _print_evaluation(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['algo']} on {result['dataset']}, {result['checkpoint']}", title_justify="left")
    columns = ("seed", "return", "std", "score", "worst", "CVaR 10 %", "length", "value gap")
    for column in columns:
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            str(row.seed),
            *(
                "" if value is None else f"{value:.1f}"
                for value in (
                    row.return_mean,
                    row.return_std,
                    row.score,
                    row.return_worst,
                    row.return_cvar,
                    row.length,
                    row.value_gap,
                )
            ),
        )
    console.print(table)
    print(
        f"{result['episodes']} episodes a seed in {result['environment']}, {result['mode']} action, "
        f"update {result['update']}"
    )


def main() -> None:
    """Entry point: one line and exit code 2 for wrong input, as `train.py`."""
    sys.exit(exit_code_of(app, debug=bool(os.environ.get("BRPO_DEBUG"))))


if __name__ == "__main__":
    main()
