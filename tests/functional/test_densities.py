import pytest
import torch
from scipy import integrate, stats

from brpo.functional import densities


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
