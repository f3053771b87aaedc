"""A copy of a module that follows it slowly."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Target(nn.Module):
    """Polyak average of a module: `target <- target + polyak (source - target)`. Never trained by gradient."""

    module: Any

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)
        self._pairs: tuple[nn.Module, list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def follow(self, source: nn.Module, polyak: float) -> None:
        """Move towards the source; `polyak` in (0, 1], 1 copies it."""
        if self._pairs is None or self._pairs[0] is not source:  # walking the modules costs more than the average
            self._pairs = (source, list(self.module.parameters()), list(source.parameters()))
        torch._foreach_lerp_(self._pairs[1], self._pairs[2], polyak)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Tensor:
        """What the copied module gives, without gradient."""
        return self.module(*inputs)
