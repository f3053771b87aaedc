"""Mish on a CPU by one exponential instead of three transcendental functions, which take as long as half the products."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 20.0  # from here on mish(x) = x in float64 too


def mish(inputs: Tensor) -> Tensor:
    """`x tanh(log(1 + exp(x)))`, elementwise. Source: Misra (2019), arXiv:1908.08681.

    On a CPU as `x h / (1 + h)` with `h = w + w^2/2` and `w = exp(x)`, the same function. On other devices, and for types of
    less precision, torch's own.
    """
    if inputs.device.type != "cpu" or inputs.dtype not in (torch.float32, torch.float64):
        return F.mish(inputs)
    if torch.compiler.is_compiling():  # which fuses the formula, forward and backward
        half = _half(inputs)
        return inputs * (half / (1.0 + half))
    if torch.is_grad_enabled() and inputs.requires_grad:
        return _Mish.apply(inputs)  # type: ignore[return-value]
    return _forward(inputs)


def _half(inputs: Tensor) -> Tensor:
    grown = inputs.clamp(max=LARGEST).exp()
    return torch.addcmul(grown, grown, grown, value=0.5)


def _forward(inputs: Tensor) -> Tensor:
    grown = inputs.clamp(max=LARGEST).exp_()
    half = grown.addcmul_(grown, grown, value=0.5)
    return half.div_(half + 1.0).mul_(inputs)


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return _forward(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The derivative `h/(1+h) + x w (1+w) / (1+h)^2`."""
        (inputs,) = ctx.saved_tensors
        grown = inputs.clamp(max=LARGEST).exp_()
        half = torch.addcmul(grown, grown, grown, value=0.5)
        over = (half + 1.0).reciprocal_()
        slope = grown.addcmul_(grown, grown).mul_(over).mul_(inputs).add_(half).mul_(over)
        return slope.mul_(gradient)
