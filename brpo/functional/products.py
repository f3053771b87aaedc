"""Matrix products on a CPU: torch's default BLAS, or oneDNN where that is faster, and in which precision.

torch's default BLAS takes a slow path on AMD processors; oneDNN, which torch carries too, does not. No public switch chooses
between them for float32, so its operator is called by name. Which one is used is a function of the processor alone, not of a
timing: a resumed run must repeat the roundings of the first part. `benchmarks/products.py` measures both.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from brpo.errors import UserError

SMALL = 64  # sides below this are left to the default
ZEN_5 = 26  # AMD's family


@dataclass(frozen=True)
class Products:
    """Which products of a linear layer go through oneDNN."""

    forward: bool = False
    input_gradient: bool = False
    weight_gradient: bool = False


class Processor(NamedTuple):
    """What Linux says of an x86 processor; on others the vendor is empty."""

    vendor: str
    family: int
    flags: frozenset[str]


_used = Products()


def precision(asked: str) -> str:
    """The precision of float32 products on this CPU, for `torch.set_float32_matmul_precision`.

    Below `highest` torch makes them through bfloat16. x86 processors without matrix units for it lose time by that: an IQL
    update took 1.48 times as long on an Intel one and 1.06 times on Zen 4, so float32 is kept there. Zen 5 gains, by a
    measurement outside this repository. Of processors that are not known, what is asked for.
    """
    vendor, family, flags = _processor()
    known = vendor in ("GenuineIntel", "AuthenticAMD")
    gains = "amx_bf16" in flags or (vendor == "AuthenticAMD" and family >= ZEN_5)
    return "highest" if known and not gains else asked


def use(name: str) -> Products:
    """Choose the products of this process: `blas`, `onednn`, or by processor with `auto`.

    At a lower precision of products than `highest`, `auto` leaves them to torch, which has a way of its own there.

    Raises:
        UserError: oneDNN's operator is asked for and is not here.
    """
    global _used
    if name == "onednn" and not _available():
        raise UserError("engine.products=onednn is not possible: this build of torch lacks the operator. Use auto or blas.")
    if name == "auto":
        _used = _by_processor() if torch.get_float32_matmul_precision() == "highest" else Products()
    else:
        _used = Products(True, True, True) if name == "onednn" else Products()
    return _used


@cache
def _by_processor() -> Products:
    """AMD processors with AVX-512 take oneDNN: on family 25 (Zen 4) it measured up to 1.1 times as fast.

    For the gradient of the weights, whose factors lie across, it is slower there. Family 26 (Zen 5) takes all three, by a
    measurement outside this repository (387 GFLOP/s against 217).
    """
    vendor, family, flags = _processor()
    if vendor != "AuthenticAMD" or "avx512f" not in flags or not _available():
        return Products()
    return Products(True, True, family >= ZEN_5)


def _processor() -> Processor:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return Processor("", 0, frozenset())
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = fields.get("cpu family", "")
    return Processor(
        fields.get("vendor_id", ""),
        int(family) if family.isdecimal() else 0,
        frozenset(fields.get("flags", "").split()),
    )


@cache
def _available() -> bool:
    try:
        return _onednn(torch.ones(1, 1), torch.ones(1, 1), None, "relu").item() == 1.0
    except (AttributeError, RuntimeError):
        return False


def _onednn(left: Tensor, right: Tensor, bias: Tensor | None, after: str) -> Tensor:
    """`after(left right^T + bias)`; `after` is none or relu."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, after, [], "")


def relu_layer(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`relu(inputs weight + bias)` for (batch, inputs), (inputs, outputs) and (outputs,)."""
    if _used.forward and _suits(weight):
        return _onednn(inputs, weight.t(), bias, "relu")
    return torch.addmm(bias, inputs, weight).relu_()


def linear_layer(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`inputs weight + bias` for (batch, inputs), (inputs, outputs) and (outputs,); without gradient."""
    if _used.forward and _suits(weight):
        return _onednn(inputs, weight.t(), bias, "none")
    return torch.addmm(bias, inputs, weight)


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """`gradient weight^T`."""
    if _used.input_gradient and _suits(weight):
        return _onednn(gradient, weight, None, "none")
    return torch.mm(gradient, weight.t())


def weight_gradient(inputs: Tensor, gradient: Tensor) -> Tensor:
    """`inputs^T gradient`."""
    if _used.weight_gradient and _suits(gradient) and inputs.shape[1] >= SMALL:
        return _onednn(inputs.t(), gradient.t(), None, "none")
    return torch.mm(inputs.t(), gradient)


def _suits(tensor: Tensor) -> bool:
    """A large float32 matrix: small ones are not faster. oneDNN's operator knows no float64, and Inductor not it."""
    large = tensor.shape[0] >= SMALL and tensor.shape[1] >= SMALL
    return large and tensor.dtype == torch.float32 and not torch.compiler.is_compiling()
