"""`brpo data`: see the data sets that there are, check one, and make one of a flat file."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brpo.datasets.ids import is_toy
from brpo.errors import UserError
from brpo.installation import TRAIN

T = TypeVar("T")
Bound = Annotated[
    str | None, typer.Option(metavar="X[,X...]", help="Bound of each action dimension, or one of all; without --env.")
]
app = typer.Typer(help="Look at Minari data sets, and import flat files.", no_args_is_help=True)
console = Console()


@app.command("list")
def list_all(
    remote: Annotated[bool, typer.Option(help="Ask the hub too.")] = True,
    prefix: Annotated[str, typer.Option(help="Only remote ids that begin like this.")] = "",
) -> None:
    """List the data sets of this machine and, when it can be reached, of the hub."""
    from brpo.datasets import catalog, toy

    print(f"Generated: {', '.join(toy.ids())}")
    local = catalog.local_ids()
    if not (root := catalog.data_roots()[0]).is_dir():
        print(f"There is no folder {root} (MINARI_DATASETS_PATH); the first download or import makes it.")
    console.print(f"On this machine ({len(local)}):")
    for dataset_id, folder in local.items():
        print(f"  {dataset_id}  {folder}")
    if remote:
        console.print("Asking the hub ...")
        found = catalog.remote_ids(prefix)
        if found is None:
            console.print(
                f"The hub cannot be reached; without a network only the ids above can be used{catalog.offline_hint()}."
            )
        else:
            console.print(f"On the hub ({len(found)}):")
            for dataset_id in found:
                print(f"  {dataset_id}")


@app.command("info")
def info(dataset_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Sizes, returns, terminations, quantiles and boundary actions of a data set."""
    from brpo.datasets import sources
    from brpo.datasets.statistics import describe

    table = Table(title=dataset_id, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in describe(sources.load(dataset_id)).items():
        table.add_row(name, Text(value))  # as text: brackets are no markup
    console.print(table)


@app.command("check")
def check(dataset_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Read every episode of a data set; exit code 2 and the first fault where it cannot be trained on."""
    from brpo.datasets import sources, statistics

    found = sources.check(dataset_id)
    print(f"{dataset_id}: good. {found.lengths.sum()} transitions in {len(found.lengths)} episodes, digest {found.digest}")
    if found.clipped:
        print(f"{found.clipped} action entries lie outside the bounds; training clips them.")
    moments = found.observation_mean, found.observation_std
    same = [] if is_toy(dataset_id) else statistics.constant(*moments)  # a toy task has one state
    if same:
        print(f"Observation columns {same} are constant in float32. Did they have an offset that is to be subtracted first?")
    for note in statistics.offsets(*moments):
        print(f"note: {note}")


@app.command("import")
def import_flat(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="HDF5 or NPZ with observations, actions, rewards, terminals, ...")
    ],
    dataset_id: Annotated[str, typer.Argument(metavar="ID", help="Of the new data set, such as hopper-medium-v2.")],
    env: Annotated[
        str | None, typer.Option(metavar="ENV_ID", help="Gymnasium id of the environment for evaluation.")
    ] = None,
    reference_min: Annotated[float | None, typer.Option(help="The return that scores 0.")] = None,
    reference_max: Annotated[float | None, typer.Option(help="The return that scores 100.")] = None,
    action_low: Bound = None,
    action_high: Bound = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Longest episode, where no timeouts is true.")] = None,
) -> None:
    """Make a data set out of a flat file, as D4RL's are. docs/use.md says where episodes end and which rows are dropped."""
    from brpo.datasets import d4rl, statistics
    from brpo.reports.seed_result import plural

    references = _pair("--reference-min and --reference-max", reference_min, reference_max)
    bounds = _pair(
        "--action-low and --action-high", _numbers("--action-low", action_low), _numbers("--action-high", action_high)
    )
    made = d4rl.import_file(file, dataset_id, env=env, references=references, bounds=bounds, max_steps=max_steps)
    transitions, episodes, terminated = made.lengths.sum(), len(made.lengths), made.terminated.sum()
    kept = f"{plural(transitions, 'transition')} of {plural(made.rows, 'row')}"
    print(
        f"{dataset_id}: {kept}, in {plural(episodes, 'episode')}: {terminated} terminated, {episodes - terminated} truncated"
    )
    if dropped := made.rows - transitions:
        which = "the last of each truncated episode" if dropped > 1 else "the last of the truncated episode"
        print(f"{plural(dropped, 'row')} dropped: {which}, as the file has no next_observations")
    if made.jumps:
        end = plural(made.jumps, "episode") + (" end" if made.jumps > 1 else " ends")
        print(f"{end} without a flag, where next_observations is not what the next row observes")
    print(f"return: mean {made.returns.mean():.1f}, smallest {made.returns.min():.1f}, largest {made.returns.max():.1f}")
    outside = f"; {made.clipped} outside, which training clips" if made.clipped else ""
    print(f"action bounds: {made.space.low.tolist()} to {made.space.high.tolist()}{outside}")
    if bounds is not None:  # a typing error shows beside the data
        for dimension, (low, high) in enumerate(zip(*made.extremes.tolist(), strict=True)):
            least, most = made.space.low[dimension], made.space.high[dimension]
            print(f"  action dimension {dimension}: data from {low:.6g} to {high:.6g}, bounds {least:.6g} and {most:.6g}")
    for note in statistics.offsets(made.moments.mean, made.moments.std):
        print(f"note: {note}")
    if env is None:
        print("no environment: runs on it log offline diagnostics and have no scores (--env ENV_ID)")
    print(f"{made.folder}\nbrpo data check {dataset_id}\n{TRAIN} dataset={dataset_id}")


def _numbers(option: str, typed: str | None) -> list[float] | None:
    try:
        return None if typed is None else [float(part) for part in typed.split(",")]
    except ValueError as error:
        raise UserError(
            f"{option} {typed} is not allowed; give a number, or one for each action dimension: 15,0."
        ) from error


def _pair(names: str, low: T | None, high: T | None) -> tuple[T, T] | None:
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise UserError(f"{names} belong together: give both or none.")
    return low, high
