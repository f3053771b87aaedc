"""SIGINT and SIGTERM set a flag; the run looks at it between chunks and between the steps of a rollout."""

import signal
from types import FrameType
from typing import Any


class Signals:
    """While entered, the first SIGINT or SIGTERM is noted; a second one does what it does without us."""

    HANDLED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in self.HANDLED:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup and a shell's background jobs have it ignored
                self._before[number] = signal.getsignal(number)
        self.install()
        return self

    def install(self) -> None:
        """Be the handler (again, after a library has put its own in place); not once a signal has been noted."""
        for number in self._before if self.received is None else ():
            signal.signal(number, self._note)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not Python's

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for handled in self._before:
            signal.signal(handled, signal.SIG_DFL)
