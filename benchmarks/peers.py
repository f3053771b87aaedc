"""Updates per second of brpo beside other implementations: the same networks, batch size, data and machine, in one process.

    pip install --no-deps -r benchmarks/requirements.txt            # d3rlpy and JAX; the head of that file says why so
    python benchmarks/peers.py                                      # IQL against all of them
    python benchmarks/peers.py --algo sfac --against d3rlpy,corl --threads 2 --precision medium
    python benchmarks/peers.py --device cuda --against corl,jax engine.chunk=200   # overrides, as train.py takes them
    python benchmarks/peers.py --algo bdpo --against jax --updates 10 --scan 5 --clock processor algo/size=small
    python benchmarks/peers.py --check                              # do the loops written here make the same update?

All sides make whole updates (batches, losses, optimizers, target networks) on all of the data. Every one is warmed up; in
every round each makes the same number of updates, and every round starts with another one. Rates are medians over the
rounds, ratios are medians of the ratios within a round. `cores` is processor time over wall time: what a side really used.
`--clock processor` gives rates per second of processor time: for one thread on a machine that others use at the same time.
Where the products of an update are counted (BDPO, peers_limit.py), every round also times such products alone: `limit` is
the share of an update's time that they would take, the same count for all sides.

| name   | what                                                                                     | algorithms         |
|--------|------------------------------------------------------------------------------------------|--------------------|
| d3rlpy | d3rlpy with its own buffer (its IQL stands in for Sf-AC)                                  | iql, sfac, td3_bc  |
| corl   | plain eager PyTorch in the manner of CORL, written in peers_corl.py                       | iql, sfac, td3_bc  |
| jax    | one jitted scan over `--scan` updates with optax, in peers_jax.py and peers_jax_bdpo.py   | iql, bdpo          |
"""

import csv
import functools
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import peers_limit
import torch
import typer
from common import build, composed, machine, rotated
from peers_workload import Peer, Unavailable, Workload, make_workload

from brpo.config import seed_list
from brpo.exits import run_command

KNOWN = ("d3rlpy", "corl", "jax")
OURS = "brpo"
LIMIT = "products"  # measured beside the sides
CLOCKS = ("wall", "processor")


class Measurement(NamedTuple):
    """One round of one side."""

    rate: float  # updates per second, or floating-point operations
    cores: float  # processor time over wall time


def timed(run: Callable[[], float | None], amount: float = 0.0, clock: str = "wall") -> Measurement:
    """Do an amount of work, or the amount that is given back, and take the time on a clock of `CLOCKS`."""
    wall, processor = time.perf_counter(), time.process_time()
    amount = run() or amount
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Measurement(amount / (processor if clock == "processor" else wall), processor / wall)


def gather(names: Sequence[str], workload: Workload) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can do the work, and why the others cannot."""
    peers, skipped = {}, {}
    for name in names:
        try:
            peers[name] = importlib.import_module(f"peers_{name}").make(workload)
        except ModuleNotFoundError as error:
            skipped[name] = f"{error.name} is not installed; benchmarks/requirements.txt says how"
        except Unavailable as error:
            skipped[name] = str(error)
    return peers, skipped


def rows(
    peers: dict[str, Peer], rounds: dict[str, list[Measurement]], operations: float | None = None
) -> list[dict[str, Any]]:
    """A row for each side: medians and spread of its rates, and of brpo's rate over its own within a round.

    And `limit`, the median share of its time that the products of an update would take, if their `operations` are given.
    """
    found = []
    for name, peer in peers.items():
        rates = [measurement.rate for measurement in rounds[name]]
        ratios = [ours.rate / rate for ours, rate in zip(rounds[OURS], rates, strict=True)]
        row: dict[str, Any] = {"side": name, "name": peer.name, "cores": median(m.cores for m in rounds[name])}
        for key, values in (("rate", rates), ("ratio", ratios)):
            row |= {key: median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
        row["limit"] = None
        if operations is not None:
            row["limit"] = median(operations * r / limit.rate for r, limit in zip(rates, rounds[LIMIT], strict=True))
        found.append(row)
    return found


def show(table: list[dict[str, Any]]) -> None:
    """Print the rows."""
    print(f"\n{'':32} {'updates/s (min..max)':>26} {'brpo over it (min..max)':>26} {'cores':>6} {'limit':>6}")
    for row in table:
        rate = f"{row['rate']:.4g} ({row['rate_min']:.4g}..{row['rate_max']:.4g})"
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f}..{row['ratio_max']:.2f})" if row["side"] != OURS else ""
        limit = f"{row['limit']:.0%}" if row["limit"] is not None else ""
        print(f"{row['name']:32} {rate:>26} {ratio:>26} {row['cores']:>6.2f} {limit:>6}")


def append(path: Path, table: list[dict[str, Any]], context: dict[str, Any]) -> None:
    """Add the rows to a CSV file, each with what was measured where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [*context, *table[0]]
    with path.open("a+", newline="") as file:
        file.seek(0)
        if (first := file.readline()) and first.strip() != ",".join(columns):
            raise typer.BadParameter(f"--csv {path}: has other columns than {','.join(columns)}. Name another file.")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        for row in table:
            rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow({**context, **rounded})


