"""f-divergences `D_f(P || Q) = E_Q[f(P/Q)]` and their Taylor series around P/Q = 1.

The first argument of the divergence is the numerator of `t`: `f(t) = t ln t` is KL(P || Q). Series start at n = 2 wherever
they are used: for normalized P and Q the terms of order 0 and 1 carry no information.

A symmetric divergence is its KL part plus the rest, `f(t) = t ln t + g(t)`; `g` is the *conditional symmetry function* of
Sf-AC (arXiv:2508.04225, section 4). To add a divergence, add one entry to `DIVERGENCES`: a name, a source and `f`.
Closed-form coefficients are optional; without them they come from nested automatic differentiation in float64.
One with a parameter is a function of it in `PARAMETRIC`; `NAME:NUMBER`, as in `alpha:0.5`, names a member.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_LOG_2 = math.log(2.0)


@dataclass(frozen=True)
class Divergence:
    """One f-divergence.

    Attributes:
        name: its key in `DIVERGENCES`.
        source: where f comes from, with its usual name.
        f: convex, f(1) = 0, for positive tensors.
        coefficient: n -> c_n for n >= 2, the coefficient of (t-1)^n in f; None to differentiate instead.
        radius: convergence radius of the series of g (`conditional_symmetry`) around 1; None to estimate it from the
            coefficients.
        smooth: False where f is not differentiable at 1; there is then no series.
        formula: f in words, for tables.
    """

    name: str
    source: str
    f: Callable[[Tensor], Tensor]
    coefficient: Callable[[int], float] | None = None
    radius: float | None = None
    smooth: bool = True
    formula: str = ""

    def df(self, t: Tensor) -> Tensor:
        """f'(t), elementwise, by automatic differentiation; no gradient flows through it."""
        with torch.enable_grad():
            point = t.detach().requires_grad_()
            return torch.autograd.grad(self.f(point).sum(), point)[0]

    @property
    def d2f1(self) -> float:
        """f''(1), the curvature that sets the scale of a temperature."""
        return 2.0 * self.taylor(2)[2]

    @property
    def is_symmetric(self) -> bool:
        """Whether D_f(P || Q) = D_f(Q || P): `f(t) - t f(1/t)` is a multiple of `t - 1`."""
        return _is_symmetric(self)

    def taylor(self, order: int) -> tuple[float, ...]:
        """Coefficients (c_0, ..., c_order) of f around 1.

        Raises:
            ValueError: f has no series at 1 (not differentiable there, or a kink beside it), one that is not finite, or the
                order is negative.
        """
        return _taylor(self, order)

    def conditional_symmetry(self, t: Tensor) -> Tensor:
        """g(t) = f(t) - t ln t."""
        return self.f(t) - torch.special.xlogy(t, t)

    def conditional_symmetry_taylor(self, order: int) -> tuple[float, ...]:
        """Coefficients (g_0, ..., g_order) of g around 1: those of f less those of t ln t."""
        kl = _taylor(DIVERGENCES["kl"], order)
        # Equal but for rounding is 0: its sign would say whether large ratios are rewarded.
        return tuple(
            0.0 if math.isclose(c, k, rel_tol=1e-12) else c - k for c, k in zip(self.taylor(order), kl, strict=True)
        )

    @property
    def series_radius(self) -> float:
        """Convergence radius of the series of g (1 at most unless the logarithm cancels), or its estimate."""
        return self.radius if self.radius is not None else _estimated_radius(self)


