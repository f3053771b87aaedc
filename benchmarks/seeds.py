"""What several seeds in one process cost in time and memory, and what they save against runs one after another.

    python benchmarks/seeds.py --csv docs/results/seeds.csv --plot docs/pictures/seeds.png     # 1, 2, 4, 8, 16 seeds
    python benchmarks/seeds.py --algo sfac --counts 1,8 engine.chunk=50      # overrides, as train.py takes them
    python benchmarks/seeds.py --serial     # 8 seeds in one train.py against 8 of them, loading and evaluation included

Every number of seeds is trained in a process of its own, so that its peak memory is its own. The processes are warmed up
and take turns: in a round each makes the same number of updates while the others wait. Rates are medians over the rounds,
times relative to the smallest number of seeds are medians of the ratios within a round. Memory is the largest resident set;
processes side by side share the pages of libraries, which it counts in each of them.
"""

import contextlib
import csv
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from common import ROOT, build, composed, machine, rotated

from brpo.errors import UserError
from brpo.exits import run_command

MIB = 1 << 20
TRAINING = ("max_updates=1000", "eval.every=1000", "eval.episodes=5")  # of --serial: one evaluation, at the end


# --- A process for each number of seeds -------------------------------------------------------------------------------


def serve(overrides: Sequence[str], device: str) -> None:
    """Make updates when told to: their number comes in a line; the rate and the peak memory so far go out as JSON."""
    config = composed(*overrides)
    algorithm, _ = build(config, device)
    runner, chunk = algorithm.runner, config["engine"]["chunk"]
    assert runner is not None
    for number in range(runner.warms_up):  # the chunks in which a graph is captured, more than a warm-up of `rotated` makes
        runner.run(algorithm, chunk * number, chunk * (number + 1))
    algorithm.take_records()
    for line in sys.stdin:
        updates, start = int(line), algorithm.update_count
        clock = time.perf_counter()
        for first in range(start, start + updates, chunk):
            runner.run(algorithm, first, min(first + chunk, start + updates))
            algorithm.take_records()  # waits for the device
        rate = updates / (time.perf_counter() - clock)
        reserved = torch.cuda.max_memory_reserved() if device == "cuda" else 0
        print(json.dumps({"rate": rate, "mib": peak_memory() / MIB, "device_mib": reserved / MIB}), flush=True)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when this process was started
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Training:
    """A process that trains some seeds when told to; it ends with the `with` block."""

    def __init__(self, seeds: int, options: Sequence[str], device: str) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--device", device, *options, f"seeds={seeds}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]  # the end of its loop
        self.process.wait()

    def run(self, updates: int) -> dict[str, float]:
        """Make updates; gives `rate` (updates per second) and peak memory as `mib` and `device_mib`.

        Raises:
            UserError: the process has ended.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(f"{updates}\n")
            stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise UserError(f"A training ended with exit code {self.process.wait()}; its error stands above.")
        return json.loads(answer)


def measure(counts: Sequence[int], options: Sequence[str], device: str, rounds: int, updates: int) -> list[dict[str, Any]]:
    """A row for each number of seeds."""
    with contextlib.ExitStack() as stack:
        trainings = {count: stack.enter_context(Training(count, options, device)) for count in counts}
        runs = {str(count): functools.partial(training.run, updates) for count, training in trainings.items()}
        return rows({int(count): answers for count, answers in rotated(runs, rounds).items()})


def rows(measured: dict[int, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians and spread; an update's time is relative to that of the smallest number of seeds in the same round."""
    found, first = [], measured[min(measured)]
    for count, answers in measured.items():
        rates = [answer["rate"] for answer in answers]
        relative = [one["rate"] / rate for one, rate in zip(first, rates, strict=True)]
        row: dict[str, Any] = {"seeds": count}
        for key, values in (("updates_per_second", rates), ("relative_time", relative)):
            row |= {key: median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
        row["seed_updates_per_second"] = count * median(rates)
        found.append(row | {key: max(answer[key] for answer in answers) for key in ("mib", "device_mib")})
    return found


def show(table: list[dict[str, Any]]) -> None:
    """Print the rows."""
    print(f"{'seeds':>5} {'updates/s (min..max)':>24} {'seeds x updates/s':>18} {'relative time (min..max)':>26} {'MiB':>6}")
    for row in table:
        rate = "{updates_per_second:.1f} ({updates_per_second_min:.1f}..{updates_per_second_max:.1f})".format(**row)
        relative = "{relative_time:.2f} ({relative_time_min:.2f}..{relative_time_max:.2f})".format(**row)
        device = f" and {row['device_mib']:.0f} on the device" if row["device_mib"] else ""
        print(
            f"{row['seeds']:>5} {rate:>24} {row['seed_updates_per_second']:>18.1f} {relative:>26} {row['mib']:>6.0f}{device}"
        )


def write(path: Path, table: list[dict[str, Any]], context: dict[str, Any]) -> None:
    """The rows as CSV, each with what was measured where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*table[0], *context], lineterminator="\n")
        writer.writeheader()
        for row in table:
            rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow({**rounded, **context})


def draw(path: Path, table: list[dict[str, Any]], title: str) -> None:
    """Time and memory against the number of seeds, beside those of so many runs of the smallest number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    counts = [row["seeds"] for row in table]
    memory = "device_mib" if table[0]["device_mib"] else "mib"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), dpi=150)
    times = [row["relative_time"] for row in table]
    low = [row["relative_time"] - row["relative_time_min"] for row in table]
    high = [row["relative_time_max"] - row["relative_time"] for row in table]
    left.errorbar(counts, times, yerr=(low, high), marker="o", markersize=3, capsize=3, label="seeds in one process")
    left.plot(counts, [n / counts[0] for n in counts], color="grey", linestyle="--", label="runs one after another")
    left.set_ylabel(f"time, relative to seeds={counts[0]}")
    right.plot(counts, [row[memory] for row in table], marker="o", markersize=3, label="seeds in one process")
    together = [table[0][memory] * n / counts[0] for n in counts]
    right.plot(counts, together, color="grey", linestyle="--", label="as many processes")
    right.set_ylabel("peak memory" + (" on the device" if memory == "device_mib" else "") + ", MiB")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("seeds")
        axes.legend(loc="upper left")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(path)


