"""Truncated Taylor series of divergences: evaluating them, bounding them, and the target ratio that they imply."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from brpo.functional.divergences import Divergence

LOWEST = 1e-8  # smallest ratio of a clip range
STEPS = 24  # of the search for the target ratio


def evaluate(coefficients: tuple[float, ...], t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`sum_{n=2}^N c_n (t-1)^n` by Horner's rule; `coefficients` are (c_0, ..., c_N), of which the first two are left out.

    Raises:
        ValueError: the series has no term of order 2.
    """
    if len(coefficients) < 3:
        raise ValueError(f"A series starts at order 2, got coefficients up to order {len(coefficients) - 1}.")
    u = t - 1.0
    total = torch.full_like(u, coefficients[-1])
    for coefficient in reversed(coefficients[2:-1]):
        total = total * u + coefficient
    return total * u.square()


def tail(divergence: Divergence, g: tuple[float, ...], t: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`g(t) - g(1) - g'(1) (t-1)`: the conditional symmetry function without what its series begins with.

    `g` are its coefficients, of which the first two are used: they cannot be had inside a compiled graph.
    """
    return divergence.conditional_symmetry(t) - g[0] - g[1] * (t - 1.0)


def clip_range(epsilon: float) -> tuple[float, float]:
    """`[max(1 - epsilon, 1e-8), 1 + epsilon]`: where ratios are kept, whose logarithm is taken."""
    return max(1.0 - epsilon, LOWEST), 1.0 + epsilon


def remainder(divergence: Divergence, order: int, epsilon: float) -> float:
    """Largest error of the truncated g on the clip range, on a grid of 2001 points in float64.

    `sup |g(t) - g(1) - g'(1) (t-1) - sum_{n=2}^N g_n (t-1)^n|`.
    """
    t = torch.linspace(*clip_range(epsilon), 2001, dtype=torch.float64)
    g = divergence.conditional_symmetry_taylor(order)
    return (tail(divergence, g, t) - evaluate(g, t)).abs().max().item()


def coefficient_bound(coefficients: tuple[float, ...], epsilon: float) -> float:
    """`(1 + epsilon) / h(1 + epsilon)`: below it a sample above the clip range is always pulled up to its target. Ours.

    There the gradient of Sf-AC's policy loss on log pi is `coefficient rho h(1 + epsilon) - w`, with
    `w > (1 + epsilon) rho`. Infinite where h is not positive: the term itself pulls up.
    """
    h = evaluate(coefficients, torch.tensor([1.0 + epsilon], dtype=torch.float64)).item()
    return (1.0 + epsilon) / h if h > 0 else math.inf


@dataclass(frozen=True)
class Branch:
    """f_N'(1 + u) where it increases through u = 0.

    Attributes:
        derivative: the polynomial, in ascending powers of u.
        low: where the branch begins; its value there is `at_low`.
        high: where it ends; its value there is `at_high`.
    """

    derivative: tuple[float, ...]
    low: float
    high: float
    at_low: float
    at_high: float


@cache
def branch(divergence: Divergence, order: int) -> Branch:
    """The branch of f_N' that the target ratio lies on.

    Raises:
        ValueError: the order is not in 2..5, f has no series there, or f''(1) is not positive.
    """
    if order not in (2, 3, 4, 5):
        raise ValueError(f"policy_order must be 2, 3, 4 or 5 (the equation is solvable by radicals), got {order}.")
    coefficients = divergence.taylor(order)
    if coefficients[2] <= 0:
        raise ValueError(
            f"The divergence {divergence.name!r} has f''(1) = {2 * coefficients[2]:g}, which must be positive: "
            "a temperature is measured by it. Take another divergence."
        )
    derivative = tuple(n * coefficients[n] if n >= 2 else 0.0 for n in range(1, order + 1))
    while derivative[-1] == 0.0:  # a polynomial f (chi2) has no terms of high order
        derivative = derivative[:-1]
    polynomial = np.polynomial.Polynomial(derivative)
    turning = [root.real for root in np.atleast_1d(polynomial.deriv().roots()) if abs(root.imag) < 1e-9]
    low = float(max([-1.0, *(u for u in turning if u < 0)]))  # numpy's numbers would break torch.compile's graphs
    high = float(min([u for u in turning if u > 0], default=math.inf))
    return Branch(derivative, low, high, float(polynomial(low)), math.inf if math.isinf(high) else float(polynomial(high)))


def _polynomial(coefficients: tuple[float, ...], u: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative of a polynomial in ascending powers, by Horner's rule."""
    value, slope = torch.full_like(u, coefficients[-1]), torch.zeros_like(u)
    for coefficient in reversed(coefficients[:-1]):
        slope = slope * u + value
        value = value * u + coefficient
    return value, slope


class _BranchRoot(torch.autograd.Function):
    """Root of f_N'(1 + u) = x on the increasing branch; the gradient is 1 / f_N''(1 + u) inside it and 0 where clipped."""

    @staticmethod
    def forward(ctx, x: Tensor, branch: Branch) -> Tensor:
        derivative, low, high = branch.derivative, branch.low, branch.high
        at_low, at_high = branch.at_low, branch.at_high
        inside = (x > at_low) & (x < at_high)
        left = torch.full_like(x, low)
        if math.isinf(high):
            # Beyond `settled` the leading term is at least half of the polynomial, which bounds the root from above.
            leading, degree = derivative[-1], len(derivative) - 1
            settled = 1.0 + 2.0 * sum(abs(c) for c in derivative) / leading
            right = (2.0 * x.abs() / leading).pow(1.0 / degree).clamp(min=settled)
        else:
            right = torch.full_like(x, high)
        u = torch.zeros_like(x)
        for _ in range(STEPS):  # Newton, replaced by a bisection where it would leave the bracket
            value, slope = _polynomial(derivative, u)
            above = value > x
            right, left = torch.where(above, u, right), torch.where(above, left, u)
            newton = u - (value - x) / slope
            u = torch.where((newton >= left) & (newton <= right), newton, 0.5 * (left + right))
        u = torch.where(x <= at_low, low, torch.where(x >= at_high, high, u))  # +inf where nothing ends, as x = inf is
        u = torch.where(x.isnan(), x, u)
        ctx.save_for_backward(u, inside)
        ctx.derivative = derivative
        return u

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        u, inside = ctx.saved_tensors
        _, slope = _polynomial(ctx.derivative, u)
        return torch.where(inside, gradients[0] / slope, torch.zeros_like(u)), None


def target_ratio(branch: Branch, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The ratio `w = pi*/pi_D` that solves `f_N'(w) = x`, `f_N` the series of f from order 2 to N.

    The root on the branch through (x = 0, w = 1): non-negative, non-decreasing in x, constant beyond a turning point of
    f_N' (odd N). Solved in float64, returned in the precision of x. `dw/dx = 1 / f_N''(w)`, 0 where w is constant.
    For N = 2 it is `[1 + x / (2 c_2)]_+`.

    Source: Sf-AC (arXiv:2508.04225), section 3; orders 3 to 5 and the branch are ours.
    """
    if len(branch.derivative) == 2:
        return (1.0 + x / branch.derivative[1]).clamp(min=0.0)
    root = _BranchRoot.apply(x.double(), branch)
    return (1.0 + root).to(x.dtype)  # type: ignore[operator]


def conjugate(branch: Branch, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`max_w (x w - f_N(w))` over the branch's ratios w, the convex conjugate of the truncated series.

    Its derivative is the ratio itself, which is how it is differentiated: the root is solved for once, without gradient.
    Where the branch ends, at w = 0 or where f_N' turns (odd N), it goes on linearly. For N = 2 it is
    `c_2 ([1 + x / (2 c_2)]_+^2 - 1)`.
    Source: Fenchel duality; its use for V is SQL's (arXiv:2303.15810) at N = 2, and ours at other orders.
    """
    ratio = target_ratio(branch, x.detach())
    u = ratio - 1.0
    total = torch.zeros_like(u)
    for power in range(len(branch.derivative) - 1, 0, -1):  # the primitive of the derivative, by Horner's rule
        total = (total + branch.derivative[power] / (power + 1)) * u
    return x * ratio - total * u