@cache
def _taylor(divergence: Divergence, order: int) -> tuple[float, ...]:
    if not divergence.smooth:
        raise ValueError(
            f"The divergence {divergence.name!r} is not differentiable at 1, so it has no Taylor series. "
            f"Choose one of: {', '.join(name for name, d in DIVERGENCES.items() if d.smooth)}, alpha:NUMBER."
        )
    if order < 0:
        raise ValueError(f"The order of a series must be at least 0, got {order}.")
    try:
        divergence.f(torch.ones(2, dtype=torch.float64))  # a single number would pass through math.log
        coefficients = _derivatives(divergence.f, order if divergence.coefficient is None else min(order, 1))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _not_by_torch(divergence, error) from error
    if divergence.coefficient is not None:
        coefficients += tuple(divergence.coefficient(n) for n in range(2, order + 1))
    elif order >= 2:
        _check_beside_one(divergence)
    if not all(map(math.isfinite, coefficients)):
        raise ValueError(
            f"The series of the divergence {divergence.name!r} is not finite up to order {order}: {coefficients}. "
            f"Lower the order, or take a divergence whose derivatives at 1 are finite."
        )
    return coefficients


def _derivatives(f: Callable[[Tensor], Tensor], order: int) -> tuple[float, ...]:
    """f^(n)(1) / n! for n = 0..order, exact up to float64 rounding."""
    with torch.enable_grad():
        t = torch.ones((), dtype=torch.float64, requires_grad=True)
        value, coefficients = f(t), []
        for n in range(order + 1):
            coefficients.append(value.item() / math.factorial(n))
            if n == order:
                break
            if not value.requires_grad:  # f is a polynomial of lower degree: all further derivatives are zero
                return tuple(coefficients) + (0.0,) * (order - n)
            (value,) = torch.autograd.grad(value, t, create_graph=True, allow_unused=True, materialize_grads=True)
    return tuple(coefficients)


BY_TORCH = "It must take and give a torch tensor, by torch's functions: torch.log and not math.log."


def _not_by_torch(divergence: Divergence, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"f of the divergence {divergence.name!r} cannot be differentiated: {reason}. {BY_TORCH}")


BESIDE = 1e-3  # how far from 1 a user's f is looked at


@cache
def _check_beside_one(divergence: Divergence) -> None:
    """Whether f is 0 at 1 and not concave there, and below and above 1 has the curvature that differentiation finds at 1.

    Raises:
        ValueError: it is not, or has another one: a kink or a jump hides there.
    """
    f0, c1, c2, c3 = _derivatives(divergence.f, 3)
    if not abs(f0) < 1e-6 or c2 < 0:
        raise ValueError(
            f"{divergence.name!r} is no divergence: f(1) = {f0:g} and f''(1) = {2 * c2:g}, and f must be convex with "
            f"f(1) = 0. A sign may be missing in f, or a constant."
        )
    sides = torch.tensor([-BESIDE, BESIDE], dtype=torch.float64)
    found = ((divergence.f(1.0 + sides) - f0 - c1 * sides) / sides.square()).tolist()
    if max(abs(side - c2) for side in found) > 0.05 * abs(c2) + 10.0 * BESIDE * abs(c3) + 0.1 * BESIDE:
        raise ValueError(
            f"The divergence {divergence.name!r} has no Taylor series at 1: f''(1) = {2 * c2:g} by differentiation, but "
            f"{2 * found[0]:g} just below and {2 * found[1]:g} just above (at a distance of {BESIDE:g}, in float64). Set "
            "smooth=False if f has a kink there, and it is used without a series; or write f without float32 and less sharp."
        )


@cache
def _check_convex(divergence: Divergence) -> None:
    """Whether the slopes of f rise from point to point between ratios of 0.01 and 20, but for rounding.

    Raises:
        ValueError: they do not, or f fails.
    """
    t = torch.logspace(-2.0, math.log10(20.0), 200, dtype=torch.float64)
    try:
        slopes = divergence.f(t).diff() / t.diff()
    except Exception as error:  # whatever a function of the user's raises
        raise _not_by_torch(divergence, error) from error
    rounding = 1e-9 * (slopes[1:].abs() + slopes[:-1].abs()) + 1e-12 * slopes.abs().max()
    if len(falls := (slopes.diff() < -rounding).nonzero()):
        raise ValueError(
            f"{divergence.name!r} is no divergence: f is concave at t = {t[falls[0, 0] + 1].item():.2g}, and must be convex "
            f"for all t > 0. Take another f, or write this one without float32, whose rounding looks the same."
        )


