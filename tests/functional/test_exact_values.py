import math

import numpy as np
import pytest
import torch

from brpo.functional.diffusion import Schedule
from brpo.functional.exact_values import diffusion_value

POINTS = torch.tensor([[0.5, 0.0], [-0.5, 0.2], [0.1, -0.7]], dtype=torch.float64)
VALUES = torch.tensor([1.0, 0.2, 0.6], dtype=torch.float64)


def test_two_points_by_hand() -> None:
    """Halfway between two points, p = 1/2 each; eta = 1: log((e + 1) / 2)."""
    points, values = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([1.0, 0.0])
    value = diffusion_value(torch.zeros(1, 2), points, values, 0.5, 1.0)
    assert value.item() == pytest.approx(math.log((math.e + 1) / 2), rel=1e-6)


def test_all_noise_forgets_the_place_and_little_noise_knows_the_point() -> None:
    noisy = torch.randn(5, 2, dtype=torch.float64)
    soft_mean = 0.06 * ((VALUES / 0.06).logsumexp(0) - math.log(3))
    assert torch.allclose(diffusion_value(noisy, POINTS, VALUES, 0.0, 0.06), soft_mean.expand(5))
    abar = 1 - 1e-5
    assert torch.allclose(diffusion_value(math.sqrt(abar) * POINTS, POINTS, VALUES, abar, 0.06), VALUES)


def test_it_solves_the_backward_recursion() -> None:
    """`exp(V_n / eta)` is the mean of `exp(V_m / eta)` over the data's own reverse step from n to m < n: by integration."""
    later, earlier, eta, x = 0.3, 0.6, 0.2, torch.tensor([[0.2, -0.1]], dtype=torch.float64)
    step = later / earlier  # x_n = sqrt(step) x_m + sqrt(1 - step) noise

    # A grid is enough for smooth integrands that vanish at its edge.
    axis = torch.linspace(-3.5, 3.5, 71, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis)
    marginal = (-(torch.cdist(y, math.sqrt(earlier) * POINTS) ** 2) / (2 * (1 - earlier))).exp().mean(-1)
    weight = marginal * (-((x - math.sqrt(step) * y) ** 2).sum(-1) / (2 * (1 - step))).exp()
    value = diffusion_value(y, POINTS, VALUES, earlier, eta)
    expected = eta * ((weight * (value / eta).exp()).sum() / weight.sum()).log().item()
    assert diffusion_value(x, POINTS, VALUES, later, eta).item() == pytest.approx(expected, abs=1e-6)


def best_gaussian_chain(steps: int, values: np.ndarray, shares: np.ndarray, points: np.ndarray, eta: float) -> float:
    """Mean start value of the best chain that has the behaviour's variances and chooses its means, by dynamic programming.

    One dimension, V_0 the value of the nearest point, all on one grid: `V_n(x) = max_m E V_{n-1}(m + sqrt(beta) z) - eta
    (m - m_D(x))^2 / (2 beta)`, m_D the mean of the data's own reverse step.
    """
    schedule, grid = Schedule.of("vp", steps), np.linspace(-5.0, 5.0, 801)
    found = values[np.abs(grid[:, None] - points).argmin(1)]
    for n in range(1, steps + 1):
        beta, bar, step = schedule.betas[n], schedule.alpha_bars[n], schedule.step(n)
        log_p = np.log(shares) - (grid[:, None] - math.sqrt(bar) * points) ** 2 / (2.0 * (1.0 - bar))
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        mean = float(step.from_clean) * (p @ points) / p.sum(1) + float(step.from_noisy) * grid
        kernel = np.exp(-((grid[:, None] - grid) ** 2) / (2.0 * beta))
        after = kernel @ found / kernel.sum(1)
        found = (after - eta * (grid - mean[:, None]) ** 2 / (2.0 * beta)).max(1)
    start = np.exp(-(grid**2) / 2.0)
    return float(start @ found / start.sum())


def test_gaussian_steps_stay_below_it_by_little() -> None:
    """Two narrow modes, the better with two fifths of the data: `1 + eta log 0.4` = 0.945. Many steps come nearer."""
    eta, within = 0.06, np.linspace(-3.0, 3.0, 25)
    points, values = np.concatenate([1.0 + 0.1 * within, -1.0 + 0.1 * within]), np.repeat([1.0, 0.0], 25)
    shares = np.tile(np.exp(-(within**2) / 2.0), 2) * np.repeat([0.4, 0.6], 25)
    shares /= shares.sum()
    exact = diffusion_value(
        torch.randn(1, 1, dtype=torch.float64),
        torch.as_tensor(points).repeat_interleave(torch.as_tensor((1e5 * shares).round()).long())[:, None],
        torch.as_tensor(values).repeat_interleave(torch.as_tensor((1e5 * shares).round()).long()),
        0.0,
        eta,
    ).item()
    assert exact == pytest.approx(1.0 + eta * math.log(0.4), abs=1e-5)
    best = best_gaussian_chain(50, values, shares, points, eta)
    assert exact - 0.01 < best < exact
    assert best_gaussian_chain(5, values, shares, points, eta) < exact - 0.03


def test_a_constant_value_stays_and_small_temperatures_do_not_overflow() -> None:
    noisy = torch.randn(4, 2)
    points = torch.randn(7, 2)
    assert torch.allclose(diffusion_value(noisy, points, torch.full((7,), 0.3), 0.9, 1e-4), torch.full((4,), 0.3))


@pytest.mark.parametrize(("alpha_bar", "temperature"), [(1.0, 1.0), (-0.1, 1.0), (0.5, 0.0)])
def test_out_of_range(alpha_bar: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        diffusion_value(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), alpha_bar, temperature)
