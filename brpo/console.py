"""Lines to the terminal, which may have been closed, or know few characters. Imports nothing heavy."""

import contextlib
import io
import os
import sys


def say(line: str) -> None:
    """Print a line at once. A terminal or a pipe that was closed is no reason to stop a training: nothing is said then."""
    try:
        print(line, flush=True)
    except OSError:
        with contextlib.suppress(OSError):  # else the interpreter would try once more at its end, and complain
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def replace_unknown_characters() -> None:
    """Print `?` for what the terminal's encoding has no character for, such as ± in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