@cache
def _is_symmetric(divergence: Divergence) -> bool:
    t = torch.tensor([0.1, 0.3, 0.7, 1.5, 3.0, 9.0], dtype=torch.float64)
    ratio = (divergence.f(t) - t * divergence.f(1.0 / t)) / (t - 1.0)
    return bool((ratio - ratio[0]).abs().max() < 1e-9 * (1.0 + ratio.abs().max()))


@cache
def _estimated_radius(divergence: Divergence) -> float:
    """From the quotient of the last two coefficients that are not 0; infinite where those of orders 7 and 8 are.

    It misses the radius: -ln t, whose radius is 1, has 8/7, (t - 1)^2 / (t + 1) with a t ln t 0.8. So 1, where t ln t ends
    the series, for what is near it. Clearly more is what f has that cancels it: with a logarithm's coefficients there,
    as Jensen-Shannon's, the quotient is 8/6 of the radius, and is divided by that; of a pole's that is a cautious estimate.
    Where large and small coefficients alternate it is far too low: give such a divergence its `radius`.
    """
    coefficients = {n: abs(c) for n, c in enumerate(divergence.conditional_symmetry_taylor(8)) if n >= 2 and c != 0.0}
    *_, before, last = sorted({0, 1, *coefficients})
    if last < 7 or before < 2:
        return math.inf
    quotient = (coefficients[before] / coefficients[last]) ** (1.0 / (last - before))
    return 0.75 * quotient if quotient > 1.5 else 1.0 if quotient > 0.75 else quotient


def _sign(n: int) -> float:
    return 1.0 if n % 2 == 0 else -1.0


def _jensen_shannon(t: Tensor) -> Tensor:
    return torch.special.xlogy(t, t) - (1.0 + t) * torch.log((1.0 + t) / 2.0)


def _gan(t: Tensor) -> Tensor:
    return torch.special.xlogy(t, t) - (1.0 + t) * torch.log1p(t) + 2.0 * _LOG_2


def _jensen_shannon_coefficient(n: int) -> float:
    return _sign(n) * (1.0 - 2.0 ** (1 - n)) / (n * (n - 1))


def _hellinger_coefficient(n: int) -> float:
    binomial = math.prod((0.5 - k) / (k + 1) for k in range(n))
    return -2.0 * binomial


DIVERGENCES: dict[str, Divergence] = {
    entry.name: entry
    for entry in (
        Divergence(
            "kl",
            "Kullback-Leibler KL(P || Q)",
            lambda t: torch.special.xlogy(t, t),
            lambda n: _sign(n) / (n * (n - 1)),
            radius=1.0,
            formula="t ln t",
        ),
        Divergence("reverse_kl", "KL(Q || P)", lambda t: -torch.log(t), lambda n: _sign(n) / n, radius=1.0, formula="-ln t"),
        Divergence(
            "chi2",
            "Pearson chi^2",
            lambda t: (t - 1.0).square(),
            lambda n: float(n == 2),
            radius=1.0,
            formula="(t - 1)^2",
        ),
        Divergence(
            "neyman_chi2", "Neyman chi^2", lambda t: (1.0 - t).square() / t, _sign, radius=1.0, formula="(1 - t)^2 / t"
        ),
        Divergence(
            "hellinger",
            "squared Hellinger distance, without the factor 1/2",
            lambda t: (t.sqrt() - 1.0).square(),
            _hellinger_coefficient,
            radius=1.0,
            formula="(sqrt(t) - 1)^2",
        ),
        Divergence(
            "le_cam",
            "Le Cam (triangular) distance",
            lambda t: (t - 1.0).square() / (t + 1.0),
            lambda n: _sign(n) * 2.0 ** (1 - n),
            radius=1.0,
            formula="(t - 1)^2 / (t + 1)",
        ),
        Divergence(
            "total_variation",
            "total variation distance",
            lambda t: (t - 1.0).abs() / 2.0,
            smooth=False,
            formula="abs(t - 1) / 2",
        ),
        Divergence(
            "jeffreys",
            "Jeffreys: KL(P || Q) + KL(Q || P)",
            lambda t: (t - 1.0) * torch.log(t),
            lambda n: _sign(n) / (n - 1),
            radius=1.0,
            formula="(t - 1) ln t",
        ),
        Divergence(
            "jensen_shannon",
            "twice the Jensen-Shannon divergence, at most 2 ln 2",
            _jensen_shannon,
            _jensen_shannon_coefficient,
            radius=2.0,
            formula="t ln t - (1 + t) ln((1 + t) / 2)",
        ),
        Divergence(
            "gan",
            "the GAN objective's divergence: jensen_shannon plus (1 - t) ln 2",
            _gan,
            _jensen_shannon_coefficient,
            radius=2.0,
            formula="t ln t - (1 + t) ln(1 + t) + 2 ln 2",
        ),
    )
}


