"""A shorter way to torch's fused Adam."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW


class FusedAdamStep:
    """torch's fused kernel on an optimizer's own state: `Optimizer.step` without its Python, the same numbers to the bit.

    `Optimizer.step` spends more time on hooks, groups and sorting tensors by device than the kernel takes on these small
    networks. State and options stay the optimizer's, so checkpoints and everything else see no difference.

    Args:
        optimizer: one for which `possible` holds.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.group, self.state = optimizer, optimizer.param_groups[0], optimizer.state
        self.parameters: list[Tensor] = list(self.group["params"])
        states = [self.state[parameter] for parameter in self.parameters]
        self.averages = [state["exp_avg"] for state in states]
        self.squares = [state["exp_avg_sq"] for state in states]
        self.steps = [state["step"] for state in states]
        decoupled = self.group.get("decoupled_weight_decay", False)
        self.kernel: Any = getattr(torch, "_fused_adamw_" if decoupled else "_fused_adam_")

    @staticmethod
    def possible(optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is torch's plain fused Adam or AdamW, has one group and has made its first step."""
        if type(optimizer) not in (Adam, AdamW) or len(optimizer.param_groups) != 1:
            return False
        group = optimizer.param_groups[0]
        odd = group["amsgrad"] or group["maximize"] or group["differentiable"] or not group["fused"]
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        known = all("exp_avg" in optimizer.state.get(parameter, {}) for parameter in group["params"])
        return known and not odd and not hooks

    def stale(self) -> bool:
        """Whether the optimizer's state was replaced, as loading a checkpoint does."""
        return self.optimizer.state is not self.state

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor], rate: float | Tensor) -> None:
        """One step along gradients of the optimizer's parameters, in their order."""
        beta1, beta2 = self.group["betas"]
        torch._foreach_add_(self.steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        self.kernel(
            self.parameters,
            list(gradients),
            self.averages,
            self.squares,
            [],
            self.steps,
            amsgrad=False,
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=self.group["weight_decay"],
            eps=self.group["eps"],
            maximize=False,
        )
