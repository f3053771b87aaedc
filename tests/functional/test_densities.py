import math

import pytest
import torch
from scipy import integrate, stats

from brpo.functional import densities, streams


def test_gaussian_equals_scipy_summed_over_dimensions() -> None:
    actions, mean, log_std = torch.tensor([[[0.3, -0.7]]]), torch.tensor([[[0.1, 0.2]]]), torch.tensor([[[-1.0, 0.5]]])
    expected = stats.norm.logpdf(actions.numpy(), mean.numpy(), log_std.exp().numpy()).sum()
    assert densities.gaussian_log_prob(actions, mean, log_std).item() == pytest.approx(expected, rel=1e-6)


def test_squashed_gaussian_integrates_to_one() -> None:
    mean, log_std = torch.full((1, 1, 1), 0.4, dtype=torch.float64), torch.full((1, 1, 1), -0.3, dtype=torch.float64)

    def density(a: float) -> float:
        action = torch.full((1, 1, 1), a, dtype=torch.float64)
        return densities.squashed_gaussian_log_prob(action, mean, log_std, margin=1e-12).exp().item()

    assert integrate.quad(density, -1, 1, limit=200)[0] == pytest.approx(1.0, abs=1e-5)


def test_squashed_gaussian_equals_torch_transformed_distribution() -> None:
    actions = torch.tensor([[[0.9, -0.2, 0.0]]], dtype=torch.float64)
    mean, log_std = torch.full_like(actions, 0.3), torch.full_like(actions, -0.5)
    base = torch.distributions.Normal(mean, log_std.exp())
    oracle = torch.distributions.TransformedDistribution(base, [torch.distributions.TanhTransform()])
    expected = oracle.log_prob(actions).sum(-1)
    assert torch.allclose(densities.squashed_gaussian_log_prob(actions, mean, log_std), expected)


def test_boundary_actions_are_finite_with_finite_gradients() -> None:
    mean = torch.zeros(1, 2, 1, requires_grad=True)
    value = densities.squashed_gaussian_log_prob(torch.tensor([[[1.0], [-1.0]]]), mean, torch.zeros(1, 1, 1))
    value.sum().backward()
    assert value.isfinite().all()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()


def test_boundary_actions_count_as_those_a_margin_off_and_no_others_do() -> None:
    at_bound, off, inside = (
        densities.squashed_gaussian_log_prob(f64(action), f64(0.0), f64(0.0)) for action in (1.0, 1.0 - 1e-5, 0.995)
    )
    assert at_bound.item() == off.item() != inside.item()


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1)


@pytest.mark.parametrize("degrees", [1.01, 3.0, 50.0])
def test_student_t_equals_scipy_summed_over_dimensions(degrees: float) -> None:
    actions, location, log_scale = f64(0.3, -0.7, 1.0), f64(0.1, 0.2, -0.9), f64(-1.0, 0.5, -4.0)
    expected = stats.t.logpdf(actions, degrees, location, log_scale.exp()).sum()
    value = densities.student_t_log_prob(actions, location, log_scale, torch.full_like(actions, degrees))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_student_t_of_many_degrees_is_a_gaussian_in_float32_too() -> None:
    actions, mean, log_std = f64(0.3, -0.7).float(), f64(0.1, 0.2).float(), f64(-1.0, 0.5).float()
    heavy = densities.student_t_log_prob(actions, mean, log_std, torch.full_like(actions, 1e5))
    assert heavy.item() == pytest.approx(densities.gaussian_log_prob(actions, mean, log_std).item(), abs=1e-4)


@pytest.mark.parametrize("degrees", [1.5, 3.0, 40.0])
def test_student_t_noise_has_its_distribution(degrees: float) -> None:
    """Kolmogorov and Smirnov's distance, below its 1 % point."""
    normal = streams.normal(streams.key(torch.tensor([3]), 1), (2, 40_000, 1), torch.float64)
    drawn = densities.student_t_noise(normal[:, 0], normal[:, 1], torch.full((1, 1, 1), degrees, dtype=torch.float64))
    assert stats.kstest(drawn.flatten().numpy(), "t", (degrees,)).statistic < 1.63 / 40_000**0.5


def test_student_t_noise_is_differentiable_and_finite_at_zero_and_far_out() -> None:
    first, second = f64(0.0, 0.4, -1.3), f64(0.0, -0.8, 0.1)
    degrees = f64(1.5, 3.0, 30.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: densities.student_t_noise(first, second, v), (degrees,))
    far = densities.student_t_noise(f64(9.0, -9.0).float(), f64(9.0, 9.0).float(), f64(1.1, 1.1).float())
    assert far.isfinite().all()


def test_student_t_noise_far_out_by_its_formula() -> None:
    """r = 6^2 / 1.5 = 24: heavy tails are kept well beyond where the exponential is held."""
    drawn = densities.student_t_noise(f64(6.0), f64(0.0), f64(1.5))
    assert drawn.item() == pytest.approx(6 * math.sqrt(math.expm1(24) / 24), rel=1e-12)


def test_mixture_equals_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, mean, log_std = (torch.randn(2, 4, 3, *rest, generator=generator) for rest in ((), (2,), (2,)))
    actions = torch.randn(2, 4, 2, generator=generator)
    parts = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    oracle = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=logits), parts)
    assert torch.allclose(densities.mixture_log_prob(actions, logits, mean, log_std), oracle.log_prob(actions), atol=1e-5)


def test_components_are_drawn_by_their_weights() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64).log().expand(1, 40_000, 4)
    noise = streams.normal(streams.key(torch.tensor([3]), 2), (40_000,), torch.float64)
    shares = torch.bincount(densities.component(logits, noise).flatten(), minlength=4) / 40_000
    assert shares.tolist() == pytest.approx([0.2, 0.0, 0.5, 0.3], abs=0.01)
    assert shares[1] == 0
