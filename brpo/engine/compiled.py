"""`engine=compile`: whole updates through `torch.compile`: losses, gradients, optimizers, targets, records in one graph."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import lookup_backend
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as functorch_config
from torch._inductor.exc import InductorError

from brpo.algorithms.base import OfflineAlgorithm
from brpo.console import say
from brpo.engine.optimizers import FusedAdamStep, rate_type
from brpo.errors import UserError
from brpo.options import require
from brpo.types import Batch

_FAILURES = (TorchDynamoException, InductorError)  # before anything has run
# A loss's backward pass is compiled with it, so that it fails where the loss does and not in the middle of an update.
_TOGETHER = {"force_non_lazy_backward_lowering": True}


def require_backend(backend: str) -> None:
    """Refuse what is no backend that torch.compile knows.

    Raises:
        UserError: names it.
    """
    require("engine.backend", backend, "the name of a backend of torch.compile", lambda name: isinstance(name, str))
    try:
        lookup_backend(backend)
    except TorchDynamoException as error:
        raise UserError(f"engine.backend={backend} is unknown to torch.compile; inductor is the usual one.") from error


def compile_update(algorithm: OfflineAlgorithm, backend: str = "inductor", or_eager: bool = False) -> None:
    """Put a compiled version in the place of the update, for this object alone, and another in that of `pretrain`.

    Updates are made eagerly until every optimizer has its state. Parts that are not due in every update make a version for
    each combination. Where an optimizer is not torch's fused Adam, or ranks average gradients, only the losses are compiled.
    Not under autocast: gradients of what a loss keeps out of it come out wrong there.

    Args:
        algorithm: whose `update` is replaced. It must be free of graph breaks: no branch on a tensor's value, no `.item()`.
        backend: of `torch.compile`.
        or_eager: go on eagerly, with a note, where the update cannot be compiled.

    Raises:
        UserError: the backend is unknown; or, in the first compiled update, it cannot be compiled.
    """
    require_backend(backend)
    optimizers = algorithm.optimizers_by_part.values()
    if algorithm.ranks.averages or not all(FusedAdamStep.is_plain(optimizer) for optimizer in optimizers):
        compile_losses(algorithm, backend, or_eager)
        return
    _compile_method(algorithm, "update", algorithm.trained, backend, or_eager)
    if algorithm.pretrain_updates:
        _compile_method(algorithm, "pretrain", algorithm.pretrained, backend, or_eager)


def _compile_method(algorithm: OfflineAlgorithm, name: str, parts: tuple[str, ...], backend: str, or_eager: bool) -> None:
    eager = getattr(algorithm, name)
    whole = _whole_update(algorithm, eager, parts, backend)

    def update(batch: Batch) -> None:
        if not algorithm.known_optimizers():
            eager(batch)
            return
        try:
            whole(batch)
        except _FAILURES as error:
            _give_up("the update", algorithm, error, or_eager)
            setattr(algorithm, name, eager)
            eager(batch)

    setattr(algorithm, name, update)


def _give_up(what: str, algorithm: OfflineAlgorithm, error: Exception, or_eager: bool) -> None:
    """Say that something goes on eagerly, or raise."""
    reason = " ".join(str(error).split())[:300]
    if not or_eager:
        raise UserError(f"engine=compile cannot compile {type(algorithm).__name__}: {reason}") from error
    say(f"note: {what} cannot be compiled and goes on eagerly: {reason}")


def _whole_update(
    algorithm: OfflineAlgorithm, eager: Callable[[Batch], None], parts: tuple[str, ...], backend: str
) -> Callable[[Batch], None]:
    def update_and_records(batch: Batch) -> dict[str, Tensor]:
        algorithm.latest = {}
        eager(batch)
        return algorithm.latest

    function = torch.compile(_own_code(update_and_records, "update"), fullgraph=True, dynamic=False, backend=backend)
    rates: dict[str, Tensor] = {}

    def update(batch: Batch) -> None:
        given = algorithm.rates  # by a runner that captures this update
        if not rates:  # only now is the algorithm on its device
            # (1,), and as those of a captured chunk are: a float64 of no dimension is traced as a number of Python's first,
            # and all is traced and lowered again without it.
            kind = rate_type(algorithm.device)
            rates.update({name: torch.zeros(1, dtype=kind, device=algorithm.device) for name in parts})
        if given is None:
            for name, rate in rates.items():
                rate.fill_(algorithm.rate(name, algorithm.update_count))
        algorithm.rates, algorithm.due_now = given or rates, algorithm.what_is_due(algorithm.update_count)
        try:
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                algorithm.latest = function(batch)
        finally:
            algorithm.rates, algorithm.due_now = given, None

    return update


def compile_losses(algorithm: OfflineAlgorithm, backend: str = "inductor", or_eager: bool = False) -> list[str]:
    """Put a compiled version in the place of each part's loss, the method `<part>_loss`; gives their names.

    What a loss records comes out of the compiled function beside its value. `or_eager` and what is raised: `compile_update`.
    """
    names = [f"{part}_loss" for part in algorithm.optimizers_by_part if hasattr(algorithm, f"{part}_loss")]
    for name in names:
        setattr(algorithm, name, _compiled_loss(algorithm, getattr(algorithm, name), backend, or_eager))
    return names


def _compiled_loss(
    algorithm: OfflineAlgorithm, loss: Callable[..., Tensor], backend: str, or_eager: bool
) -> Callable[..., Tensor]:
    def loss_and_records(*inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        algorithm.latest = {}
        value = loss(*inputs)
        return value, algorithm.latest

    function = torch.compile(_own_code(loss_and_records, loss.__name__), fullgraph=True, dynamic=False, backend=backend)

    def run(*inputs: Any) -> Tensor:
        before = algorithm.latest
        try:
            with functorch_config.patch(_TOGETHER):
                value, recorded = function(*inputs)
        except _FAILURES as error:
            _give_up(loss.__name__, algorithm, error, or_eager)
            setattr(algorithm, loss.__name__, loss)
            algorithm.latest = before
            return loss(*inputs)
        algorithm.latest = {**before, **recorded}
        return value

    return run


def _own_code(function: Any, name: str) -> Any:
    """A copy with a code object of its own: compiled versions are kept by code object, and their number is limited."""
    code = function.__code__.replace(co_name=name, co_qualname=name)
    return FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
