"""Mish on a CPU by one sigmoid instead of three transcendental functions, which take as long as half the products."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 20.0  # from here on mish(x) = x in float64 too


def mish(inputs: Tensor) -> Tensor:
    """`x tanh(log(1 + exp(x)))`, elementwise. Source: Misra (2019), arXiv:1908.08681.

    On a CPU as `x u / (2 - u)` with `u = s (2 - s)` and `s = sigmoid(x)`, the same function, which
    benchmarks/layers.py measures; in a compiled graph as `x h / (1 + h)` with `h = w + w^2/2` and `w = exp(x)`. On other
    devices, and for types of less precision, torch's own.
    """
    if inputs.device.type != "cpu" or inputs.dtype not in (torch.float32, torch.float64):
        return F.mish(inputs)
    if torch.compiler.is_compiling():  # which fuses the formula, forward and backward
        grown = inputs.clamp(max=LARGEST).exp()
        half = torch.addcmul(grown, grown, grown, value=0.5)
        return inputs * (half / (1.0 + half))
    if torch.is_grad_enabled() and inputs.requires_grad:
        return _Mish.apply(inputs)  # type: ignore[return-value]
    return _forward(inputs)


def _forward(inputs: Tensor) -> Tensor:
    sigmoid = inputs.sigmoid()
    share = (2.0 - sigmoid).mul_(sigmoid)  # u
    return share.div_(torch.sub(2.0, share, out=sigmoid)).mul_(inputs)


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return _forward(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The derivative `(u + 4 x s (1 - s)^2 / (2 - u)) / (2 - u)`."""
        (inputs,) = ctx.saved_tensors
        sigmoid = inputs.sigmoid()
        rest = 1.0 - sigmoid
        share = torch.addcmul(sigmoid, sigmoid, rest)
        over = (2.0 - share).reciprocal_()
        slope = sigmoid.mul_(rest).mul_(rest).mul_(over).mul_(inputs)
        return share.add_(slope, alpha=4.0).mul_(over).mul_(gradient)
