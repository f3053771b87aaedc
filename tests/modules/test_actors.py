"""The heavy-tailed and the mixture policy; the other actors are in test_modules.py."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from brpo.functional import streams
from brpo.modules.actors import GaussianActor, MixtureActor, SquashedGaussianActor, StudentTActor
from brpo.modules.mlp import initialize
from tests.helpers import make_spec

BASE: dict[str, Any] = {"hidden": (8,), "activation": "tanh", "min_log_std": -5.0, "max_log_std": 2.0}
STUDENT_T: dict[str, Any] = {
    "state_dependent_std": False, "degrees_of_freedom": 3.0, "learn_degrees_of_freedom": False,
}  # fmt: skip
MIXTURE: dict[str, Any] = {"state_dependent_std": False, "components": 3}
KINDS = {
    "gaussian": functools.partial(GaussianActor, **BASE),
    "squashed": functools.partial(SquashedGaussianActor, **BASE),
    "student_t": functools.partial(StudentTActor, **BASE, **STUDENT_T),
    "student_t, all learned": functools.partial(
        StudentTActor, **BASE, **STUDENT_T | {"state_dependent_std": True, "learn_degrees_of_freedom": True}
    ),
    "mixture": functools.partial(MixtureActor, **BASE, **MIXTURE),
    "mixture, all learned": functools.partial(MixtureActor, **BASE, **MIXTURE | {"state_dependent_std": True}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, seeds: int = 1, observation: int = 3, action: int = 2, **changes: Any) -> Any:
    """In float64, its weights drawn."""
    actor = KINDS[kind](make_spec(observation=observation, action=action), seeds, **changes)
    initialize(actor, torch.arange(seeds), "actor")
    return actor.double()


def noise(actor: Any, count: int, seeds: int = 1) -> torch.Tensor:
    return streams.normal(streams.key(torch.arange(seeds), 7), (count, actor.noise_dim), torch.float64)


@every_kind
def test_one_action_for_each_observation_within_bounds(kind: str) -> None:
    actor, observations = make(kind, seeds=2), torch.randn(2, 6, 3, dtype=torch.float64)
    actions = actor.sample(observations, noise(actor, 6, seeds=2) * 100)
    assert actions.shape == actor.mode(observations).shape == (2, 6, 2)
    assert 0.999 < actions.abs().max() <= 1
    assert actor.mode(observations).abs().max() <= 1
    assert actor.log_prob(observations, actions).shape == (2, 6)


@every_kind
def test_the_mode_stays_within_bounds_whatever_the_network_says(kind: str) -> None:
    actor = make(kind)
    with torch.no_grad():
        actor.network.layers[-1].bias.fill_(3.0)
    assert 0.9 < actor.mode(torch.randn(1, 6, 3, dtype=torch.float64)).abs().max() < 1


@every_kind
def test_density_integrates_to_one(kind: str) -> None:
    actor = make(kind, observation=1, action=1, max_log_std=-1.0)
    low, high = (-1.0, 1.0) if kind == "squashed" else (-np.inf, np.inf)

    def density(action: float) -> float:
        with torch.no_grad():
            point = torch.full((1, 1, 1), action, dtype=torch.float64)
            return actor.log_prob(torch.zeros(1, 1, 1, dtype=torch.float64), point).exp().item()

    assert integrate.quad(density, low, high, limit=200)[0] == pytest.approx(1.0, abs=1e-4)


@every_kind
def test_samples_follow_the_density(kind: str) -> None:
    """Kolmogorov and Smirnov's distance to the CDF that the log-density integrates to, below its 1 % point."""
    count = 20_000
    actor = make(kind, observation=1, action=1, max_log_std=-1.5)
    grid = torch.linspace(-1.0, 1.0, 4001, dtype=torch.float64)
    with torch.no_grad():
        samples = actor.sample(torch.zeros(1, count, 1, dtype=torch.float64), noise(actor, count)).flatten()
        density = actor.log_prob(torch.zeros(1, 4001, 1, dtype=torch.float64), grid.view(1, -1, 1)).exp().flatten()
    inside = samples[samples.abs() < 1].numpy()  # what is clipped lies in atoms at the bounds
    cumulative = integrate.cumulative_trapezoid(density.numpy(), grid.numpy(), initial=0.0)
    assert len(inside) / count == pytest.approx(cumulative[-1], abs=0.01)
    distance = stats.kstest(inside, lambda x: np.interp(x, grid.numpy(), cumulative / cumulative[-1])).statistic
    assert distance < 1.63 / len(inside) ** 0.5


@every_kind
def test_gradients_are_finite_and_reach_every_parameter(kind: str) -> None:
    actor, observations = make(kind), torch.randn(1, 5, 3, dtype=torch.float64)
    edge = torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [0.5, 0.5]], dtype=torch.float64).unsqueeze(0)
    grads = torch.autograd.grad(actor.log_prob(observations, edge).sum(), list(actor.parameters()))
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in grads)


@every_kind
def test_log_prob_gradient_against_finite_differences(kind: str) -> None:
    """Of every parameter, layers included."""
    actor, observations = make(kind), torch.randn(1, 4, 3, dtype=torch.float64)
    actions = torch.rand(1, 4, 2, dtype=torch.float64) - 0.5
    loss = actor.log_prob(observations, actions).sum()
    for parameter, gradient in zip(actor.parameters(), torch.autograd.grad(loss, list(actor.parameters())), strict=True):
        direction, h = torch.randn_like(parameter), 1e-6
        values = []
        for step in (h, -h):
            with torch.no_grad():
                parameter.add_(step * direction)
                values.append(actor.log_prob(observations, actions).sum().item())
                parameter.sub_(step * direction)
        assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-6)


