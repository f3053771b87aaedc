"""Finding run folders and reading their result files. Nothing else of a run is opened."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from brpo.errors import UserError
from brpo.reports import compact
from brpo.reports.seed_result import METRICS, SeedResult, from_result
from brpo.runs import RunFolder
from brpo.sweeps.folder import Status, SweepFolder


@dataclass
class Found:
    """What a report is made of.

    Attributes:
        results: seeds of the finished runs.
        missing: a line for each run that is not finished, or has no evaluations.
        names: of the run folders, each of its own.
    """

    results: list[SeedResult] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    names: dict[str, Path] = field(default_factory=dict)

    def name(self, folder: Path) -> str:
        """The label of a run folder, and more parts of its path where another one has that."""
        name, whole, count = label(folder), folder.resolve(), 3
        while self.names.setdefault(name, whole) != whole:
            count += 1
            name = Path(*whole.parts[-count:]).as_posix()
        return name


def find(paths: Sequence[Path]) -> Found:
    """The results below some paths: run folders, folders that hold some, sweeps, and what a report wrote.

    Raises:
        UserError: a path holds none of these, or a file that should be ours is not.
    """
    found = Found()
    for path in paths:
        before = len(found.results) + len(found.missing)
        _add(found, path)
        if len(found.results) + len(found.missing) == before:
            raise UserError(
                f"{path} holds no results. Allowed are a run folder (with result.json), a folder with runs below it, "
                f"a sweep's folder, and a folder or {compact.RUNS} that brpo report wrote."
            )
    runs = {result.run for result in found.results if result.curve}
    lacking = [line for line in dict.fromkeys(found.missing) if line.split(": ")[0] not in runs]  # now, if not before
    once: dict[tuple[Any, ...], SeedResult] = {}
    for result in found.results:  # the first of a run and its copies, but one with its curve
        key = (result.run, result.seed, result.protocol, *result.values.items())
        if key not in once or (result.curve and not once[key].curve):
            once[key] = result
    return Found(list(once.values()), lacking)


def run_below(path: Path) -> Path | None:
    """A run below a folder, finished or not, or the folder of a sweep; None where there is neither."""
    return path if SweepFolder(path).plan.exists() else next(_below(path), None)


def _add(found: Found, path: Path) -> None:
    if path.name == compact.RUNS or (path / compact.RUNS).exists():
        folder = path if path.is_dir() else path.parent
        found.results += compact.read(folder)
        found.missing += compact.read_missing(folder)
    elif SweepFolder(path).plan.exists():
        _add_sweep(found, SweepFolder(path))
    else:
        for folder in _below(path):
            _add_run(found, folder)


def _below(path: Path) -> Iterator[Path]:
    """Run folders: those with a result, and those where a run was started."""
    results = {file.parent for file in path.rglob("result.json")}
    started = {file.parent for file in path.rglob("config.yaml") if RunFolder(file.parent).checkpoints.is_dir()}
    yield from sorted(results | started)


def _add_sweep(found: Found, sweep: SweepFolder) -> None:
    jobs, folders = {job.number: job for job in sweep.read()}, []
    plan = sweep.read_plan()[0]
    for number in sorted({*range(len(plan)), *jobs}):
        job = jobs.get(number)
        folder = sweep.run_folder(job) if job is not None else None
        if job is None or folder is None or (job.status == Status.failed and sweep.result(job) is None):
            what = "not started" if job is None else f"{job.status}: {job.error}" if job.error else job.status
            found.missing.append(f"job {number} ({' '.join(sweep.varying(job.overrides if job else plan[number]))}): {what}")
        elif folder not in folders:
            folders.append(folder)
            _add_run(found, folder)


def _add_run(found: Found, folder: Path) -> None:
    name = found.name(folder)
    if not RunFolder(folder).result.exists():
        found.missing.append(f"{name}: not finished")
        return
    results = read_run(folder, name)
    if results[0].metric is None:
        found.missing.append(f"{name}: no evaluations, for want of its environment")
    else:
        found.results += results
        if not any(result.curve for result in results):
            found.missing.append(f"{name}: the learning curve, for want of a metrics.csv with its evaluations")


def label(folder: Path) -> str:
    """A name for a run folder: below the working folder its path, else its last three parts."""
    path = Path(os.path.relpath(folder))
    return Path(*folder.resolve().parts[-3:]).as_posix() if ".." in path.parts else path.as_posix()


def read_run(folder: Path, name: str | None = None) -> list[SeedResult]:
    """The seeds of a finished run, which is called `name`, or by its label.

    Raises:
        UserError: `result.json` or `metrics.csv` is not one of ours.
    """
    files = RunFolder(folder)
    path = files.result
    try:
        results = from_result(name or label(folder), json.loads(path.read_text()))
        path = files.metrics
        metric = results[0].metric
        return results if metric is None or not path.exists() else _with_curves(path, results, METRICS[metric].column)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not a result file of ours: {type(error).__name__} {error}.") from error


def _with_curves(path: Path, results: Sequence[SeedResult], column: str) -> list[SeedResult]:
    """The results with those evaluations that were made as they say; a resumed run may have others too."""
    protocol, curves = results[0].protocol, {result.seed: [] for result in results}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["mode"], int(row["episodes"])) == (protocol.mode, protocol.episodes):
                curves[int(row["seed"])].append((int(row["update"]), float(row[column])))
    return [replace(result, curve=tuple(curves[result.seed])) for result in results]
