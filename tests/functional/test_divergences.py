import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, special, stats

from brpo.functional.divergences import DIVERGENCES, Divergence, _check_convex, alpha, get_divergence

ALPHAS = ["alpha:-1.5", "alpha:0", "alpha:1e-9", "alpha:0.5", "alpha:1", "alpha:3"]
ALL = [*DIVERGENCES, *ALPHAS]
SMOOTH = [name for name in ALL if get_divergence(name).smooth]

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


@pytest.mark.parametrize("name", ALL)
def test_f_is_zero_at_one_and_convex(name: str) -> None:
    divergence = get_divergence(name)
    assert divergence.f(f64(1.0)).item() == pytest.approx(0.0, abs=1e-12)
    a, b = f64(*np.linspace(0.05, 3.0, 40)), f64(*np.linspace(0.4, 9.0, 40))
    assert (divergence.f((a + b) / 2) <= (divergence.f(a) + divergence.f(b)) / 2 + 1e-12).all()


@pytest.mark.parametrize("name", ALL)
@given(p=distributions, q=distributions)
@settings(max_examples=40, deadline=None)
def test_non_negative_and_zero_only_for_equal_distributions(name: str, p: np.ndarray, q: np.ndarray) -> None:
    value = discrete(get_divergence(name), p, q)
    assert value >= -1e-12
    assert discrete(get_divergence(name), p, p) == pytest.approx(0.0, abs=1e-12)
    if np.abs(p - q).max() > 1e-3:
        assert value > 1e-9


