"""The folder of a sweep: its plan, a record of every job that was started, and the locks of its devices."""

import dataclasses
import fcntl
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from brpo.console import say
from brpo.errors import UserError
from brpo.files import write_json


class Status(StrEnum):
    """How far a job has come. One that was killed stays `running`."""

    running = "running"
    done = "done"
    failed = "failed"
    interrupted = "interrupted"


@dataclass(frozen=True)
class Job:
    """What became of a job; `jobs/<number>.json`.

    Attributes:
        number: its place in the sweep, from 0.
        overrides: what was typed, with this job's values.
        algo: name of the algorithm.
        dataset: id of the data set.
        status: one of `Status`.
        exit_code: the one of `train.py`; None while it runs.
        error: the line on stderr.
        run_dir: the run's folder, relative to the sweep's; None before there was one.
        pid: process that it runs in.
    """

    number: int
    overrides: list[str]
    algo: str
    dataset: str
    status: str = Status.running
    exit_code: int | None = None
    error: str | None = None
    run_dir: str | None = None
    pid: int | None = None

    def but(self, **changes: Any) -> "Job":
        """The job with some of its fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class SweepFolder:
    """Paths and files of one sweep."""

    path: Path

    @property
    def plan(self) -> Path:
        """What the sweep is made of: the overrides of each job, and the devices that its jobs share."""
        return self.path / "sweep.json"

    @property
    def jobs(self) -> Path:
        """Folder of the records and of what each job printed."""
        return self.path / "jobs"

    @property
    def stopped(self) -> Path:
        """Where this file is, no further job starts."""
        return self.path / "stopped"

    @property
    def table(self) -> Path:
        """What `brpo collect` writes."""
        return self.path / "results.csv"

    @property
    def report(self) -> Path:
        """Folder of the report with which a sweep ends."""
        return self.path / "report"

    def log(self, number: int) -> Path:
        """What a job printed, where the terminal belongs to several jobs."""
        return self.jobs / f"{number}.log"

    def create(self, jobs: Sequence[Sequence[str]], devices: Sequence[str]) -> None:
        """Make the folder with its plan; records of an earlier sweep in the same folder go.

        Args:
            jobs: overrides of each job.
            devices: values of CUDA_VISIBLE_DEVICES, one for each device that the jobs share; none leaves them as they are.

        Raises:
            OSError: it cannot be written.
        """
        self.jobs.mkdir(parents=True, exist_ok=True)
        for old in self.jobs.iterdir():
            if re.fullmatch(r"\d+\.(json|log)", old.name):
                old.unlink()
        self.stopped.unlink(missing_ok=True)
        write_json(self.plan, {"jobs": [list(job) for job in jobs], "devices": list(devices)})

    def read_plan(self) -> tuple[list[list[str]], list[str]]:
        """Overrides of each job, and devices.

        Raises:
            UserError: this is no folder of a sweep.
        """
        try:
            plan = json.loads(self.plan.read_text())
            return plan["jobs"], plan["devices"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is no folder of a sweep: its sweep.json cannot be read. They lie in runs/sweeps/."
            ) from error

    def varying(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Those of a job's overrides that not every job of the sweep has."""
        plan = self.read_plan()[0]
        common = set(plan[0]).intersection(*plan) if len(plan) > 1 else set()
        return tuple(item for item in overrides if item not in common)

    def write(self, job: Job) -> None:
        """Write the record of a job, atomically."""
        write_json(self.jobs / f"{job.number}.json", dataclasses.asdict(job))

    def forget(self, job: Job) -> None:
        """Drop the record of a job that did not start after all."""
        (self.jobs / f"{job.number}.json").unlink(missing_ok=True)

    def read(self) -> list[Job]:
        """The jobs that were started, by number.

        Raises:
            UserError: a record is not one of ours.
        """
        found = []
        for path in self.jobs.glob("*.json"):
            try:
                found.append(Job(**json.loads(path.read_text())))
            except (OSError, ValueError, TypeError) as error:
                raise UserError(f"{path} is no record of a job. Delete it, and the job counts as not started.") from error
        return sorted(found, key=lambda job: job.number)

    def job(self, number: int) -> Job | None:
        """The record of one job; None where there is none, or none that can be read."""
        try:
            return Job(**json.loads((self.jobs / f"{number}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def run_folder(self, job: Job) -> Path | None:
        """The folder of a job's run."""
        return None if job.run_dir is None else (self.path / job.run_dir).resolve()

    def result(self, job: Job) -> Path | None:
        """The result file of a job's run; of a job that failed only one that is newer, of a run that was continued since."""
        run, record = self.run_folder(job), self.jobs / f"{job.number}.json"
        path = run / "result.json" if run else None
        if path is None or not path.exists():
            return None
        return path if job.status != Status.failed or path.stat().st_mtime_ns > record.stat().st_mtime_ns else None


def claim_device(folder: Path, devices: Sequence[str], turn: int = 0) -> tuple[str, TextIOWrapper]:
    """Take a device that as few other processes hold as possible, for as long as the file that comes back is open.

    A device has places, each a lock in `folder`; all first places are taken before a second one is. Where the file system
    has no locks, the devices are taken in turn.

    Args:
        folder: where the locks are.
        devices: names of the devices, at least one.
        turn: of the caller, for want of locks.

    Raises:
        OSError: the folder cannot be written.
    """
    for place in itertools.count():
        for device in devices:
            file = (folder / f".device-{device.replace('/', '-')}.{place}.lock").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
            except OSError as error:
                taken = devices[turn % len(devices)]
                say(f"note: the file system has no locks ({error.strerror}); device {taken} by its turn")
                return taken, file
            else:
                return device, file
    raise AssertionError("there is always a further place")
