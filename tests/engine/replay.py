"""A stand-in for CUDA graphs on a CPU: records the operations of a function and repeats them on the same memory.

Whatever Python computed while recording is frozen, as it is in a CUDA graph; reading a tensor's value is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brpo.algorithms.base import OfflineAlgorithm


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(function), "a value was read off the device"
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for function, args, kwargs, result in self.calls:
            if function._schema.is_mutable:
                function(*args, **kwargs)
            elif not is_view(result, (args, kwargs)):
                for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


def is_view(result: Any, inputs: Any) -> bool:
    def storages(tree: Any) -> set[int]:
        return {t.untyped_storage().data_ptr() for t in tree_leaves(tree) if isinstance(t, torch.Tensor) and t.numel()}

    return bool(storages(result) & storages(inputs))


def tensors_of(algorithm: OfflineAlgorithm) -> list[torch.Tensor]:
    states = [optimizer.state for optimizer in algorithm.optimizers_by_part.values()]
    inside = [leaf for state in states for leaf in tree_leaves(dict(state)) if isinstance(leaf, torch.Tensor)]
    return [*algorithm.state_dict().values(), *inside]


def capture_for(algorithm: OfflineAlgorithm) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """As `cuda_capture`: recording leaves the weights, optimizers and counters as they were."""

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        tensors = tensors_of(algorithm)
        before = [tensor.detach().clone() for tensor in tensors]
        with Recording() as recording:
            run()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)

        def replay() -> None:
            with torch.no_grad():
                recording.replay()

        return replay

    return capture