def check(algo: str, config: dict[str, Any], device: str, updates: int = 3) -> None:
    """Print how far the loops written here are from brpo's update; exit code 1 where that is too far."""
    from peers_check import TOLERANCE, differences

    algorithm, datamodule = build(config, device)
    algorithm.double().configure_optimizers()
    transitions = datamodule.train_transitions.to(algorithm.seeds.device, torch.float64)
    shape = (updates, 1, config["batch_size"])
    indices = torch.randint(len(transitions), shape, generator=torch.Generator().manual_seed(0))
    batches = [transitions.gather(row.to(device)) for row in indices]
    found = differences(algorithm, algo, config["algo"], batches, device)
    for name, distance in found.items():
        print(f"{name}: {distance:.1e} is the largest difference of a weight or loss after {updates} updates (float64)")
    if max(found.values()) > TOLERANCE:
        raise typer.Exit(1)


def compare(
    workload: Workload,
    against: Sequence[str],
    rounds: int,
    updates: int,
    target: Path | None,
    clock: str = "wall",
    options: Sequence[str] = (),
) -> None:
    """Measure, print, and write the rows to a file if one is given, with the options that the user typed."""
    ours = importlib.import_module(f"peers_{OURS}").make(workload)
    others, skipped = gather(against, workload)
    peers = {OURS: ours, **others}
    runs = {
        name: functools.partial(timed, functools.partial(peer.run, updates), updates, clock) for name, peer in peers.items()
    }
    operations = peers_limit.operations(workload)
    if operations is not None:
        runs[LIMIT] = functools.partial(timed, peers_limit.Products(workload).run, clock=clock)
    measured = rotated(runs, rounds)
    table, config = rows(peers, measured, operations), workload.config
    context = {
        "algo": workload.algo,
        "dataset": config["dataset"],
        "hidden": "x".join(map(str, workload.sizes.hidden)),
        "batch": workload.batch_size,
        "precision": config["engine"]["matmul_precision"],
        "threads": torch.get_num_threads(),
        "device": workload.device,
        "rounds": rounds,
        "updates": updates,
        "clock": clock,
        "options": " ".join(options),
    }
    print(machine())
    print(", ".join(f"{key} {value}" for key, value in context.items()))
    show(table)
    if operations is not None:
        rate = median(measurement.rate for measurement in measured[LIMIT]) / 1e9
        print(
            f"limit: {operations / 1e9:.2f} GFLOP of products an update; this machine makes {rate:.0f} GFLOP/s of them alone"
        )
    for name, peer in peers.items():
        if peer.note:
            print(f"note on {name}: {peer.note}")
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    if target is not None:
        append(target, table, {**context, "machine": machine()})


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="as train.py takes them: engine=... batch_size=...")] = None,
    algo: str = "iql",
    against: Annotated[str, typer.Option(help="some of d3rlpy,corl,jax")] = ",".join(KNOWN),
    precision: Annotated[str, typer.Option(help="highest, high or medium")] = "highest",
    threads: int = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    rounds: int = 7,
    updates: Annotated[int, typer.Option(help="of each side in a round")] = 300,
    scan: Annotated[int, typer.Option(help="updates in one call of JAX")] = 100,
    clock: Annotated[str, typer.Option(help="rates per second of wall or processor time")] = "wall",
    target: Annotated[Path | None, typer.Option("--csv", help="file to add the rows to")] = None,
    only_check: Annotated[bool, typer.Option("--check", help="compare the updates themselves, time nothing")] = False,
) -> None:
    """Print the rates and ratios."""
    names = [name for name in against.split(",") if name]
    if unknown := set(names) - set(KNOWN):
        raise typer.BadParameter(f"--against knows {', '.join(KNOWN)}, not {', '.join(sorted(unknown))}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise typer.BadParameter(f"--device {device}: must be cpu, or cuda where torch sees a GPU")
    if clock not in CLOCKS:
        raise typer.BadParameter(f"--clock {clock}: must be one of {', '.join(CLOCKS)}")
    if rounds < 1 or updates < 1 or updates % scan:
        raise typer.BadParameter(f"--rounds must be at least 1, and --updates a multiple of --scan {scan}")
    options = [f"algo={algo}", f"trainer={'gpu' if device == 'cuda' else 'cpu'}", "data.heldout=0", "max_updates=1000000"]
    options += [f"engine.matmul_precision={precision}", f"engine.threads={threads}"]
    if algo == "bdpo":
        options.append("algo.critic_only=0")  # all parts from the first update on, as in most of a training
    if only_check and algo == "td3_bc":
        options.append("algo.target_noise=0")  # every side draws noise of its own
    config = composed(*options, *(overrides or []))
    if seed_list(config["seeds"]) != [0]:
        raise typer.BadParameter("one seed is measured against one; benchmarks/seeds.py measures several")
    if only_check:
        check(algo, config, device)
    else:
        workload = make_workload(algo, config, *build(config, device), device, scan)
        compare(workload, names, rounds, updates, target, clock, overrides or [])


if __name__ == "__main__":
    run_command(main)
