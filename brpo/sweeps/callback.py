"""Sweeps: how many jobs at a time, a device for each, what became of them, and how a sweep ends.

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

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from brpo.errors import UserError
from brpo.exits import DONE, INTERRUPTED, WRONG_INPUT, exit_code_of, in_one_line
from brpo.sweeps.folder import Job, Status, SweepFolder

_INSTALL = {  # what brings a launcher's plugin
    "joblib": "pip install -c constraints.txt -e .",
    "submitit": "pip install -c constraints.txt -e '.[slurm]'",
    "ray": "pip install -e '.[ray]'",
}

# In the environment of the workers: the process that leads the sweep, and how many jobs share the machine.
LEADER, AT_A_TIME = "BRPO_SWEEP_LEADER", "BRPO_SWEEP_JOBS"

# --- Before the jobs --------------------------------------------------------------------------------------------------


def sweep_jobs(*, _root_: Any) -> int:
    """Jobs at a time: one for each GPU where training may use one, else one for each share of the cores; never idle ones.

    A job takes `engine.threads` cores, else OMP_NUM_THREADS, else one. Joblib knows how many this process may use.
    """
    from joblib import cpu_count

    places = len(_devices(_root_)) or cpu_count() // max(1, _threads(_root_))
    return max(1, min(places, len(planned_jobs(_root_)) or places))


def visible_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, else the numbers of the GPUs. CUDA itself is not started."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def planned_jobs(config: Any) -> list[list[str]]:
    """Overrides of each job of a sweep; none where Hydra's basic sweeper does not decide it."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if not str(config.hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
        return []
    try:
        typed = [
            *(f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()),
            *config.hydra.overrides.task,
        ]
        overrides = OverridesParser.create().parse_overrides(typed)
        return [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
    except (HydraException, AssertionError, ValueError):  # a pattern as in algo=glob(*) is resolved by Hydra alone
        return []


def _devices(config: Any) -> list[str]:
    return [] if config.trainer.get("accelerator") == "cpu" else visible_devices()


def _threads(config: Any) -> int:
    threads = config.engine.threads or os.environ.get("OMP_NUM_THREADS", "1")
    return int(threads) if str(threads).isdecimal() else 1


def jobs_at_a_time() -> int:
    """Jobs of a local sweep that share the machine with this one, itself included; 1 outside of such a sweep."""
    return int(os.environ.get(AT_A_TIME, "1"))


def is_local(hydra: Any) -> bool:
    """Whether the jobs run in processes of this machine that share its devices and its terminal."""
    return str(hydra.launcher.get("_target_")).endswith(".JoblibLauncher")


# --- The process that was started by the user -------------------------------------------------------------------------


class Sweep:
    """The sweep that this process leads.

    Args:
        folder: its files.
        jobs: overrides of each job; none where they are not known beforehand.
        local: whether its jobs are processes of this machine, which end with the sweep.
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
        print(f"{done} of {_count(total)} done\nbrpo collect {self.folder.path}", flush=True)
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
            print(f"{found.headline()}\nreport: {self.folder.report}/report.md")


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
        local = is_local(config.hydra)
        sweep = Sweep(SweepFolder(Path(config.hydra.sweep.dir)), planned_jobs(config), local)
        _refuse_misunderstandings(sweep.jobs)
        _refuse_twins(sweep.jobs)
        sweep.folder.create(sweep.jobs, _devices(config) if local else [])
        SweepCallback.leading = sweep
        print(f"sweep: {_count(len(sweep.jobs)) if sweep.jobs else 'jobs'} in {sweep.folder.path}", flush=True)
        os.environ.pop(LEADER, None)
        os.environ.pop(AT_A_TIME, None)
        if local:  # elsewhere the jobs are the cluster's, and go on when the one who waits for them has gone
            from joblib import effective_n_jobs

            os.environ[LEADER] = str(os.getpid())  # its workers inherit them
            os.environ[AT_A_TIME] = str(effective_n_jobs(config.hydra.launcher.n_jobs))
            sweep.take_signals()


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
    folders = [folder for folder in typed("run_dir") if "${" not in folder]
    if shared := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(f"run_dir={shared} would be the folder of several jobs. Leave it out: each job gets one of its own.")


def _refuse_twins(jobs: list[list[str]]) -> None:
    """Refuse `resume=auto` where a job would find the run of another one.

    Raises:
        UserError: two jobs differ only in what a resumed run may change.
    """
    from brpo.config import RESUME_MAY_CHANGE, resume_may_change

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
            from brpo.config import RESUME_MAY_CHANGE, resume_may_change

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