# --- One process against several runs ---------------------------------------------------------------------------------


def train(seeds: Sequence[int], options: Sequence[str]) -> float:
    """Wall time of `train.py`, from its start to its end, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        listed = ",".join(map(str, seeds))
        command = [sys.executable, "train.py", *TRAINING, *options, f"seeds=[{listed}]", f"run_dir={folder}/run"]
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "200"})
        return time.perf_counter() - start


def serial(seeds: int, options: Sequence[str], rounds: int) -> None:
    """Print how much longer runs one after another take than their seeds in one process."""
    every = range(seeds)
    measured = rotated(
        {"together": lambda: train(every, options), "in turn": lambda: sum(train([k], options) for k in every)}, rounds
    )
    ratios = [turn / together for turn, together in zip(measured["in turn"], measured["together"], strict=True)]
    print(f"one process, {seeds} seeds       {median(measured['together']):.1f} s")
    print(f"{seeds} runs one after another   {median(measured['in turn']):.1f} s")
    print(f"ratio {median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}), {rounds} rounds")


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="as train.py takes them: engine=... batch_size=...")] = None,
    algo: str = "iql",
    counts: Annotated[str, typer.Option(help="numbers of seeds")] = "1,2,4,8,16",
    threads: int = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    rounds: int = 5,
    updates: Annotated[int, typer.Option(help="of each process in a round")] = 100,
    target: Annotated[Path | None, typer.Option("--csv", help="file for the rows")] = None,
    plot: Annotated[Path | None, typer.Option(help="file for the picture")] = None,
    one_after_another: Annotated[bool, typer.Option("--serial", help="against runs one after another")] = False,
    seeds: Annotated[int, typer.Option(help="of --serial")] = 8,
    serving: Annotated[bool, typer.Option("--serve", hidden=True)] = False,
) -> None:
    """Print the table, and write the files that are asked for."""
    if serving:
        serve(overrides or [], device)
        return
    options = [f"algo={algo}", f"trainer={'gpu' if device == 'cuda' else 'cpu'}", f"engine.threads={threads}"]
    options += overrides or []
    if one_after_another:
        serial(seeds, options, rounds)
        return
    numbers = sorted({int(number) for number in counts.split(",")})
    table = measure(numbers, options, device, rounds, updates)
    torch.set_num_threads(threads)  # as the processes did, for the name of the machine
    print(machine())
    print(f"{' '.join(options)}, medians of {rounds} rounds of {updates} updates")
    show(table)
    if target is not None:
        context = {"algo": algo, "threads": threads, "device": device, "overrides": " ".join(overrides or [])}
        write(target, table, {**context, "rounds": rounds, "updates": updates, "machine": machine()})
    if plot is not None:
        draw(plot, table, f"{algo}, {threads} CPU thread(s)" if device == "cpu" else f"{algo}, {device}")


if __name__ == "__main__":
    run_command(main)
