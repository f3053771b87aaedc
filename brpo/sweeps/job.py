"""One job of a sweep: its device, its record, and what a signal does to it. Imports nothing heavy."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from brpo.config import algorithm_name
from brpo.errors import Interrupted
from brpo.exits import DONE, INTERRUPTED, outcome_of
from brpo.sweeps.callback import SweepCallback, first_line, write
from brpo.sweeps.folder import Job, Status, SweepFolder, claim_device
from brpo.sweeps.plan import LEADER, is_local, readable

WATCH_SECONDS = 2.0  # between looks at whether the leader still lives
UNEXPECTED = 1  # exit code of an error that is ours
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
    job = Job(hydra.job.num, list(map(readable, hydra.overrides.task)), *_algorithm_and_dataset(config), pid=os.getpid())
    if SweepCallback.leading is not None:
        if folder.stopped.exists() or _recorded(folder, job, run, config.debug).status == Status.interrupted:
            sys.exit(INTERRUPTED)
    elif is_local(hydra):
        _run_in_worker(folder, job, run, config.debug)
    else:
        _recorded(folder, job, lambda on_folder: _run_until_stopped(folder, run, on_folder), config.debug)


def _algorithm_and_dataset(config: DictConfig) -> tuple[str, str]:
    """For the job's record. Nothing has been checked yet: what is wrong with them the run itself says, and fails alone."""
    try:
        return algorithm_name(config), str(config.dataset)
    except Exception:  # an interpolation of what is not there, an algo that is no mapping
        return "unknown", "unknown"


def _run_in_worker(folder: SweepFolder, job: Job, run: Run, debug: bool) -> None:
    """Run a job for a process that shares devices and terminal with others, and makes one job after another.

    The job has a process of its own: what kills it, as the kernel does when memory runs out, ends the job alone. A worker
    that dies takes the whole sweep with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if folder.stopped.exists() or _left_alone():
        return
    _pin(folder, job.number)
    with _printing_to(folder.log(job.number)) as terminal:
        write(terminal, f"job {job.number} starts: {' '.join(folder.varying(job.overrides))}")
        start = time.monotonic()
        try:
            job = _in_a_process(folder, job, run, debug)
        except Exception as error:  # no memory for a process, or torch cannot be imported
            traceback.print_exc()
            reason = f"{type(error).__name__}: {first_line(error)}"
            job = job.but(status=Status.failed, exit_code=UNEXPECTED, error=reason)
            folder.write(job)
        place = os.path.relpath(folder.run_folder(job) or folder.log(job.number))
        write(terminal, f"job {job.number} {job.status} after {time.monotonic() - start:.0f} s: {job.error or place}")


def _in_a_process(folder: SweepFolder, job: Job, run: Run, debug: bool) -> Job:
    """Run a job in a process of its own, and wait for it; gives its record."""
    import brpo.launch  # noqa: F401  # torch and Lightning: once, and not for each job; neither starts CUDA or a thread

    worker, child = os.getpid(), os.fork()
    if child == 0:
        _be_the_job(folder, job, run, debug, worker)
    with _when_left_alone(lambda: _end(child)):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    recorded = folder.job(job.number)
    if recorded is None and code == DONE:
        return job.but(status=Status.interrupted)  # before it had a run
    if recorded is not None and recorded.status != Status.running:
        return recorded
    error = _killed(-code) if code < 0 else f"its process ended with {code} and left no word"
    job = (recorded or job).but(status=Status.failed, exit_code=128 - code if code < 0 else code, error=error)
    folder.write(job)
    return job


def _be_the_job(folder: SweepFolder, job: Job, run: Run, debug: bool, worker: int) -> NoReturn:
    """The job's own process: run it, keep its record, and leave nothing of the worker's to be done here."""
    code = UNEXPECTED
    multiprocessing.set_start_method("spawn", force=True)  # else its own processes would be told the worker's: joblib's
    try:
        with _when_left_alone(lambda: _end(os.getpid()), lambda: os.getppid() != worker):
            until_stopped = functools.partial(_run_until_stopped, folder, run)
            _recorded(folder, job.but(pid=os.getpid()), until_stopped, debug)
        code = DONE
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _end(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)


def _killed(number: int) -> str:
    memory = "; the kernel does that when memory runs out" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{memory}"


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


def _left_alone() -> bool:
    """Whether the process that leads the sweep is gone, and this worker of its has another parent now."""
    return os.environ.get(LEADER, str(os.getppid())) != str(os.getppid())


@contextlib.contextmanager
def _when_left_alone(end: Callable[[], None], left_alone: Callable[[], bool] = _left_alone) -> Iterator[None]:
    """End the job, with its checkpoint, when its leader was killed: who starts the sweep again would find it busy."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            if left_alone():
                end()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _recorded(folder: SweepFolder, job: Job, run: Run, debug: bool) -> Job:
    """Run a job between the two states of its record. A job that was interrupted before it had a run has none."""

    def on_folder(path: Path) -> None:
        nonlocal job
        job = job.but(run_dir=os.path.relpath(path.resolve(), folder.path.resolve()))
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
        return UNEXPECTED, f"{type(error).__name__}: {first_line(error)}"


def _pin(folder: SweepFolder, turn: int) -> None:
    """Give this process, and the jobs that it starts, a device for its whole life."""
    global _claim
    devices = folder.read_plan()[1]
    if _claim is None and devices:
        _claim = claim_device(folder.path, devices, turn)
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
