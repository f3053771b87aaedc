import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brpo.functional import series
from brpo.functional.divergences import DIVERGENCES, Divergence, get_divergence

SMOOTH = [name for name, divergence in DIVERGENCES.items() if divergence.smooth] + ["alpha:-1.5", "alpha:0.5", "alpha:3"]
ORDERS = (2, 3, 4, 5)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ratio(divergence: Divergence, order: int, x: torch.Tensor) -> torch.Tensor:
    return series.target_ratio(series.branch(divergence, order), x)


def test_evaluate_by_hand() -> None:
    """2 (t-1)^2 - 3 (t-1)^3 at t = 1.5: 0.5 - 0.375; the first two coefficients are left out."""
    assert series.evaluate((9.0, 9.0, 2.0, -3.0), f64(1.5, 1.0)).tolist() == pytest.approx([0.125, 0.0])
    with pytest.raises(ValueError, match="starts at order 2"):
        series.evaluate((1.0, 2.0), f64(1.0))


@pytest.mark.parametrize("name", [name for name in SMOOTH if get_divergence(name).coefficient])  # the bound needs many
@pytest.mark.parametrize("epsilon", [0.2, 0.5])
def test_truncation_error_is_below_its_bound(name: str, epsilon: float) -> None:
    """Within the radius the error is below the geometric tail of the coefficients, and falls with the order."""
    divergence = get_divergence(name)
    errors = [series.remainder(divergence, order, epsilon) for order in (2, 3, 4, 5, 6, 7)]
    g = [abs(c) for c in divergence.conditional_symmetry_taylor(60)]
    for order, error in zip((2, 3, 4, 5, 6, 7), errors, strict=True):
        tail = sum(g[n] * epsilon**n for n in range(order + 1, 61)) + 1e-12
        assert error <= tail * (1 + 1e-6)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("order", ORDERS)