@cache
def alpha(parameter: float) -> Divergence:
    """The alpha-divergence with `f(t) = (t^a - a t + a - 1) / (a (a - 1))`, a the parameter, any finite number.

    1 is `kl`, 0 `reverse_kl` (both plus a multiple of t - 1, which no normalized P and Q see), 2 half of `chi2`, -1 half of
    `neyman_chi2`, 1/2 twice `hellinger`. Source: Cressie and Read (1984), "Multinomial goodness-of-fit tests".
    """
    name, source = f"alpha:{parameter:.12g}", "alpha-divergence, Cressie and Read (1984)"
    # Nearer than this the limit is the better approximation: the power would lose digits, and below 1e-308 all of them.
    if abs(parameter - 1.0) < 1e-12:
        return Divergence(name, source, lambda t: torch.special.xlogy(t, t) - t + 1.0, DIVERGENCES["kl"].coefficient, 1.0)
    if abs(parameter) < 1e-12:
        return Divergence(name, source, lambda t: t - 1.0 - torch.log(t), DIVERGENCES["reverse_kl"].coefficient, 1.0)

    def coefficient(n: int) -> float:  # binom(a, n) / (a (a - 1))
        return 0.5 * math.prod((parameter - k) / (k + 1) for k in range(2, n))

    return Divergence(name, source, lambda t: _power_divergence(t, parameter), coefficient, 1.0)


def _power_divergence(t: Tensor, a: float) -> Tensor:
    """`(t^a - a t + a - 1) / (a (a - 1))`, without cancellation where a is near 0 or 1."""
    if a <= 0.5:
        return (torch.expm1(a * torch.log(t)) - a * (t - 1.0)) / (a * (a - 1.0))
    power = t * torch.expm1((a - 1.0) * torch.log(t))  # t^a - t, which is 0 times infinity at 0
    return (torch.where(t == 0, 0.0, power) - (a - 1.0) * (t - 1.0)) / (a * (a - 1.0))


PARAMETRIC: dict[str, Callable[[float], Divergence]] = {"alpha": alpha}


def get_divergence(name: str) -> Divergence:
    """The entry of a name: a key of `DIVERGENCES`, or `NAME:NUMBER` with a key of `PARAMETRIC`, as in `alpha:0.5`.

    Raises:
        ValueError: the name is unknown (the message lists the known ones), or has no finite number behind it; or f is not
            convex.
    """
    if isinstance(name, str) and name in DIVERGENCES:
        _check_convex(DIVERGENCES[name])
        return DIVERGENCES[name]
    kind, _, number = str(name).partition(":")
    if kind not in PARAMETRIC:
        known = ", ".join([*sorted(DIVERGENCES), *(f"{kind}:NUMBER" for kind in PARAMETRIC)])
        raise ValueError(f"Unknown divergence {name!r}. Known: {known}.")
    try:
        parameter = float(number)
    except ValueError:
        parameter = math.nan
    if not math.isfinite(parameter):
        raise ValueError(f"The divergence {name!r} needs a finite number, as in {kind}:0.5.")
    return PARAMETRIC[kind](parameter)
