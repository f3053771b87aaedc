import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brpo.functional import weights


def test_clipped_exp_by_hand() -> None:
    result = weights.clipped_exp(torch.tensor([0.0, 1.0, 1000.0, -1000.0]), 100.0)
    assert result.tolist() == pytest.approx([1.0, math.e, 100.0, 0.0])


def test_sparse_by_hand() -> None:
    assert weights.sparse(torch.tensor([-3.0, -1.0, -0.5, 0.0, 2.0, 500.0]), 100.0).tolist() == [0, 0, 0.5, 1, 3, 100]


def test_softmax_over_batch_by_hand() -> None:
    """e^ln3 / (1 + 3) * 2 = 1.5; nothing overflows; it is the exponential divided by its batch mean."""
    result = weights.softmax_over_batch(torch.tensor([[0.0, math.log(3)], [1000.0, -1000.0]]))
    assert result.tolist()[0] == pytest.approx([0.5, 1.5])
    assert result.tolist()[1] == [2.0, 0.0]
    exponent = torch.randn(2, 7, dtype=torch.float64)
    assert torch.allclose(weights.softmax_over_batch(exponent), weights.normalize(exponent.exp()))


def test_normalize_by_hand() -> None:
    assert weights.normalize(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist() == [[0.5, 1.5], [1.0, 1.0]]
    assert weights.normalize(torch.zeros(1, 3)).tolist() == [[1.0, 1.0, 1.0]]


def test_effective_sample_share_by_hand() -> None:
    """Equal weights count fully; one of four counts a quarter."""
    assert weights.effective_sample_share(torch.tensor([[2.0, 2, 2, 2], [4.0, 0, 0, 0]])).tolist() == [1.0, 0.25]
    extreme = torch.tensor([[1e30, 0.0], [1e-20, 1e-20], [0.0, 0.0]])
    assert weights.effective_sample_share(extreme).tolist() == pytest.approx([0.5, 1.0, 0.0])


@given(st.floats(0.01, 1e9), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None)
def test_a_clipped_exponential_counts_as_clipped(max_weight: float, dtype: torch.dtype) -> None:
    """Whatever `exp(log(max_weight))` rounds to, as at 20 in float64."""
    below = math.log(max_weight) - 0.01
    weight = weights.clipped_exp(torch.tensor([[1000.0, below, -1000.0, 900.0]], dtype=dtype), max_weight)
    assert weights.clipped_share(weight, max_weight).tolist() == [0.5]


@given(st.floats(-30, 30), st.floats(0.5, 50))
@settings(deadline=None)
def test_capped_ratio_is_the_exponential_below_and_its_tangent_above(log_ratio: float, max_ratio: float) -> None:
    value = weights.capped_ratio(torch.tensor([log_ratio], dtype=torch.float64), max_ratio).item()
    exact = math.exp(log_ratio)
    expected = exact if exact <= max_ratio else max_ratio * (1 + log_ratio - math.log(max_ratio))
    assert value == pytest.approx(expected, rel=1e-9)


def test_capped_ratio_gradient_is_the_ratio_capped() -> None:
    """d/dl e^l = e^l below the cap; max_ratio above it; nothing overflows."""
    log_ratio = torch.tensor([0.0, 2.0, 1000.0], dtype=torch.float64, requires_grad=True)
    weights.capped_ratio(log_ratio, 20.0).sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == pytest.approx([1.0, math.e**2, 20.0])
