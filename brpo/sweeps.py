"""Sweeps: how many jobs at a time, a device for each, what became of them, and how a sweep ends.

Hydra's launchers start the jobs. A job that fails returns like any other, so no launcher stops at it; its record says what
happened, and the sweep names it when it ends. Imports nothing heavy.
"""

import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from brpo.errors import Interrupted, UserError
from brpo.exits import DONE, INTERRUPTED, WRONG_INPUT, exit_code_of, outcome_of
from brpo.sweep_folder import Job, Status, SweepFolder, claim_device

UNEXPECTED = 1  # exit code of an error that is ours
_INSTALL = {  # what brings a launcher's plugin
    "joblib": "pip install -c constraints.txt -e .",
    "submitit": "pip install -c constraints.txt -e '.[slurm]'",
    "ray": "pip install -e '.[ray]'",
}

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


def _is_local(hydra: Any) -> bool:
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
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self.release_signals()
        self.folder.stopped.touch()
        _write(2, "stopping: running jobs write a checkpoint, no other starts; a second Ctrl-C ends them at once")
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
        print(f"{done} of {_count(total)} done\nbrpo collect {self.folder.path}", flush=True)
        if self.interrupted or code == INTERRUPTED:
            return INTERRUPTED
        return code if done == total else WRONG_INPUT


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
        local = _is_local(config.hydra)
        sweep = Sweep(SweepFolder(Path(config.hydra.sweep.dir)), planned_jobs(config), local)
        _refuse_twins(sweep.jobs)
        sweep.folder.create(sweep.jobs, _devices(config) if local else [])
        SweepCallback.leading = sweep
        print(f"sweep: {_count(len(sweep.jobs)) if sweep.jobs else 'jobs'} in {sweep.folder.path}", flush=True)
        if local:  # elsewhere the jobs are the cluster's, and go on when the one who waits for them has gone
            sweep.take_signals()


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
        code = exit_code_of(lambda: _with_install_hint(main), debug)
    except SystemExit as stop:
        if SweepCallback.leading is None:
            raise
        code = stop.code if isinstance(stop.code, int) else DONE
    except Exception as error:
        if SweepCallback.leading is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"error: the launcher gave up: {type(error).__name__}: {_first_line(error)}", file=sys.stderr, flush=True)
        code = WRONG_INPUT
    if SweepCallback.leading is None:
        return code
    SweepCallback.leading.release_signals()
    return SweepCallback.leading.close(code)


def _with_install_hint(main: Callable[[], Any]) -> None:
    """Call `main`.

    Raises:
        UserError: the launcher's plugin is not installed; it says what installs it.
    """
    try:
        main()
    except (RuntimeError, MissingConfigException) as error:
        missing = str(getattr(error, "missing_cfg_file", None) or error)
        for plugin, command in _INSTALL.items():
            if re.search(rf"hydra_plugins\.hydra_{plugin}_launcher|hydra/launcher/{plugin}(_|$)", missing):
                raise UserError(f"The launcher's plugin hydra-{plugin}-launcher is not installed: {command}") from error
        raise


# --- A job ------------------------------------------------------------------------------------------------------------

Run = Callable[[Callable[[Path], None]], Any]  # makes a run; calls what it is given with the run's folder
_claim: tuple[str, TextIOWrapper] | None = None  # the device of this process, and its lock


def run_job(config: DictConfig, run: Run) -> None:
    """Run one job of a sweep and keep its record. Whatever happens to the job, this returns.

    Raises:
        SystemExit: a signal arrived, and the job runs in the process that leads the sweep.
    """
    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)  # a cluster may start a job elsewhere
    folder = SweepFolder(Path(hydra.sweep.dir))
    algo = str(config.algo.get("_target_")).split(".")[-2]
    job = Job(hydra.job.num, list(hydra.overrides.task), algo, str(config.dataset), pid=os.getpid())
    if SweepCallback.leading is not None:
        if folder.stopped.exists() or _recorded(folder, job, run, config.debug).status == Status.interrupted:
            sys.exit(INTERRUPTED)
    elif _is_local(hydra):
        _run_in_worker(folder, job, run, config.debug)
    else:
        _recorded(folder, job, lambda on_folder: _run_until_stopped(folder, run, on_folder), config.debug)


def _run_in_worker(folder: SweepFolder, job: Job, run: Run, debug: bool) -> None:
    """Run a job in a process that shares devices and terminal with others, and makes one job after another."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a worker that dies takes the whole sweep with it
        signal.signal(number, signal.SIG_IGN)
    if folder.stopped.exists():
        return
    _pin(folder)
    with _printing_to(folder.log(job.number)) as terminal:
        _write(terminal, f"job {job.number} starts: {' '.join(folder.varying(job.overrides))}")
        start = time.monotonic()
        job = _recorded(folder, job, lambda on_folder: _run_until_stopped(folder, run, on_folder), debug)
        place = os.path.relpath(folder.run_folder(job) or folder.log(job.number))
        _write(terminal, f"job {job.number} {job.status} after {time.monotonic() - start:.0f} s: {job.error or place}")


def _run_until_stopped(folder: SweepFolder, run: Run, on_folder: Callable[[Path], None]) -> None:
    """Run with SIGTERM ending the job and not its process; SIGUSR2 too, by which submitit says that the time is up."""
    handlers = {signal.SIGTERM: signal.default_int_handler, signal.SIGUSR2: lambda *_: signal.raise_signal(signal.SIGTERM)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        if folder.stopped.exists():  # looked at after the handler is there: the signal may have come before
            raise Interrupted
        run(on_folder)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not Python's


def _recorded(folder: SweepFolder, job: Job, run: Run, debug: bool) -> Job:
    """Run a job between the two states of its record. A job that was interrupted before it had a run has none."""

    def on_folder(path: Path) -> None:
        nonlocal job
        job = job.but(run_dir=os.path.relpath(path, folder.path))
        folder.write(job)

    folder.write(job)
    code, error = _outcome(lambda: run(on_folder), debug)
    status = {DONE: Status.done, INTERRUPTED: Status.interrupted}.get(code, Status.failed)
    job = job.but(status=status, exit_code=code, error=error and error.removeprefix("error: ").removeprefix("interrupted: "))
    if status == Status.interrupted and job.run_dir is None:
        folder.forget(job)
    else:
        folder.write(job)
    return job


def _outcome(run: Callable[[], Any], debug: bool) -> tuple[int, str | None]:
    """As `outcome_of`, also for what no one foresaw: a sweep goes on after it."""
    try:
        return outcome_of(run, debug)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return UNEXPECTED, f"{type(error).__name__}: {_first_line(error)}"


def _pin(folder: SweepFolder) -> None:
    """Give this process a device for its whole life: once CUDA has started, it does not look at the variable again."""
    global _claim
    devices = folder.read_plan()[1]
    if _claim is None and devices:
        _claim = claim_device(folder.path, devices)
        os.environ["CUDA_VISIBLE_DEVICES"] = _claim[0]


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[int]:
    """Send what this process prints, C libraries included, to a file; gives the descriptor of stdout as it was."""
    sys.stdout.flush()
    sys.stderr.flush()
    stdout, stderr = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield stdout
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.close(stdout)
        os.close(stderr)


def _write(descriptor: int, line: str) -> None:
    """One line in one piece, also where several processes write."""
    with contextlib.suppress(OSError):  # a terminal that was closed is no reason to stop a job
        os.write(descriptor, f"{line}\n".encode())


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