def test_student_t_sample_without_noise_is_the_mode() -> None:
    actor, observations = make("student_t"), torch.randn(1, 4, 3, dtype=torch.float64)
    still = torch.zeros(1, 4, actor.noise_dim, dtype=torch.float64)
    assert torch.equal(actor.sample(observations, still), actor.mode(observations))


def test_degrees_of_freedom_start_where_they_are_set() -> None:
    for degrees in (1.5, 4.0, 200.0):
        for learn in (False, True):
            actor = make("student_t", degrees_of_freedom=degrees, learn_degrees_of_freedom=learn)
            found = actor(torch.zeros(1, 1, 3, dtype=torch.float64))[2]
            assert found.shape == (1, 1, 2)
            assert found.flatten().tolist() == pytest.approx([degrees] * 2, rel=1e-5)
            assert [name for name, _ in actor.named_parameters() if "degrees" in name] == ["raw_degrees"] * learn


def fit(actor: Any, actions: torch.Tensor, steps: int, rate: float = 0.02) -> None:
    optimizer = torch.optim.Adam(actor.parameters(), lr=rate)
    observations = torch.zeros(*actions.shape[:2], 1, dtype=torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        (-actor.log_prob(observations, actions).mean()).backward()
        optimizer.step()


def test_student_t_learns_known_tails() -> None:
    """Maximum likelihood of 0.2 + 0.1 t_3, at its quantiles: location, scale and degrees of freedom come back."""
    actor = make("student_t, all learned", observation=1, action=1, degrees_of_freedom=10.0)
    levels = (np.arange(1000) + 0.5) / 1000
    fit(actor, torch.from_numpy(0.2 + 0.1 * stats.t.ppf(levels, 3)).view(1, -1, 1), 250, 0.05)
    location, log_scale, degrees = actor(torch.zeros(1, 1, 1, dtype=torch.float64))
    assert location.item() == pytest.approx(0.2, abs=0.01)
    assert log_scale.exp().item() == pytest.approx(0.1, abs=0.01)
    assert degrees.item() == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize("components", [2, 5])
def test_mixture_finds_both_behaviours(components: int) -> None:
    """70 % of the actions near 0.5, 30 % near -0.5: the mode is an action that was made, not their mean."""
    actor = make("mixture", observation=1, action=1, components=components)
    quantiles = [stats.norm.ppf((np.arange(count) + 0.5) / count) for count in (350, 150)]
    parts = [0.5 + 0.1 * quantiles[0], -0.5 + 0.1 * quantiles[1]]
    fit(actor, torch.from_numpy(np.concatenate(parts)).view(1, -1, 1), 200)
    still = torch.zeros(1, 1, 1, dtype=torch.float64)
    assert actor.mode(still).item() == pytest.approx(0.5, abs=0.1)
    logits, mean, _ = actor(still)
    assert logits.softmax(-1)[mean[..., 0] > 0].sum().item() == pytest.approx(0.7, abs=0.02)


def test_mixture_mode_is_the_mean_of_the_heaviest_component() -> None:
    actor, observations = make("mixture"), torch.zeros(1, 1, 3, dtype=torch.float64)
    with torch.no_grad():
        actor.network.layers[-1].bias[0, :3] = torch.tensor([0.0, 3.0, 1.0])
        actor.log_std[0, 2] = -4.0  # narrow, so dense, and rare
    assert torch.equal(actor.mode(observations), actor(observations)[1][:, :, 1])


@every_kind
@pytest.mark.parametrize(("asked", "bound"), [(-50.0, BASE["min_log_std"]), (50.0, BASE["max_log_std"])])
def test_spreads_stay_within_their_bounds(kind: str, asked: float, bound: float) -> None:
    """Likelihood has no maximum without the lower one: a spread could shrink onto one action."""
    actor = make(kind)
    with torch.no_grad():
        actor.network.layers[-1].bias.fill_(asked)
        for name, parameter in actor.named_parameters():
            if name in ("log_std", "log_scale"):
                parameter.fill_(asked)
        log_std = actor(torch.randn(1, 6, 3, dtype=torch.float64))[2 if kind.startswith("mixture") else 1]
    assert (log_std == bound).all()


@every_kind
@pytest.mark.parametrize("bounds", [{"max_log_std": -2.5}, {"min_log_std": 1.0}], ids=str)
def test_spreads_learn_from_the_start_whatever_their_bounds(kind: str, bounds: dict[str, float]) -> None:
    """A clamp passes no gradient outside its bounds: a spread that starts there stays there for good."""
    actor = make(kind, **bounds)
    observations = torch.randn(1, 50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_std = actor(observations)[2 if kind.startswith("mixture") else 1]
    log_std.sum().backward()
    assert (log_std >= bounds.get("min_log_std", BASE["min_log_std"])).all()
    assert (log_std <= bounds.get("max_log_std", BASE["max_log_std"])).all()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.parameters())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "student_t",
            {"degrees_of_freedom": 1.0},
            "degrees_of_freedom=1.0 is not allowed; .* at most 1e.08",
        ),
        (
            "student_t",
            {"degrees_of_freedom": float("inf")},
            "degrees_of_freedom=inf is not allowed; .* at most 1e.08",
        ),
        (
            "student_t",
            {"min_log_std": 3.0},
            "max_log_std=2.0 is not allowed.* above min_log_std=3.0",
        ),
        ("mixture", {"components": 0}, "components=0 is not allowed; it must be a whole number >= 1"),
    ],
)
def test_refusals(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, **options)
