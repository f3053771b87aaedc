"""Mixtures of Gaussians on a grid: densities, divergences by numerical integration, and many fits in one optimization."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brpo.functional import series, streams
from brpo.functional.divergences import DIVERGENCES, Divergence, get_divergence

LARGEST_LOG_RATIO = 300.0  # |log p/q| beyond this is cut: the square of its exponential is still a float64
RATE, LARGEST_GRADIENT = 0.05, 1.0  # Adam's first step size, and the gradient norm of a fit that it sees at most


@dataclass(frozen=True)
class Mixture:
    """Mixtures of Gaussians, any number of them on leading axes.

    Attributes:
        log_weights: (..., components), normalized.
        means: (..., components, d).
        factors: (..., components, d, d), lower triangular; a component's covariance is its factor times its transpose.
    """

    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def log_density(self, points: Tensor) -> Tensor:
        """Log-densities (..., points) at points (points, d).

        The exponent of a Gaussian is linear in the monomials of degree 0 to 2: one matrix product gives those of all.
        """
        d = points.shape[-1]
        inverse = torch.linalg.inv(self.factors)
        precision = inverse.transpose(-1, -2) @ inverse  # (..., components, d, d)
        linear = (precision @ self.means.unsqueeze(-1)).squeeze(-1)
        log_scale = self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * d * math.log(2.0 * math.pi)
        constant = self.log_weights - log_scale - 0.5 * (linear * self.means).sum(-1)
        coefficients = torch.cat([constant.unsqueeze(-1), linear, -0.5 * precision.flatten(-2)], -1)
        squares = (points.unsqueeze(-1) * points.unsqueeze(-2)).flatten(-2)
        monomials = torch.cat([torch.ones_like(points[:, :1]), points, squares], -1)  # (points, 1 + d + d^2)
        return torch.logsumexp(coefficients @ monomials.T, dim=-2)

    def __getitem__(self, index: tuple[int | Tensor, ...]) -> "Mixture":
        return Mixture(self.log_weights[index], self.means[index], self.factors[index])


@dataclass(frozen=True)
class Grid:
    """Equidistant points of a cube: a sum over them is an integral, up to what lies outside.

    The error of the sum falls off faster than any power of the spacing for smooth integrands; for a Gaussian with a
    standard deviation of one spacing it is below 1e-8.

    Attributes:
        points: (points, d).
        spacing: distance of neighbours.
    """

    points: Tensor
    spacing: float

    @classmethod
    def cube(cls, half_width: float, size: int, d: int) -> "Grid":
        """`size` points along each of d axes, from -half_width to half_width."""
        axis = torch.linspace(-half_width, half_width, size, dtype=torch.float64)
        return cls(torch.cartesian_prod(*[axis] * d).reshape(-1, d), 2.0 * half_width / (size - 1))

    def integrate(self, values: Tensor) -> Tensor:
        """Integrals (...) of functions (..., points)."""
        return values.sum(-1) * self.spacing ** self.points.shape[-1]

    def normalized(self, log_density: Tensor) -> Tensor:
        """Log-densities (..., points) of what is left of distributions within the cube.

        Without it a fit could leave the cube and take its divergence with it: the terms of f that carry no information
        for normalized densities (that of `gan` is (1 - t) ln 2) do for others.
        """
        return log_density - (
            torch.logsumexp(log_density, -1, keepdim=True) + self.points.shape[-1] * math.log(self.spacing)
        )


@dataclass(frozen=True)
class Objective:
    """What a fit q to a target p minimizes: `D_f(p || q) = E_q[f(p/q)]`, or its truncation as in Sf-AC's policy loss.

    The truncation is `KL(p || q) + E_q[sum_{n=2}^N g_n (clip(t, 1 - epsilon, 1 + epsilon) - 1)^n]`, t = p/q, with the
    coefficients of the conditional symmetry function g (arXiv:2508.04225, section 4). The outer ratio is not capped.
    Between the two stands the clip without truncation: `g(t) - g(1) - g'(1)(t - 1)` in place of the series. Ours.

    Attributes:
        divergence: f.
        order: N; None for the exact function.
        epsilon: of the clip; infinite where nothing is clipped.
    """

    divergence: Divergence
    order: int | None = None
    epsilon: float = math.inf

    @property
    def label(self) -> str:
        """`exact`, `clipped`, or the order."""
        if self.order is not None:
            return str(self.order)
        return "exact" if math.isinf(self.epsilon) else "clipped"


def objectives(orders: Sequence[int], clip: float, also: Sequence[str] = ()) -> list[Objective]:
    """Every divergence of the table exactly, and where its g has a series, not all zeros, clipped and truncated.

    Args:
        orders: N_loss.
        clip: epsilon as a share of the radius of convergence, in (0, 1].
        also: names of divergences that are not in the table, as `alpha:0.7`.
    """
    divergences = [get_divergence(name) for name in (*DIVERGENCES, *also)]
    exact = [Objective(divergence) for divergence in divergences]
    expandable = [d for d in divergences if d.smooth and any(d.conditional_symmetry_taylor(max(orders))[2:])]
    clipped = [Objective(d, None, clip * d.series_radius) for d in expandable]
    return exact + clipped + [Objective(d, order, clip * d.series_radius) for d in expandable for order in orders]


def divergence_between(divergence: Divergence, log_p: Tensor, log_q: Tensor, grid: Grid) -> Tensor:
    """`D_f(p || q)` (...) from log-densities (..., points), by numerical integration."""
    log_t = (log_p - log_q).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return grid.integrate(log_q.exp() * divergence.f(log_t.exp()))


class Losses:
    """The objectives of many fits at once, each fit with its own.

    All truncated ones are one computation: a matrix of coefficients, and a clip range for each. The others differ in f.

    Args:
        chosen: one for each fit, the truncated ones last.
        log_p: of the target, (points,).
        grid: where the densities are known.
    """

    def __init__(self, chosen: Sequence[Objective], log_p: Tensor, grid: Grid) -> None:
        self.functions = [objective for objective in chosen if objective.order is None]
        truncated = [objective for objective in chosen if objective.order is not None]
        assert list(chosen) == self.functions + truncated, "the truncated objectives come last"
        self.log_p, self.grid = log_p, grid
        self.coefficients = padded([o.divergence.conditional_symmetry_taylor(o.order or 2) for o in truncated])
        epsilon = torch.tensor([objective.epsilon for objective in truncated], dtype=torch.float64).unsqueeze(-1)
        self.log_low, self.log_high = (1.0 - epsilon).clamp(min=series.LOWEST).log(), epsilon.log1p()

    def __call__(self, log_q: Tensor) -> Tensor:
        """Losses (..., fits) of log-densities (..., fits, points)."""
        count = len(self.functions)
        each = zip(self.functions, log_q[..., :count, :].unbind(-2), strict=True)
        first = [self.of_function(objective, q) for objective, q in each]
        return torch.cat([torch.stack(first, -1), self.truncated(log_q[..., count:, :])], -1)

    def of_function(self, objective: Objective, log_q: Tensor) -> Tensor:
        """The exact divergence (...), or the KL part and the exact g of the clipped ratio."""
        divergence = objective.divergence
        if math.isinf(objective.epsilon):
            return divergence_between(divergence, self.log_p, log_q, self.grid)
        log_t, g = self.log_p - log_q, divergence.conditional_symmetry_taylor(2)
        t = log_t.clamp(math.log(series.clip_range(objective.epsilon)[0]), math.log1p(objective.epsilon)).exp()
        return self.grid.integrate(self.log_p.exp() * log_t + log_q.exp() * series.tail(divergence, g, t))

    def truncated(self, log_q: Tensor) -> Tensor:
        """KL part and clipped series of the truncated objectives."""
        log_t = self.log_p - log_q
        u = torch.clamp(log_t, self.log_low, self.log_high).exp() - 1.0
        total = torch.zeros_like(u)
        for coefficient in self.coefficients.unbind(-1)[:1:-1]:  # Horner's rule, from the highest order to order 2
            total = total * u + coefficient.unsqueeze(-1)
        return self.grid.integrate(self.log_p.exp() * log_t + log_q.exp() * total * u.square())


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """Coefficients of series of several orders as one matrix, zeros beyond the order of each."""
    longest = max((len(row) for row in rows), default=3)
    return torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rows], dtype=torch.float64).reshape(-1, longest)


def samples(target: Mixture, count: int, seed: int) -> Tensor:
    """Points (count, d) of one mixture, a function of the seed."""
    key = streams.key(torch.tensor(seed), streams.purpose("mixture"))
    uniform = streams.uniform(streams.key(key, 0), (count,), torch.float64)
    component = torch.searchsorted(target.log_weights.exp().cumsum(-1), uniform).clamp(max=target.log_weights.shape[-1] - 1)
    noise = streams.normal(streams.key(key, 1), (count, target.means.shape[-1]), torch.float64)
    return target.means[component] + (target.factors[component] @ noise.unsqueeze(-1)).squeeze(-1)


def spread_out(points: Tensor, count: int) -> Tensor:
    """The first of some points (n, d) and `count - 1` others, each the farthest from those before it."""
    chosen = points[:1]
    for _ in range(count - 1):
        distance = torch.cdist(points, chosen).amin(-1)
        chosen = torch.cat([chosen, points[distance.argmax()].unsqueeze(0)])
    return chosen


def start(target: Mixture, components: int, restarts: int, fits: int, seed: int) -> list[Tensor]:
    """Parameters that the fits start from: means at points of the target, its overall standard deviations.

    The first means of the restarts are spread out, and so are the means within each restart: with a restart for each
    mode, a fit that takes one mode only has started near each.

    Returns:
        Logits of the weights (restarts, fits, components), means (..., d), log diagonals (..., d) and the rest (..., d, d).
    """
    drawn = samples(target, 16 * restarts, seed).reshape(restarts, 16, -1)
    anchors = spread_out(drawn.flatten(0, 1), restarts).unsqueeze(1)  # (restarts, 1, d)
    means = torch.stack([spread_out(points, components) for points in torch.cat([anchors, drawn], 1)])
    shape = (restarts, fits, components)
    spread = samples(target, 1024, seed).std(0).log()
    return [
        torch.zeros(shape, dtype=torch.float64),
        means.unsqueeze(1).expand(*shape, -1).clone(),
        spread.expand(*shape, -1).clone(),
        torch.zeros(*shape, means.shape[-1], means.shape[-1], dtype=torch.float64),
    ]


def mixture_of(parameters: Sequence[Tensor], smallest_std: float) -> Mixture:
    """The mixtures of some parameters (see `start`); no factor has a diagonal below `smallest_std`."""
    logits, means, log_diagonal, rest = parameters
    diagonal = log_diagonal.clamp(min=math.log(smallest_std)).exp()
    return Mixture(logits.log_softmax(-1), means, torch.diag_embed(diagonal) + rest.tril(-1))


def fit(
    target: Mixture, chosen: Sequence[Objective], grid: Grid, *, components: int, updates: int, restarts: int, seed: int
) -> tuple[Mixture, Tensor]:
    """Fit a mixture to the target under each objective, all of them and all restarts in one optimization.

    Args:
        target: one mixture.
        chosen: an objective for each fit, the truncated ones last.
        grid: that integrals are taken on.
        components: of the fits; 1 fits a Gaussian.
        updates: of Adam, its step size falling to zero along half a cosine.
        restarts: from other points of the target; the one with the smallest loss is kept.
        seed: of these points.

    Returns:
        The fits (objectives, components, ...) and their losses (objectives,).
    """
    losses = Losses(chosen, grid.normalized(target.log_density(grid.points)), grid)
    parameters = [p.requires_grad_() for p in start(target, components, restarts, len(chosen), seed)]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        loss = losses(grid.normalized(mixture_of(parameters, grid.spacing).log_density(grid.points)))
        gradients = torch.autograd.grad(loss.sum(), parameters)
        for parameter, gradient in zip(parameters, clipped(gradients), strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    fits = mixture_of([parameter.detach() for parameter in parameters], grid.spacing)
    loss = losses(grid.normalized(fits.log_density(grid.points)))  # (restarts, objectives)
    best = loss.nan_to_num(math.inf).argmin(0)
    index = (best, torch.arange(len(chosen)))
    return fits[index], loss[index]


def clipped(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients (restarts, fits, ...) scaled so that none of a fit has a norm above `LARGEST_GRADIENT`.

    An early gradient of a chi^2 divergence can be larger than later ones by many orders; Adam would remember it.
    """
    norm = torch.stack([gradient.flatten(2).square().sum(-1) for gradient in gradients]).sum(0).sqrt()
    scale = (LARGEST_GRADIENT / norm).clamp(max=1.0)
    return [gradient * scale.reshape(*scale.shape, *[1] * (gradient.ndim - 2)) for gradient in gradients]
