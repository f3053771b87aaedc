"""SIGINT and SIGTERM set a flag; the run looks at it between chunks and between the steps of a rollout."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


class Signals(Callback):
    """While entered, the first SIGINT or SIGTERM is noted; a second one does what it does without us.

    It comes first in the list of callbacks: Lightning puts a SIGTERM handler of its own around ours when a training starts,
    which would exit with 0, and confer with the other ranks while they do something else.
    """

    HANDLED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        main = threading.current_thread() is threading.main_thread()  # Python delivers signals to no other
        for number in self.HANDLED if main else ():
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup and a shell's background jobs have it ignored
                self._before[number] = signal.getsignal(number)
        self.install()
        return self

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Be the handler again."""
        self.install()

    def install(self) -> None:
        """Be the handler; not once a signal has been noted."""
        for number in self._before if self.received is None else ():
            signal.signal(number, self._note)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not Python's

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for handled in self._before:
            signal.signal(handled, signal.SIG_DFL)
