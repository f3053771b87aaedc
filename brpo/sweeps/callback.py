"""Sweeps: how one begins, what becomes of its jobs, and how it ends.

Hydra's launchers start the jobs (`job.py`). A job that fails returns like any other, so no launcher stops at it; its
record says what happened, and the sweep names it when it ends. Imports nothing heavy.
"""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from brpo.config import RESUME_MAY_CHANGE, resume_may_change
from brpo.console import say
from brpo.errors import UserError
from brpo.exits import DONE, INTERRUPTED, WRONG_INPUT, exit_code_of, in_one_line
from brpo.installation import install
from brpo.options import require
from brpo.sweeps.folder import Job, Status, SweepFolder
from brpo.sweeps.plan import AT_A_TIME, LEADER, devices_for, ends_with_its_leader, is_local, planned_jobs

_INSTALL = {  # what brings a launcher's plugin
    "joblib": install(),
    "submitit": install("[slurm]"),
    "ray": install("[ray]", pinned=False),  # whose versions are others
}

# --- The process that was started by the user -------------------------------------------------------------------------


class Sweep:
    """The sweep that this process leads.

    Args:
        folder: its files.
        jobs: overrides of each job; none where they are not known beforehand.
        local: whether no job goes on without this process.
    """

    def __init__(self, folder: SweepFolder, jobs: list[list[str]], local: bool) -> None:
        self.folder, self.jobs, self.local = folder, jobs, local
        self.interrupted = False
        self._handlers: dict[int, Any] = {}

    def take_signals(self) -> None:
        """From now on the first SIGINT or SIGTERM lets the jobs end in order; a second one does what it does without us."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup and a shell's background jobs have it ignored
                self._handlers[number] = signal.signal(number, self._stop)

    def release_signals(self) -> None:
        """What was there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not Python's

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self.release_signals()
        self.folder.stopped.touch()
        write(2, "stopping: running jobs write a checkpoint, no other starts; a second Ctrl-C ends them at once")
        if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            return  # SLURM sends it to the jobs too, and a second one would end them without a checkpoint
        running = {job.pid for job in self.folder.read() if job.status == Status.running and job.pid}
        for pid in running - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if os.getpid() in running:  # one job at a time runs in this process; it has not begun to train
            raise KeyboardInterrupt

    def close(self, code: int) -> int:
        """Say what became of the jobs; gives the exit code of the sweep."""
        jobs = self.folder.read()
        if not jobs and code == WRONG_INPUT:
            return code  # it was refused before a job started
        total = max(len(self.jobs), len(jobs))
        done = sum(job.status == Status.done for job in jobs)
        for job in jobs:
            if job.status != Status.done:
                print(_line(job), file=sys.stderr)
        if len(jobs) < total:
            print(f"{_count(total - len(jobs))} not started", file=sys.stderr)
        status = {job.status for job in jobs}
        away = not self.local and (Status.running in status or len(jobs) < total)
        if away:
            print("What the cluster still has goes on by itself.", file=sys.stderr)
        elif len(jobs) < total or status & {Status.running, Status.interrupted}:
            print("The same command with resume=auto goes on with what is missing.", file=sys.stderr)
        sys.stderr.flush()
        interrupted = self.interrupted or code == INTERRUPTED
        if done and not away and not interrupted:
            self._report()
        say(f"{done} of {_count(total)} done\nbrpo collect {self.folder.path}")
        if interrupted:
            return INTERRUPTED
        return code if done == total else WRONG_INPUT

    def _report(self) -> None:
        """Print the final results and write the report; jobs that cannot stand beside one another are no failed sweep."""
        from brpo.reports.report import report

        try:
            found = report([self.folder.path])
            found.write(self.folder.report)
        except (UserError, OSError) as error:
            print(f"no report: {error}", file=sys.stderr, flush=True)
        else:
            say(f"{found.headline()}\nreport: {self.folder.report}/report.md")


def _count(jobs: int) -> str:
    return "1 job" if jobs == 1 else f"{jobs} jobs"


def _line(job: Job) -> str:
    status = "not finished" if job.status == Status.running else job.status
    reason = f": {job.error}" if job.status == Status.failed else ""
    return f"job {job.number} {status} ({' '.join(job.overrides)}){reason}"


class SweepCallback(Callback):
    """Hydra's word that a sweep begins."""

    leading: ClassVar[Sweep | None] = None  # None in the workers, which are other processes

    def on_multirun_start(self, config: DictConfig, **keywords: Any) -> None:
        """Make the sweep's folder with its plan."""
        code = exit_code_of(lambda: self._begin(config), debug=config.debug)
        if code:
            sys.exit(code)  # of an exception Hydra would only warn

    def _begin(self, config: DictConfig) -> None:
        folder, local = SweepFolder(Path(config.hydra.sweep.dir)), is_local(config.hydra)
        if local:
            _refuse_number_of_jobs(config.hydra.launcher.n_jobs)
        sweep = Sweep(folder, planned_jobs(config), ends_with_its_leader(config.hydra))
        _refuse_misunderstandings(sweep.jobs)
        _refuse_twins(sweep.jobs)
        sweep.folder.create(sweep.jobs, devices_for(config) if local else [])
        SweepCallback.leading = sweep
        say(f"sweep: {_count(len(sweep.jobs)) if sweep.jobs else 'jobs'} in {sweep.folder.path}")
        os.environ.pop(LEADER, None)
        os.environ.pop(AT_A_TIME, None)
        if local:  # elsewhere there is one job, in this process, or the cluster's, which go on when the leader has gone
            from joblib import effective_n_jobs

            os.environ[LEADER] = str(os.getpid())  # its workers inherit them
            at_a_time = effective_n_jobs(config.hydra.launcher.n_jobs)
            os.environ[AT_A_TIME] = str(min(at_a_time, len(sweep.jobs) or at_a_time))
            sweep.take_signals()


