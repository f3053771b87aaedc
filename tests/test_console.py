"""Lines to a terminal or a pipe that is gone, or that knows few characters: in processes of their own."""

import os
import subprocess
import sys

from tests.helpers import ROOT


def python(code: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def test_a_closed_pipe_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    said = "from brpo.console import say\nfor _ in range(3):\n    say('line')\nraise SystemExit(7)"
    process = python(said, stdout=writing)
    os.close(writing)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (7, "")


def test_unknown_characters_are_replaced() -> None:
    said = "from brpo.console import replace_unknown_characters, say\nreplace_unknown_characters()\nsay('1 \u00b1 2')"
    process = python(said, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert process.communicate(timeout=60) == ("1 ? 2\n", "")
