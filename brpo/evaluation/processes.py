"""Environments side by side in several processes, each of which steps a group of them."""

import atexit
import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium
import numpy as np

from brpo.evaluation.group import EnvGroup


class ProcessEnvs:
    """As `EnvGroup`, with the environments shared out to processes.

    Gymnasium's AsyncVectorEnv has a process and a message for each environment; a step of a small simulator takes less time
    than a message. Here a message carries the actions of a group.

    Args:
        make: makes one environment.
        count: environments.
        processes: >= 1 and <= count.

    Raises:
        RuntimeError: from any call, when a process failed; holds its error.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], count: int, processes: int) -> None:
        # Spawned, not forked: this process may hold a GPU and threads.
        context = multiprocessing.get_context("spawn")
        self.groups = np.array_split(np.arange(count), processes)
        self.connections: list[Connection] = []
        self.processes = []
        atexit.register(self.close)  # else the interpreter would send them SIGTERM at its end, and wait
        for group in self.groups:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, cloudpickle.dumps(make), len(group)), daemon=True)
            process.start()
            there.close()
            self.connections.append(here)
            self.processes.append(process)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """First observations (count, ...) for a seed each."""
        return self._ask([("reset", ([seeds[k] for k in group],)) for group in self.groups])[0]

    def step(self, actions: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards, terminated and truncated (count, ...) for actions (count, ...); see `EnvGroup`."""
        observations, *rest = self._ask([("step", (actions[group], running[group])) for group in self.groups])
        rewards, terminated, truncated = rest
        return observations, rewards, terminated, truncated

    def _ask(self, requests: list[tuple[str, tuple[Any, ...]]]) -> list[np.ndarray]:
        try:
            for connection, request in zip(self.connections, requests, strict=True):
                connection.send(request)
            received = [connection.recv() for connection in self.connections]
        except (EOFError, OSError):  # it may have died since its last answer, too
            self._raise_last_words()
            raise RuntimeError(
                "a process with evaluation environments has ended. It imports the program anew: in a script of your own, "
                "train under `if __name__ == '__main__':`, or with eval.processes=1"
            ) from None
        for answer in received:
            _refuse(answer)
        return [np.concatenate(parts) for parts in zip(*received, strict=True)]

    def _raise_last_words(self) -> None:
        """The error that a process sent before it ended, where there is one: it may have failed before it was asked."""
        for connection in self.connections:
            with contextlib.suppress(EOFError, OSError):
                while connection.poll():
                    _refuse(connection.recv())

    def close(self) -> None:
        """End the processes."""
        atexit.unregister(self.close)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.send(("close", ()))
                connection.close()
        for process in self.processes:
            process.join(timeout=5)
            process.kill()
        self.connections, self.processes = [], []


def _refuse(answer: Any) -> None:
    if isinstance(answer, str):
        raise RuntimeError(f"an evaluation environment failed: {answer}")


def _serve(connection: Connection, make: bytes, count: int) -> None:
    """The other side: step a group until told to close, or until the leading process is gone."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C and SLURM reach all; the leading process decides
        signal.signal(number, signal.SIG_IGN)
    try:
        envs = EnvGroup(cloudpickle.loads(make), count)
        while True:
            kind, arguments = connection.recv()
            if kind == "close":
                return
            connection.send((envs.reset(*arguments),) if kind == "reset" else envs.step(*arguments))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
