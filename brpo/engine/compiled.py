"""`engine=compile`: the losses of an algorithm through `torch.compile`, the rest of an update as it is."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from brpo.algorithms.base import OfflineAlgorithm


def loss_names(algorithm: OfflineAlgorithm) -> list[str]:
    """The methods whose names end in `_loss`: each takes tensors and batches, and gives a loss for each seed."""
    names = [name for name in dir(type(algorithm)) if name.endswith("_loss")]
    return [name for name in names if callable(getattr(type(algorithm), name))]


def compile_losses(algorithm: OfflineAlgorithm, backend: str = "inductor") -> list[str]:
    """Put a compiled version in the place of each outermost loss; gives their names.

    Args:
        algorithm: whose methods are replaced, for this object alone.
        backend: of `torch.compile`.

    A loss must be free of graph breaks: no branch on a tensor's value, no `.item()`. What it records comes out of the
    compiled function beside the loss.
    """
    names = [name for name in loss_names(algorithm) if name.removesuffix("_loss") in algorithm.trained]
    for name in names:
        setattr(algorithm, name, _compiled(algorithm, getattr(algorithm, name), backend))
    return names


def _compiled(algorithm: OfflineAlgorithm, loss: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    def loss_and_records(*inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        algorithm.latest = {}
        value = loss(*inputs)
        return value, algorithm.latest

    function = torch.compile(_own_code(loss_and_records, loss.__name__), fullgraph=True, dynamic=False, backend=backend)

    def run(*inputs: Any) -> Tensor:
        before = algorithm.latest
        value, recorded = function(*inputs)
        algorithm.latest = {**before, **recorded}
        return value

    return run


def _own_code(function: Any, name: str) -> Any:
    """A copy with a code object of its own: compiled versions are kept by code object, and their number is limited."""
    code = function.__code__.replace(co_name=name, co_qualname=name)
    return FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
