"""The code that a method is made of, as a digest: comments and docstrings aside."""

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Iterable
from pathlib import Path

from torch import nn

NOT_THE_METHODS = ("torch", "lightning", "builtins", "abc", "typing")  # packages


def of_classes(kinds: Iterable[type], beside: Iterable[Path] = ()) -> str:
    """SHA-256 of classes, in an order of their own, and of files."""
    codes = [_of_class(kind) for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__))]
    return hashlib.sha256("\n".join([*codes, *map(_of_file, beside)]).encode()).hexdigest()


def of_method(algorithm: nn.Module) -> str:
    """SHA-256 of an algorithm's class, of those of its networks, of their bases, and of `brpo/functional/`."""
    kinds = {kind for module in algorithm.modules() for kind in type(module).__mro__}
    ours = [kind for kind in kinds if kind.__module__.partition(".")[0] not in NOT_THE_METHODS]
    return of_classes(ours, functions())


def functions() -> list[Path]:
    """The files of `brpo/functional/`."""
    return sorted((Path(__file__).parent / "functional").glob("*.py"))


@functools.cache
def _of_class(kind: type) -> str:
    """Empty where its source is not to be had."""
    try:
        return _bare(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):
        return ""


@functools.cache
def _of_file(path: Path) -> str:
    return _bare(path.read_text())


def _bare(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)  # and not its dump, which is another in another Python