def _refuse_number_of_jobs(typed: Any) -> None:
    allowed = "a whole number other than 0; -1 means every core"
    require("hydra.launcher.n_jobs", typed, allowed, lambda n: type(n) is int and n != 0)


def _refuse_misunderstandings(jobs: list[list[str]]) -> None:
    """Refuse what Hydra understands otherwise than it was meant.

    Raises:
        UserError: several ablations, numbers of seeds that look like seeds, or one folder for several jobs.
    """

    def typed(key: str) -> list[str]:
        items = (item.lstrip("+").partition("=") for job in jobs for item in job)
        return [value for name, _, value in items if name == key]

    if len(ablations := dict.fromkeys(typed("sweep"))) > 1:
        raise UserError(
            f"+sweep={','.join(ablations)} would vary nothing: an ablation is a sweep of its own. Start each alone."
        )
    if len(numbers := dict.fromkeys(typed("seeds"))) > 1 and all(number.isdecimal() for number in numbers):
        each, together = ",".join(f"[{number}]" for number in numbers), ",".join(numbers)
        raise UserError(
            f"seeds={together} would be so many seeds a job, each time from 0 on. For these seeds, a job each, write "
            f"'seeds={each}'; for all of them in every job 'seeds=[{together}]'."
        )
    folders = [folder for folder in typed("run_dir") if "${" not in folder and folder not in ("", "null")]
    if shared := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(f"run_dir={shared} would be the folder of several jobs. Leave it out: each job gets one of its own.")


def _refuse_twins(jobs: list[list[str]]) -> None:
    """Refuse `resume=auto` where a job would find the run of another one.

    Raises:
        UserError: two jobs differ only in what a resumed run may change.
    """

    def identity(job: list[str]) -> frozenset[str]:
        return frozenset(item for item in job if not resume_may_change(re.split(r"[=@]", item.lstrip("+~"))[0]))

    automatic = [job for job in jobs if "resume=auto" in job and not any(item.startswith("run_dir=") for item in job)]
    if len({identity(job) for job in automatic}) < len(automatic):
        raise UserError(
            "resume=auto cannot tell the runs of this sweep apart: jobs differ only in what a resumed run may change "
            f"({', '.join(RESUME_MAY_CHANGE)}). Give each a run_dir of its own."
        )


def exit_code_of_program(main: Callable[[], Any], debug: bool = False) -> int:
    """As `exit_code_of`, for a program that may be a sweep: that ends with the names of the jobs that failed."""
    try:
        code = exit_code_of(lambda: _with_hints(main), debug)
    except SystemExit as stop:
        if SweepCallback.leading is None:
            raise
        code = stop.code if isinstance(stop.code, int) else DONE
    except Exception as error:
        if SweepCallback.leading is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"error: the launcher gave up: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)
        code = WRONG_INPUT
    if SweepCallback.leading is None:
        return code
    SweepCallback.leading.release_signals()
    return SweepCallback.leading.close(code)


def _with_hints(main: Callable[[], Any]) -> None:
    """Call `main`.

    Raises:
        UserError: the launcher's plugin is not installed; it says what installs it. A group of the configuration is null.
            Or an option does not go together with `resume=RUN`.
    """
    try:
        main()
    except (RuntimeError, MissingConfigException) as error:
        missing = str(getattr(error, "missing_cfg_file", None) or error)
        for plugin, command in _INSTALL.items():
            if re.search(rf"hydra_plugins\.hydra_{plugin}_launcher|hydra/launcher/{plugin}(_|$)", missing):
                raise UserError(f"The launcher's plugin hydra-{plugin}-launcher is not installed: {command}") from error
        raise
    except ConfigCompositionException as error:
        if any(re.match(r"resume=(?!auto$|null$)", typed) for typed in sys.argv[1:]):
            key = str(getattr(error.__cause__, "full_key", ""))
            if resume_may_change(key):
                raise UserError(f"{in_one_line(error)} Type ++{key}= to set it all the same.") from error
            raise UserError(
                f"{in_one_line(error)} With resume=RUN only these may be typed: {', '.join(RESUME_MAY_CHANGE)}."
            ) from error
        raise
    except ValueError as error:
        if "Config group override" in str(error):
            raise UserError("A group such as algo or engine cannot be null; choose one, as algo=sfac.") from error
        if "Only one of --" in str(error):
            raise UserError("--cfg shows the configuration of one run: type it without -m.") from error
        raise


# --- What jobs and the leading process share --------------------------------------------------------------------------


def write(descriptor: int, line: str) -> None:
    """One line in one piece, also where several processes write."""
    with contextlib.suppress(OSError):  # a terminal that was closed is no reason to stop a job
        os.write(descriptor, f"{line}\n".encode())


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
