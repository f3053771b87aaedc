import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brpo.functional.divergences import DIVERGENCES, Divergence, get_divergence

SMOOTH = [name for name, divergence in DIVERGENCES.items() if divergence.smooth]

distributions = hnp.arrays(np.float64, 6, elements=st.floats(0.02, 1.0)).map(lambda p: p / p.sum())


def discrete(divergence: Divergence, p: np.ndarray, q: np.ndarray) -> float:
    ratio = torch.from_numpy(p / q)
    return float((torch.from_numpy(q) * divergence.f(ratio)).sum())


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "t", "expected"),
    [
        ("kl", 2.0, 2 * math.log(2)),
        ("reverse_kl", 2.0, -math.log(2)),
        ("chi2", 3.0, 4.0),
        ("neyman_chi2", 2.0, 0.5),
        ("hellinger", 4.0, 1.0),
        ("le_cam", 3.0, 1.0),
        ("total_variation", 3.0, 1.0),
        ("jeffreys", 3.0, 2 * math.log(3)),
        ("jensen_shannon", 3.0, 3 * math.log(3) - 4 * math.log(2)),
        ("gan", 3.0, 3 * math.log(3) - 4 * math.log(4) + 2 * math.log(2)),
    ],
)
def test_f_by_hand(name: str, t: float, expected: float) -> None:
    assert DIVERGENCES[name].f(f64(t)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_f_is_zero_at_one_and_convex(name: str) -> None:
    divergence = DIVERGENCES[name]
    assert divergence.f(f64(1.0)).item() == pytest.approx(0.0, abs=1e-12)
    a, b = f64(*np.linspace(0.05, 3.0, 40)), f64(*np.linspace(0.4, 9.0, 40))
    assert (divergence.f((a + b) / 2) <= (divergence.f(a) + divergence.f(b)) / 2 + 1e-12).all()


@pytest.mark.parametrize("name", DIVERGENCES)
@given(p=distributions, q=distributions)
@settings(max_examples=40, deadline=None)
def test_non_negative_and_zero_only_for_equal_distributions(name: str, p: np.ndarray, q: np.ndarray) -> None:
    value = discrete(DIVERGENCES[name], p, q)
    assert value >= -1e-12
    assert discrete(DIVERGENCES[name], p, p) == pytest.approx(0.0, abs=1e-12)
    if np.abs(p - q).max() > 1e-3:
        assert value > 1e-9


@pytest.mark.parametrize("name", DIVERGENCES)
@given(p=distributions, q=distributions)
@settings(max_examples=40, deadline=None)
def test_symmetric_ones_do_not_mind_an_exchange(name: str, p: np.ndarray, q: np.ndarray) -> None:
    divergence = DIVERGENCES[name]
    if divergence.is_symmetric:
        assert discrete(divergence, p, q) == pytest.approx(discrete(divergence, q, p), abs=1e-10)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_others_do(name: str) -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    divergence = DIVERGENCES[name]
    same = discrete(divergence, p, q) == pytest.approx(discrete(divergence, q, p), abs=1e-9)
    assert divergence.is_symmetric == same


def test_which_of_the_known_ones_are_symmetric() -> None:
    symmetric = {"hellinger", "le_cam", "total_variation", "jeffreys", "jensen_shannon", "gan"}
    others = {"kl", "reverse_kl", "chi2", "neyman_chi2"}
    assert {name for name in symmetric | others if DIVERGENCES[name].is_symmetric} == symmetric


@pytest.mark.parametrize("name", SMOOTH)
def test_closed_form_coefficients_equal_exact_derivatives(name: str) -> None:
    divergence = DIVERGENCES[name]
    derived = Divergence(name, "", divergence.f).taylor(7)
    assert divergence.taylor(7) == pytest.approx(derived, abs=1e-10)


@pytest.mark.parametrize(
    ("name", "c", "g"),
    [
        ("jeffreys", (1, -1 / 2, 1 / 3), (1 / 2, -1 / 3, 1 / 4)),
        ("jensen_shannon", (1 / 4, -1 / 8, 7 / 96), (-1 / 4, 1 / 24, -1 / 96)),
        ("gan", (1 / 4, -1 / 8, 7 / 96), (-1 / 4, 1 / 24, -1 / 96)),
        ("le_cam", (1 / 2, -1 / 4, 1 / 8), (0, -1 / 12, 1 / 24)),
    ],
)
def test_coefficients_by_hand(name: str, c: tuple[float, ...], g: tuple[float, ...]) -> None:
    divergence = DIVERGENCES[name]
    assert divergence.taylor(4)[2:] == pytest.approx(c)
    assert divergence.conditional_symmetry_taylor(4)[2:] == pytest.approx(g)


def test_conditional_symmetry_closed_forms() -> None:
    t = f64(0.2, 0.9, 1.0, 2.5)
    assert torch.allclose(DIVERGENCES["jeffreys"].conditional_symmetry(t), -t.log())
    assert torch.allclose(DIVERGENCES["jensen_shannon"].conditional_symmetry(t), -(1 + t) * ((1 + t) / 2).log())
    assert DIVERGENCES["kl"].conditional_symmetry(t).abs().max() == 0


@pytest.mark.parametrize("name", SMOOTH)
def test_curvature_is_positive(name: str) -> None:
    """f''(1) > 0: near 1 every divergence is a multiple of chi^2."""
    divergence = DIVERGENCES[name]
    h, one = 1e-4, f64(1.0)
    numeric = (divergence.f(one + h) - 2 * divergence.f(one) + divergence.f(one - h)) / h**2
    assert divergence.d2f1 == pytest.approx(numeric.item(), rel=1e-4)
    assert divergence.d2f1 > 0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_df_against_finite_differences(name: str) -> None:
    t, h = f64(0.3, 0.8, 1.7, 4.0), 1e-6
    numeric = (DIVERGENCES[name].f(t + h) - DIVERGENCES[name].f(t - h)) / (2 * h)
    assert torch.allclose(DIVERGENCES[name].df(t), numeric, atol=1e-7)


@pytest.mark.parametrize("name", ["jeffreys", "jensen_shannon", "kl", "hellinger"])
def test_gaussian_pair_by_numerical_integration(name: str) -> None:
    """KL and Jeffreys of two Gaussians have closed forms; the integral of f agrees, and symmetry holds for the others."""
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    p, q = torch.distributions.Normal(0.3, 1.2), torch.distributions.Normal(-0.5, 0.8)

    def integral(a: torch.distributions.Normal, b: torch.distributions.Normal) -> float:
        log_ratio = (a.log_prob(x) - b.log_prob(x)).clamp(-600, 600).double()
        values = b.log_prob(x).exp() * DIVERGENCES[name].f(log_ratio.exp())
        return torch.trapezoid(values.nan_to_num(0.0, posinf=0.0), x).item()

    kl = torch.distributions.kl_divergence(p, q).item()
    reverse = torch.distributions.kl_divergence(q, p).item()
    if name == "kl":
        assert integral(p, q) == pytest.approx(kl, rel=1e-6)
    elif name == "jeffreys":
        assert integral(p, q) == pytest.approx(kl + reverse, rel=1e-6)
    else:
        assert integral(p, q) == pytest.approx(integral(q, p), rel=1e-6)


def test_a_divergence_can_be_given_by_f_alone() -> None:
    custom = Divergence("custom", "ours", lambda t: (t - 1.0) * torch.log(t))
    assert custom.taylor(5) == pytest.approx(DIVERGENCES["jeffreys"].taylor(5))
    assert custom.is_symmetric
    assert custom.series_radius == pytest.approx(1.0, rel=0.2)


def test_total_variation_has_no_series() -> None:
    with pytest.raises(ValueError, match="'total_variation' is not differentiable at 1"):
        DIVERGENCES["total_variation"].taylor(2)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown divergence 'jefreys'. Known: chi2, gan, .*jeffreys"):
        get_divergence("jefreys")