@pytest.mark.parametrize("name", ALL)
@given(p=distributions, q=distributions)
@settings(max_examples=40, deadline=None)
def test_symmetric_ones_do_not_mind_an_exchange(name: str, p: np.ndarray, q: np.ndarray) -> None:
    divergence = get_divergence(name)
    if divergence.is_symmetric:
        assert discrete(divergence, p, q) == pytest.approx(discrete(divergence, q, p), abs=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_the_others_do(name: str) -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    divergence = get_divergence(name)
    same = discrete(divergence, p, q) == pytest.approx(discrete(divergence, q, p), abs=1e-9)
    assert divergence.is_symmetric == same


def test_which_of_the_known_ones_are_symmetric() -> None:
    symmetric = {"hellinger", "le_cam", "total_variation", "jeffreys", "jensen_shannon", "gan"}
    others = {"kl", "reverse_kl", "chi2", "neyman_chi2"}
    assert {name for name in symmetric | others if get_divergence(name).is_symmetric} == symmetric


@pytest.mark.parametrize("name", SMOOTH)
def test_closed_form_coefficients_equal_exact_derivatives(name: str) -> None:
    divergence = get_divergence(name)
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
    divergence = get_divergence(name)
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
    divergence = get_divergence(name)
    h, one = 1e-4, f64(1.0)
    numeric = (divergence.f(one + h) - 2 * divergence.f(one) + divergence.f(one - h)) / h**2
    assert divergence.d2f1 == pytest.approx(numeric.item(), rel=1e-4)
    assert divergence.d2f1 > 0


@pytest.mark.parametrize("name", ALL)
def test_df_against_finite_differences(name: str) -> None:
    t, h = f64(0.3, 0.8, 1.7, 4.0), 1e-6
    numeric = (get_divergence(name).f(t + h) - get_divergence(name).f(t - h)) / (2 * h)
    assert torch.allclose(get_divergence(name).df(t), numeric, atol=1e-7)


def between_gaussians(divergence: Divergence, p: tuple[float, float], q: tuple[float, float]) -> float:
    """D_f of two Gaussians (mean, standard deviation) by scipy's adaptive quadrature."""

    def integrand(x: float) -> float:
        log_q = stats.norm.logpdf(x, *q)
        ratio = f64(math.exp(stats.norm.logpdf(x, *p) - log_q))
        return math.exp(log_q) * divergence.f(ratio).item()

    return integrate.quad(integrand, -8, 8, limit=200, points=(p[0], q[0]))[0]


def kl_of_gaussians(p: tuple[float, float], q: tuple[float, float]) -> float:
    return math.log(q[1] / p[1]) + (p[1] ** 2 + (p[0] - q[0]) ** 2) / (2 * q[1] ** 2) - 0.5


WIDE, NARROW = (0.3, 1.0), (-0.2, 0.8)


@pytest.mark.parametrize("name", ALL)
def test_between_gaussians(name: str) -> None:
    """Positive, zero for equal ones, and symmetric exactly where it is said to be."""
    divergence = get_divergence(name)
    there, back = between_gaussians(divergence, WIDE, NARROW), between_gaussians(divergence, NARROW, WIDE)
    assert min(there, back) > 1e-3
    assert between_gaussians(divergence, WIDE, WIDE) == pytest.approx(0.0, abs=1e-9)
    assert (there == pytest.approx(back, rel=1e-6)) == divergence.is_symmetric


def test_closed_forms_between_gaussians() -> None:
    """KL by its formula; squared Hellinger by the overlap `sqrt(2 s t / (s^2 + t^2)) exp(-(m - n)^2 / (4 (s^2 + t^2)))`."""
    there, back = kl_of_gaussians(WIDE, NARROW), kl_of_gaussians(NARROW, WIDE)
    spread = WIDE[1] ** 2 + NARROW[1] ** 2
    overlap = math.sqrt(2 * WIDE[1] * NARROW[1] / spread) * math.exp(-((WIDE[0] - NARROW[0]) ** 2) / (4 * spread))
    expected = {
        "kl": there, "alpha:1": there, "reverse_kl": back, "alpha:0": back, "jeffreys": there + back,
        "hellinger": 2 - 2 * overlap, "alpha:0.5": 4 * (1 - overlap),
    }  # fmt: skip
    for name, value in expected.items():
        assert between_gaussians(get_divergence(name), WIDE, NARROW) == pytest.approx(value, rel=1e-6), name


def test_closed_forms_between_shifted_gaussians() -> None:
    """Of the same width, d standard deviations apart: chi-square exp(d^2) - 1, total variation 2 Phi(d/2) - 1."""
    p, q = (0.3, 0.8), (-0.2, 0.8)
    shift = (p[0] - q[0]) / p[1]
    expected = {
        "chi2": math.exp(shift**2) - 1,
        "neyman_chi2": math.exp(shift**2) - 1,
        "total_variation": 2 * stats.norm.cdf(shift / 2) - 1,
        "jeffreys": shift**2,
    }
    for name, value in expected.items():
        assert between_gaussians(get_divergence(name), p, q) == pytest.approx(value, rel=1e-5), name


def test_divergences_to_the_middle_between_gaussians() -> None:
    """Jensen-Shannon (twice) as scipy's relative entropies to (p + q) / 2, GAN's the same, Le Cam as (p - q)^2 / (p + q)."""

    def densities(x: float) -> tuple[float, float]:
        return float(stats.norm.pdf(x, *WIDE)), float(stats.norm.pdf(x, *NARROW))

    def to_middle(x: float) -> float:
        p, q = densities(x)
        return float(special.rel_entr(p, (p + q) / 2) + special.rel_entr(q, (p + q) / 2))

    def squares(x: float) -> float:
        p, q = densities(x)
        return (p - q) ** 2 / (p + q)

    expected = {"jensen_shannon": to_middle, "gan": to_middle, "le_cam": squares}
    for name, integrand in expected.items():
        value = integrate.quad(integrand, -8, 8, limit=200, points=(WIDE[0], NARROW[0]))[0]
        assert between_gaussians(get_divergence(name), WIDE, NARROW) == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(
    ("parameter", "other", "factor"),
    [(0.0, "reverse_kl", 1.0), (1.0, "kl", 1.0), (2.0, "chi2", 0.5), (-1.0, "neyman_chi2", 0.5), (0.5, "hellinger", 2.0)],
)
def test_members_of_the_alpha_family(parameter: float, other: str, factor: float) -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    expected = factor * discrete(DIVERGENCES[other], p, q)
    assert discrete(alpha(parameter), p, q) == pytest.approx(expected, rel=1e-12)
    assert alpha(parameter).taylor(6)[2:] == pytest.approx([factor * c for c in DIVERGENCES[other].taylor(6)[2:]])


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_alpha_is_continuous_at_its_limits(limit: float) -> None:
    t = f64(0.01, 0.5, 1.5, 100.0)
    for step in (1e-6, -1e-6, 1e-10, -1e-10):
        assert torch.allclose(alpha(limit + step).f(t), alpha(limit).f(t), rtol=2e-5)


@given(parameter=st.floats(-4, 4), p=distributions, q=distributions)
@example(parameter=5e-324, p=np.full(2, 0.5), q=np.array([0.25, 0.75]))
@settings(max_examples=60, deadline=None)
def test_alpha_of_any_parameter(parameter: float, p: np.ndarray, q: np.ndarray) -> None:
    """Not negative, and `D_alpha(P || Q) = D_{1 - alpha}(Q || P)`."""
    value = discrete(alpha(parameter), p, q)
    assert value >= -1e-12
    assert value == pytest.approx(discrete(alpha(1.0 - parameter), q, p), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["alpha", "alpha:", "alpha:x", "alpha:nan", "alpha:inf"])
def test_alpha_needs_its_number(name: str) -> None:
    with pytest.raises(ValueError, match=f"The divergence '{name}' needs a finite number, as in alpha:0.5."):
        get_divergence(name)


def test_a_divergence_can_be_given_by_f_alone() -> None:
    custom = Divergence("custom", "ours", lambda t: (t - 1.0) * torch.log(t))
    assert custom.taylor(5) == pytest.approx(DIVERGENCES["jeffreys"].taylor(5))
    assert custom.is_symmetric


@pytest.mark.parametrize("name", [n for n, d in DIVERGENCES.items() if d.smooth and n != "kl"])  # kl's series is 0
def test_the_radius_of_f_alone_is_that_of_the_table(name: str) -> None:
    """Where the last coefficients have the quotients 8/7 (jeffreys), 0.81 (le_cam) or 8/3 (jensen_shannon)."""
    assert Divergence("custom", "ours", DIVERGENCES[name].f).series_radius == pytest.approx(DIVERGENCES[name].series_radius)


def test_the_radius_of_a_series_with_every_other_coefficient_is_not_overestimated() -> None:
    """A pole at a distance of 4; a polynomial has none."""
    pole = Divergence("pole", "ours", lambda t: t * t.log() + (t - 1.0).square() / (1.0 + (t - 1.0).square() / 16.0))
    assert pole.series_radius == pytest.approx(3.0)
    assert Divergence("square", "ours", lambda t: t * t.log() + (t - 1.0).square()).series_radius == math.inf


def test_one_line_of_python_adds_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIVERGENCES, "mine", Divergence("mine", "ours", lambda t: (t - 1.0).pow(4) + t * t.log() - t + 1.0))
    assert get_divergence("mine").taylor(4) == pytest.approx((0, 0, 1 / 2, -1 / 6, 1 / 12 + 1))


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda t: t * t * t.log() - t + 1.0, "'mine' is no divergence: f is concave at t = 0.01, and must be convex for"),
        (lambda t: -t * t.log(), "'mine' is no divergence: f is concave at"),
        (lambda t: torch.minimum(t - 1.0, 0.0 * t), "'mine' is no divergence: f is concave at t = 0.98"),
        (lambda t: math.log(t), "f of the divergence 'mine' cannot be differentiated: .*torch.log and not math.log"),
        (lambda t: (t - 1.0).relu(), None),
        (lambda t: 1e-6 * (t - 1.0).abs() + 1e6 * (t - 1.0), None),
        (lambda t: t.pow(-20.0) - 1.0, None),
        (lambda t: torch.special.xlogy(t, t) + 1e5 * (t - 1.0), None),
    ],
)
def test_an_entry_that_is_not_convex_is_refused_by_its_name(f, message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIVERGENCES, "mine", Divergence("mine", "ours", f, smooth=False))
    if message is None:
        assert get_divergence("mine").f is f
        return
    with pytest.raises(ValueError, match=message):
        get_divergence("mine")


