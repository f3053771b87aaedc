import math

import pytest
import torch

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


def test_a_constant_value_stays_and_small_temperatures_do_not_overflow() -> None:
    noisy = torch.randn(4, 2)
    points = torch.randn(7, 2)
    assert torch.allclose(diffusion_value(noisy, points, torch.full((7,), 0.3), 0.9, 1e-4), torch.full((4,), 0.3))


@pytest.mark.parametrize(("alpha_bar", "temperature"), [(1.0, 1.0), (-0.1, 1.0), (0.5, 0.0)])
def test_out_of_range(alpha_bar: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        diffusion_value(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), alpha_bar, temperature)
