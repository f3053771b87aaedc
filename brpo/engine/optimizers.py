"""Which of torch's optimizers serve, and a shorter way to its fused Adam."""

# pyright: reportPrivateImportUsage=false
# torch does not list its `_foreach_` functions.

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW

from brpo.errors import UserError
from brpo.options import require_at_least_zero

UNUSABLE = ("LBFGS", "SparseAdam")
NOT_BY_ELEMENT = ("Adafactor", "Muon")  # mix the elements of a tensor


def check_optimizers(optimizers: Iterable[torch.optim.Optimizer], several_seeds: bool) -> None:
    """Refuse optimizers that cannot train here.

    Args:
        optimizers: one of each part.
        several_seeds: whether tensors hold several seeds, which no step may mix.

    Raises:
        UserError: names the optimizer and why.
        ValueError: a learning rate below zero.
    """
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        if kind in UNUSABLE:
            raise UserError(f"algo.optimizer: {kind} needs what is not here: a loss to call again, or sparse gradients.")
        if kind in NOT_BY_ELEMENT and several_seeds:
            raise UserError(f"algo.optimizer: {kind} steps by whole tensors, which hold all seeds: train one at a time.")
        require_at_least_zero(**{"optimizer.lr": optimizer.param_groups[0]["lr"]})


def try_step(factory: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
    """Make a step of zeros: torch looks at some options, as the number of betas, in the first step alone.

    Raises:
        ValueError: or what else torch raises, of an option that it cannot use.
    """
    parameter = torch.zeros(2, 2, requires_grad=True)
    optimizer = factory([parameter])
    if not optimizer.defaults.get("capturable"):  # of a GPU, and the algorithm is not there yet
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


def rate_type(device: torch.device) -> torch.dtype:
    """Type of a learning rate in a tensor: float32 on a GPU, whose kernel reads it so; else float64, as Python's numbers."""
    return torch.float32 if device.type == "cuda" else torch.float64


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
        self.decoupled = self.group.get("decoupled_weight_decay", False)
        self.kernel: Any = getattr(torch, "_fused_adamw_" if self.decoupled else "_fused_adam_")

    @staticmethod
    def is_plain(optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is torch's fused Adam or AdamW without further options, with one group."""
        if type(optimizer) not in (Adam, AdamW) or len(optimizer.param_groups) != 1:
            return False
        group = optimizer.param_groups[0]
        odd = group["amsgrad"] or group["maximize"] or group["differentiable"] or not group["fused"]
        return not odd and not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks

    @staticmethod
    def begin(optimizer: torch.optim.Optimizer) -> None:
        """Give a plain optimizer that has made no step yet the state that torch would at the first: zeros."""
        if not FusedAdamStep.is_plain(optimizer) or optimizer.state:
            return
        for parameter in optimizer.param_groups[0]["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    @staticmethod
    def possible(optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is plain and has made its first step."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return FusedAdamStep.is_plain(optimizer) and all("exp_avg" in optimizer.state.get(p, {}) for p in parameters)

    def stale(self) -> bool:
        """Whether the optimizer's state was replaced, as loading a checkpoint does."""
        return self.optimizer.state is not self.state

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor], rate: float | Tensor) -> None:
        """One step along gradients of the optimizer's parameters, in their order."""
        beta1, beta2 = self.group["betas"]
        torch._foreach_add_(self.steps, 1)
        if torch.compiler.is_compiling():  # the compiler does not know the kernel, and makes one of its own
            assert isinstance(rate, Tensor), "an engine that compiles gives rates as tensors"
            by_formula = self._together if self.steps[0].is_cuda else self._one_by_one
            by_formula(gradients, rate)
            return
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

    def _together(self, gradients: Sequence[Tensor], rate: Tensor) -> None:
        """What the kernel computes, all parameters in one kernel of the compiler's: launches are what a GPU waits for."""
        (beta1, beta2), decay = self.group["betas"], self.group["weight_decay"]
        step_size, correction = scales(self.steps[0], rate, beta1, beta2)
        if decay and self.decoupled:
            torch._foreach_mul_(self.parameters, 1.0 - rate * decay)
        elif decay:
            gradients = torch._foreach_add(list(gradients), self.parameters, alpha=decay)
        torch._foreach_lerp_(self.averages, list(gradients), 1.0 - beta1)
        torch._foreach_mul_(self.squares, beta2)
        torch._foreach_addcmul_(self.squares, list(gradients), list(gradients), value=1.0 - beta2)
        below = torch._foreach_sqrt(self.squares)
        torch._foreach_div_(below, correction.to(below[0].dtype))
        torch._foreach_add_(below, self.group["eps"])
        steps = torch._foreach_div(self.averages, below)
        torch._foreach_mul_(steps, step_size.to(below[0].dtype))
        torch._foreach_sub_(self.parameters, steps)

    def _one_by_one(self, gradients: Sequence[Tensor], rate: Tensor) -> None:
        """What the kernel computes (Kingma and Ba 2015, arXiv:1412.6980; AdamW: arXiv:1711.05101)."""
        (beta1, beta2), decay = self.group["betas"], self.group["weight_decay"]
        step_size, correction = adam_scales(self.steps[0], rate, beta1, beta2).to(self.averages[0].dtype).unbind()
        for parameter, gradient, average, square in zip(
            self.parameters, gradients, self.averages, self.squares, strict=True
        ):
            if decay and self.decoupled:
                parameter.mul_(1.0 - rate * decay)
            elif decay:
                gradient = gradient + decay * parameter
            average.lerp_(gradient, 1.0 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
            parameter.sub_(step_size * average / (square.sqrt() / correction + self.group["eps"]))


@torch.library.custom_op("brpo::adam_scales", mutates_args=())
def adam_scales(count: Tensor, rate: Tensor, beta1: float, beta2: float) -> Tensor:
    """`scales` as (2,), float64.

    An operator of its own, on a CPU: the compiler would fuse the two powers into the loops over the parameters, and take
    them anew for every few numbers, which was a quarter of an update.
    """
    return torch.stack(scales(count, rate, beta1, beta2))


def scales(count: Tensor, rate: Tensor, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    """`rate / (1 - beta1^count)` and `sqrt(1 - beta2^count)`, float64."""
    count = count.double()
    return rate.double() / (1.0 - beta1**count), (1.0 - beta2**count).sqrt()


@adam_scales.register_fake
def _(count: Tensor, rate: Tensor, beta1: float, beta2: float) -> Tensor:
    return count.new_empty(2, dtype=torch.float64)