@given(x=st.lists(st.floats(-20, 20), min_size=1, max_size=20))
@settings(max_examples=25, deadline=None)
def test_the_ratio_solves_its_equation(name: str, order: int, x: list[float]) -> None:
    """f_N'(w(x)) = x to 1e-6 wherever the branch is not clipped; w >= 0; w(0) = 1."""
    divergence = get_divergence(name)
    c = divergence.taylor(order)
    derivative = np.polynomial.Polynomial([n * c[n] if n >= 2 else 0.0 for n in range(1, order + 1)])
    w = ratio(divergence, order, f64(*x)).numpy()
    assert (w >= 0).all()
    turning = [1 + r.real for r in np.atleast_1d(derivative.deriv().roots()) if abs(r.imag) < 1e-9]
    low = max([0.0, *(t for t in turning if t < 1)])
    high = min([math.inf, *(t for t in turning if t > 1)])
    inside = (w > low + 1e-9) & (w < high - 1e-9)
    assert np.abs(derivative(w[inside] - 1) - np.array(x)[inside]).max(initial=0.0) < 1e-6
    # Where it is clipped, x lies beyond what the branch reaches.
    assert (np.array(x)[w >= high - 1e-9] >= derivative(high - 1) - 1e-6).all() if math.isfinite(high) else True
    assert (np.array(x)[w <= low + 1e-9] <= derivative(low - 1) + 1e-6).all()
    assert ratio(divergence, order, f64(0.0)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("order", ORDERS)
def test_monotone(name: str, order: int) -> None:
    w = ratio(get_divergence(name), order, torch.linspace(-10, 10, 5001, dtype=torch.float64))
    assert (w.diff() >= -1e-12).all()


@pytest.mark.parametrize("name", SMOOTH)
def test_order_two_is_the_clipped_line(name: str) -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    c2 = get_divergence(name).taylor(2)[2]
    assert torch.allclose(ratio(get_divergence(name), 2, x), (1 + x / (2 * c2)).clamp(min=0))


@pytest.mark.parametrize(
    ("name", "order", "x", "w"),
    [
        ("jeffreys", 3, 2 / 3, 5 / 3),
        ("jeffreys", 3, 9.0, 5 / 3),
        ("jeffreys", 5, 0.8244, 1.7293),
        ("jensen_shannon", 3, 1 / 6, 5 / 3),
        ("jensen_shannon", 5, 0.2135, 1.7822),
        ("jeffreys", 2, -2.0, 0.0),
        ("jeffreys", 3, -3.5, 0.0),
        ("jeffreys", 4, -4.8333334, 0.0),
        ("jeffreys", 5, -6.0833334, 0.0),
        ("jensen_shannon", 2, -0.5, 0.0),
        ("jensen_shannon", 3, -0.875, 0.0),
        ("jensen_shannon", 4, -1.1666667, 0.0),
        ("jensen_shannon", 5, -1.401042, 0.0),
    ],
)
def test_saturation_points_by_hand(name: str, order: int, x: float, w: float) -> None:
    """At a turning point the root is double: an error of 1e-5 in x moves w by its square root."""
    assert ratio(DIVERGENCES[name], order, f64(x)).item() == pytest.approx(w, abs=1e-2)


def test_kl_approaches_the_exponential() -> None:
    x = torch.linspace(-0.3, 0.3, 61, dtype=torch.float64)
    # f = t ln t has f' = 1 + ln t; the term of order 1 is left out, so f_N' approximates ln t.
    errors = [(ratio(DIVERGENCES["kl"], order, x) - x.exp()).abs().max().item() for order in ORDERS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["jeffreys", "jensen_shannon", "kl"])
def test_gradient_is_one_over_curvature(name: str, order: int) -> None:
    x = f64(-0.3, -0.1, 0.05, 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: ratio(DIVERGENCES[name], order, v), (x,), eps=1e-6, atol=1e-5)


def test_gradient_is_zero_where_constant() -> None:
    x = f64(-50.0, 50.0).requires_grad_()
    ratio(DIVERGENCES["jeffreys"], 3, x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0]


def test_float32_in_float32_out_and_large_values() -> None:
    w = ratio(DIVERGENCES["jeffreys"], 4, torch.tensor([-1e6, 0.0, 1e6]))
    assert w.dtype == torch.float32
    assert w.isfinite().all()
    assert w[1] == 1.0


@pytest.mark.parametrize("order", ORDERS[1:])
def test_float32_is_solved_in_float64(order: int) -> None:
    """To half a unit in the last place, 6e-8."""
    x = torch.linspace(-3, 3, 301)
    assert torch.equal(ratio(DIVERGENCES["jeffreys"], order, x), ratio(DIVERGENCES["jeffreys"], order, x.double()).float())


@pytest.mark.parametrize("order", [1, 6])
def test_refuses_other_orders(order: int) -> None:
    with pytest.raises(ValueError, match="policy_order must be 2, 3, 4 or 5"):
        ratio(DIVERGENCES["kl"], order, f64(0.0))


@pytest.mark.parametrize("order", ORDERS)
def test_a_divergence_without_curvature_is_refused(order: int) -> None:
    flat = Divergence("flat", "test", lambda t: (t - 1.0) ** 4)
    with pytest.raises(ValueError, match=r"'flat' has f''\(1\) = 0, which must be positive"):
        series.branch(flat, order)


@pytest.mark.parametrize(("epsilon", "bound"), [(0.2, 60.0), (0.5, 12.0), (1.0, 4.0)])
def test_the_bound_on_the_coefficient_by_hand(epsilon: float, bound: float) -> None:
    """Jeffreys to order 2, h = (t-1)^2 / 2: (1 + epsilon) / (epsilon^2 / 2). Jensen-Shannon's h is negative: none."""
    assert series.coefficient_bound(get_divergence("jeffreys").conditional_symmetry_taylor(2), epsilon) == pytest.approx(
        bound
    )
    assert math.isinf(series.coefficient_bound(get_divergence("jensen_shannon").conditional_symmetry_taylor(2), epsilon))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("order", ORDERS)
def test_the_conjugate_is_the_largest_value_over_the_branch(name: str, order: int) -> None:
    """Against a search on a grid of ratios; its derivative is the ratio."""
    divergence = get_divergence(name)
    branch = series.branch(divergence, order)
    w = np.linspace(1.0 + branch.low, 1.0 + min(branch.high, 20.0), 400_001)
    f = series.evaluate(divergence.taylor(order), torch.from_numpy(w)).numpy()
    x = f64(-3.0, -0.4, 0.0, 0.3, 2.0).requires_grad_()
    conjugate = series.conjugate(branch, x)
    (slope,) = torch.autograd.grad(conjugate.sum(), x)
    assert torch.allclose(slope, series.target_ratio(branch, x.detach()))
    inside = slope < 19.0
    largest = f64(*[(value * w - f).max() for value in x.tolist()])
    assert torch.allclose(conjugate.detach()[inside], largest[inside], atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_the_target_ratio_of_what_is_no_number(order: int) -> None:
    branch = series.branch(get_divergence("jeffreys"), order)
    low, high, unknown = series.target_ratio(branch, f64(-math.inf, math.inf, math.nan)).tolist()
    assert low == pytest.approx(1.0 + branch.low)
    assert high == pytest.approx(1.0 + branch.high)
    assert math.isnan(unknown)
