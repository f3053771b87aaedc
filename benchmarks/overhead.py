"""What Lightning, logging, progress and checkpoints add to the updates themselves (aim: at most 3 %).

    OMP_NUM_THREADS=1 python benchmarks/overhead.py [--algo iql] [--updates 1000] [--rounds 7] [engine=eager ...]

Two questions, each answered within one run, so that a machine that changes its speed disturbs the answers little:

- Are the updates themselves slower under Lightning? Time inside `runner.run`, beside a bare loop of the same updates in
  the same process, in turn. The ratio should be 1.
- What comes on top? Time outside `runner.run`: between two chunks (means of the records, TensorBoard, progress, Lightning),
  between two evaluation intervals (also the checkpoint), and once before the first and after the last update.

The overhead of a run is that between chunks and intervals, as a share of the updates; the interval is the one of the
configuration. Evaluations are left out: rollouts are work, not overhead. Processor time counts all threads of the process,
wall time also what the disk and other processes take.
"""

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any, NamedTuple

import typer
from common import build, composed, machine, rotated

from brpo import runs, training
from brpo.algorithms.base import OfflineAlgorithm
from brpo.callbacks.checkpoints import Checkpoints
from brpo.callbacks.progress import UpdateProgress
from brpo.callbacks.recorder import Recorder
from brpo.callbacks.signals import Signals
from brpo.engine.runner import EagerRunner
from brpo.exits import run_command

INTERVALS = 2  # evaluation intervals in a measured run


class Clock(NamedTuple):
    """Seconds."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Clock":
        """Both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Clock") -> "Clock":
        """What passed."""
        return Clock(self.wall - start.wall, self.processor - start.processor)


@dataclass
class TimedRunner:
    """Another runner, and when each of its chunks began and ended."""

    runner: EagerRunner
    begins: list[Clock] = field(default_factory=list)
    ends: list[Clock] = field(default_factory=list)

    def run(self, algorithm: OfflineAlgorithm, start: int, stop: int) -> None:
        """Make the updates [start, stop)."""
        self.begins.append(Clock.now())
        self.runner.run(algorithm, start, stop)
        self.ends.append(Clock.now())


@dataclass
class Times:
    """Of one run, in seconds: inside the updates of all chunks, and outside."""

    inside: Clock
    between_chunks: Clock  # mean of one such gap
    between_intervals: Clock
    start: Clock
    end: Clock

    @classmethod
    def of(cls, timed: TimedRunner, begin: Clock, end: Clock) -> "Times":
        """From what the runner has seen."""
        chunks = [stop.since(start) for start, stop in zip(timed.begins, timed.ends, strict=True)]
        gaps = [start.since(stop) for start, stop in zip(timed.begins[1:], timed.ends, strict=False)]
        each = len(chunks) // INTERVALS
        ordinary = [gap for number, gap in enumerate(gaps, 1) if number % each]
        long = [gap for number, gap in enumerate(gaps, 1) if number % each == 0]
        return cls(
            total(chunks), averaged(ordinary), averaged(long), timed.begins[0].since(begin), end.since(timed.ends[-1])
        )


def total(clocks: Sequence[Clock]) -> Clock:
    """Their sum."""
    return Clock(*map(sum, zip(*clocks, strict=True)))


def averaged(clocks: Sequence[Clock]) -> Clock:
    """Their mean."""
    return Clock(*map(mean, zip(*clocks, strict=True)))


def bare(config: dict[str, Any]) -> Times:
    """A loop of the same updates and nothing else."""
    algorithm, _ = build(config)
    assert algorithm.runner is not None
    timed, chunk, begin = TimedRunner(algorithm.runner), config["engine"]["chunk"], Clock.now()  # type: ignore[arg-type]
    for start in range(0, config["max_updates"], chunk):
        timed.run(algorithm, start, start + chunk)
        algorithm.discard_records()
    return Times.of(timed, begin, Clock.now())


def under_lightning(config: dict[str, Any]) -> Times:
    """The same in a run folder, with all callbacks but the evaluation."""
    algorithm, datamodule = build(config)
    assert algorithm.runner is not None
    timed = algorithm.runner = TimedRunner(algorithm.runner)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder, Signals() as signals, redirect_stdout(io.StringIO()):
        run = runs.RunFolder(Path(folder))
        recorder = Recorder(run)
        progress = UpdateProgress(recorder, config["max_updates"])
        saver = Checkpoints(run.checkpoints, recorder, signals)
        trainer = training.make_trainer(config, run, [recorder, progress, saver])
        begin = Clock.now()
        trainer.fit(algorithm, datamodule=datamodule)
        end = Clock.now()
    return Times.of(timed, begin, end)


def spread(values: Sequence[float], digits: int) -> str:
    """Median, smallest and largest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(clock: str, ours: list[Times], loop: list[Times], updates: int, chunk: int, interval: int) -> list[str]:
    """The lines for `wall` or `processor` time."""

    def values(name: str) -> list[float]:
        return [getattr(getattr(times, name), clock) for times in ours]

    inside, gaps, long = values("inside"), values("between_chunks"), values("between_intervals")
    ratios = [a / getattr(b.inside, clock) for a, b in zip(inside, loop, strict=True)]
    # In an interval: a gap after each of its chunks, the long one after the last.
    added = [
        (gap * (interval / chunk - 1) + end) / (seconds / updates * interval)
        for seconds, gap, end in zip(inside, gaps, long, strict=True)
    ]
    return [
        f"{clock} time",
        f"  an update under Lightning    {spread([1e3 * seconds / updates for seconds in inside], 3)} ms",
        f"  relative to the bare loop    {spread(ratios, 3)}",
        f"  between two chunks           {spread([1e3 * gap for gap in gaps], 2)} ms",
        f"  between two intervals        {spread([1e3 * gap for gap in long], 1)} ms",
        f"  once, at the start           {spread([1e3 * seconds for seconds in values('start')], 1)} ms",
        f"  once, at the end             {spread([1e3 * seconds for seconds in values('end')], 1)} ms",
        f"  overhead, interval of {interval}   {spread([100 * share for share in added], 2)} % (aim: at most 3 %)",
    ]


def main(
    overrides: Annotated[list[str] | None, typer.Argument()] = None, algo: str = "iql", updates: int = 1000, rounds: int = 7
) -> None:
    """Print what was found, in wall time and in processor time."""
    given = [f"algo={algo}", "trainer=cpu", *(overrides or [])]
    interval = composed(*given)["eval"]["every"]
    config = composed(*given, f"max_updates={updates}", f"eval.every={updates // INTERVALS}")
    chunk = config["engine"]["chunk"]
    if updates % (INTERVALS * chunk) or updates < 2 * INTERVALS * chunk:
        raise typer.BadParameter(f"--updates must be a multiple of {INTERVALS * chunk}, and at least twice that.")
    training._quiet_libraries()
    sides: dict[str, Callable[[], Times]] = {"ours": lambda: under_lightning(config), "bare": lambda: bare(config)}
    measured = rotated(sides, rounds)
    print(machine())
    print(f"{algo}, {updates} updates in chunks of {chunk}, {rounds} rounds: medians (smallest to largest)")
    for clock in Clock._fields:
        print("\n".join(report(clock, measured["ours"], measured["bare"], updates, chunk, interval)))


if __name__ == "__main__":
    run_command(main)
