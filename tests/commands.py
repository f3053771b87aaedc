"""Runs `train.py` and `brpo` in forks of a process that has read torch and Lightning, which takes longer than a tiny run.

Every command still has a process, streams, a folder and an environment of its own. Tests that are about the start of an
interpreter start one.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 900  # seconds of a command


class CommandServer:
    """The process that is forked; `run` is what `subprocess.run` would be, and `start` what `subprocess.Popen` would."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},  # read by imports
        )

    def run(
        self, program: str, arguments: Sequence[str], cwd: Path, environment: dict[str, str], streams: Path
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; `streams` is a folder for what it prints."""
        command = self.start(program, arguments, cwd, environment, streams)
        command.returncode = self.ask({"wait for": command.pid})
        out, err = command.communicate()
        return subprocess.CompletedProcess([program, *arguments], command.returncode, out, err)

    def start(
        self,
        program: str,
        arguments: Sequence[str],
        cwd: Path,
        environment: dict[str, str],
        streams: Path,
        *,
        new_session: bool = False,
        largest_file: int | None = None,
    ) -> "Command":
        """Start a program; `streams` is a folder for what it prints, and `largest_file` a limit in bytes."""
        files = [streams / "out", streams / "err"]
        for file in files:
            file.touch()  # to be read from the first moment on
        request = {
            "program": program,
            "arguments": list(arguments),
            "cwd": str(cwd),
            "environment": environment,
            "streams": [str(file) for file in files],
            "new_session": new_session,
            "largest_file": largest_file,
        }
        return Command(self, self.ask(request), streams)

    def ask(self, request: dict[str, Any]) -> Any:
        """Have it do something, and get its answer."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that runs commands ended with {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)


class Fork:
    """A child of this process, with what Lightning needs of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code as `subprocess` counts it, None before the end."""
        if self.returncode is None:
            child, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if child else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Command:
    """A program that runs, with what tests need of `subprocess.Popen`."""

    def __init__(self, server: CommandServer, pid: int, streams: Path) -> None:
        self.server, self.pid, self.streams = server, pid, streams
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code as `subprocess` counts it, None before the end."""
        if self.returncode is None:
            self.returncode = self.server.ask({"poll": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended: until it is asked for its end the number is its own."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = LONGEST) -> tuple[str, str]:
        """Wait for its end; what it printed."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return (self.streams / "out").read_text(), (self.streams / "err").read_text()


def serve() -> None:
    """Answer each line of the input: fork, or say how a fork has ended."""
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer_to(request)), flush=True)


def answer_to(request: dict[str, Any]) -> int | None:
    """The number of a new process, or the exit code of one as `subprocess` counts it, None where it still runs."""
    if "program" in request:
        child = os.fork()
        if child == 0:
            end(functools.partial(become, request))
        return child
    waits = "wait for" in request
    child, status = os.waitpid(request["wait for" if waits else "poll"], 0 if waits else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if child else None


def end(main: Callable[[], None]) -> NoReturn:
    """Call a main function and leave the process as an interpreter would, but without taking its modules down."""
    code: Any = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # joins threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def become(request: dict[str, Any]) -> None:
    """Be the process of a command."""
    signal.alarm(LONGEST)  # one that hangs ends with SIGALRM, and not the whole suite with it
    if request["new_session"]:
        os.setsid()
    if request["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    files = [
        os.open(os.devnull, os.O_RDONLY),
        *(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in request["streams"]),
    ]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    program = {"train.py": ROOT / "train.py", "brpo": ROOT / "brpo" / "cli.py"}[request["program"]]
    sys.argv = [str(program), *request["arguments"]]
    if "trainer.devices=2" in request["arguments"]:
        fork_the_second_rank()
    runpy.run_path(str(program), run_name="__main__")


def fork_the_second_rank() -> None:
    """Fork a process that waits until Lightning starts the second rank, and is that one: it would import all anew."""
    from lightning.pytorch.strategies.launchers import subprocess_script

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        with os.fdopen(reading) as orders:
            order = orders.read()
        if not order:  # the first rank has ended before that
            os._exit(0)
        command, environment, folder = json.loads(order)
        signal.alarm(LONGEST)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder or ".")
        sys.argv = command[1:]
        return
    os.close(reading)

    def popen(command: list[str], env: dict[str, str], cwd: str | None) -> Fork:
        with os.fdopen(writing, "w") as orders:
            json.dump([command, env, cwd], orders)
        return Fork(child)

    subprocess_script.subprocess = types.SimpleNamespace(Popen=popen)


def prepare() -> None:
    """Import and do what every run does first."""
    import torch

    from brpo import cli, launch, saved_runs  # noqa: F401
    from brpo.reports import report  # noqa: F401
    from tests.helpers import compose_config

    with contextlib.suppress(ImportError):
        import mujoco  # noqa: F401
    torch.set_num_threads(1)
    compose_config()  # Hydra looks for its plugins and builds its parser at the first time
    gc.freeze()  # forks do not look through, and so copy, what was imported


if __name__ == "__main__":
    prepare()
    serve()
