import pytest
import torch
from torch.nn import functional as F

from brpo.functional.activations import mish


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mish_is_torchs(dtype: torch.dtype, compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, also far out, where the exponential is held; of the formula for compiled graphs too."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    inputs = torch.linspace(-90.0, 90.0, 3601, dtype=dtype, requires_grad=True)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5 if compiling else 2e-6  # its gradient cancels near 20
    ours, theirs = mish(inputs), F.mish(inputs)
    assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(values.sum(), inputs)[0] for values in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=tolerance, atol=tolerance)
    assert torch.equal(mish(inputs.detach()), ours.detach())


def test_mish_in_half_precision_is_left_to_torch() -> None:
    inputs = torch.linspace(-5, 5, 11, dtype=torch.bfloat16)
    assert torch.equal(mish(inputs), F.mish(inputs))


def test_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(mish, torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True))
