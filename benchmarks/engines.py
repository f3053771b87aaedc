"""Updates per second of the engines, side by side in one process.

    python benchmarks/engines.py                                             # on a CPU: eager and compile
    python benchmarks/engines.py --device cuda --algo sfac seeds=16          # overrides, as train.py takes them
    python benchmarks/engines.py --device cuda --csv docs/results/engines.csv

All sides are warmed up (what is compiled or captured is so by then) and make the same number of updates in every round.
Rates are medians over the rounds; ratios to the eager engine are medians of the ratios within a round.
"""

import csv
import functools
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from common import build, composed, machine, rotated

from brpo.exits import run_command

ENGINES = {
    "cpu": {"eager": [], "compile": []},
    "cuda": {
        "eager": [],
        "compile": [],
        "cudagraph": ["engine.compiled=false"],
        "cudagraph, compiled": ["engine.compiled=true"],
    },
}


def learner(config: dict[str, Any], device: str) -> Any:
    """Makes updates and gives their rate."""
    algorithm, _ = build(config, device)
    runner, chunk = algorithm.runner, config["engine"]["chunk"]
    assert runner is not None

    def run(updates: int) -> float:
        first, clock = algorithm.update_count, time.perf_counter()
        for start in range(first, first + updates, chunk):
            runner.run(algorithm, start, min(start + chunk, first + updates))
            algorithm.take_records()  # waits for the device
        return updates / (time.perf_counter() - clock)

    return run


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="as train.py takes them: seeds=... batch_size=...")] = None,
    algo: str = "iql",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    rounds: int = 5,
    updates: Annotated[int, typer.Option(help="of each engine in a round")] = 500,
    target: Annotated[Path | None, typer.Option("--csv", help="file to add the rows to")] = None,
) -> None:
    """Print the rates and their ratios to the eager engine's."""
    shared = [f"algo={algo}", f"trainer={'gpu' if device == 'cuda' else 'cpu'}", "max_updates=1000000", *(overrides or [])]
    sides = {}
    for name, options in ENGINES[device].items():
        config = composed(*shared, f"engine={name.split(',')[0]}", *options)
        sides[name] = functools.partial(learner(config, device), updates)
    measured = rotated(sides, rounds)
    print(f"{machine()}\n{algo} {' '.join(overrides or [])}: {rounds} rounds of {updates} updates")
    rows = []
    for name, rates in measured.items():
        ratios = [rate / eager for rate, eager in zip(rates, measured["eager"], strict=True)]
        row = {"algo": algo, "options": " ".join(overrides or []), "device": device, "engine": name, "rate": median(rates)}
        rows.append(row | {"over_eager": median(ratios), "over_eager_min": min(ratios), "over_eager_max": max(ratios)})
        print(
            f"{name:20} {median(rates):7.0f}/s  {median(ratios):6.2f} times eager ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "machine"], lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            rounded = [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
            writer.writerows(row | {"machine": machine()} for row in rounded)


if __name__ == "__main__":
    run_command(main)