@pytest.mark.parametrize("parameter", [-20.0, -1.0, 1e-9, 0.5, 1.5, 30.0])
def test_known_divergences_are_convex(parameter: float) -> None:
    for entry in (*map(get_divergence, DIVERGENCES), alpha(parameter)):
        _check_convex(entry)


def test_total_variation_has_no_series() -> None:
    with pytest.raises(ValueError, match="'total_variation' is not differentiable at 1"):
        DIVERGENCES["total_variation"].taylor(2)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown divergence 'jefreys'. Known: chi2, gan, .*jeffreys.*, alpha:NUMBER"):
        get_divergence("jefreys")


@pytest.mark.parametrize(
    ("f", "found"),
    [
        (lambda t: 0.5 * (t - 1.0).abs(), r"0 by differentiation, but 1000 just below and 1000 just above"),
        (
            lambda t: torch.where(t > 1.0, 1.0, 2.0) * (t - 1.0).square(),
            r"4 by differentiation, but 4 just below and 2 just",
        ),
    ],
    ids=["kink", "jump"],
)
def test_a_kink_at_one_is_no_series(f, found: str) -> None:
    mine = Divergence("mine", "test", f)
    with pytest.raises(ValueError, match=r"'mine' has no Taylor series at 1: f''\(1\) = " + found):
        mine.taylor(4)
    assert Divergence("mine", "test", f, smooth=False).f(f64(3.0)).item() > 0


@pytest.mark.parametrize("name", [name for name in SMOOTH if get_divergence(name).smooth])
def test_no_known_divergence_is_taken_for_one_with_a_kink(name: str) -> None:
    known = get_divergence(name)
    mine = Divergence("mine", "test", known.f)
    assert mine.taylor(4) == pytest.approx(known.taylor(4), abs=1e-9)


@pytest.mark.parametrize("parameter", [0.3, 0.5, 0.7, 0.999, 1.5, 3.0])
def test_alpha_has_its_limit_at_zero(parameter: float) -> None:
    assert get_divergence(f"alpha:{parameter}").f(f64(0.0)).item() == pytest.approx(1.0 / parameter)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda t: torch.log(t), r"f\(1\) = 0 and f''\(1\) = -1, and f must be convex"),
        (lambda t: (t - 1.0).square() + 5.0, r"f\(1\) = 5 and"),
        (lambda t: t * math.log(t) - t + t.item(), "'mine' cannot be differentiated"),
        (lambda t: np.log(t) * t, "'mine' cannot be differentiated: .*torch.log and not math.log"),
    ],
)
def test_what_is_no_divergence_is_refused(f, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Divergence("mine", "test", f).taylor(3)


def test_a_coefficient_that_cancels_is_zero() -> None:
    """alpha:3.5 has c_2 = 1/2, as t ln t: by differentiation they differ by a rounding, whose sign must not count."""
    derived = Divergence("mine", "test", get_divergence("alpha:3.5").f)
    assert derived.conditional_symmetry_taylor(2)[2] == 0.0
