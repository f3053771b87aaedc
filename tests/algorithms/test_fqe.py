"""Fitted Q evaluation: its target by hand, values that are known, and the policy's own units."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.algorithms.fqe import FQE
from brpo.functional import streams
from brpo.modules.critics import QEnsemble
from brpo.types import DataSpec
from tests.helpers import make_algorithm, make_spec, random_batch, set_apart


def make_fqe(
    evaluated: OfflineAlgorithm, spec: DataSpec | None = None, *, deterministic: bool = True, critics: int = 2,
    lr: float = 3e-4, discount: float = 0.9, polyak: float = 0.1,
) -> FQE:  # fmt: skip
    fqe = FQE(
        spec or make_spec(),
        evaluated=evaluated,
        deterministic=deterministic,
        critic=partial(QEnsemble, critics=critics, hidden=[16, 16], activation="relu"),
        seeds=evaluated.seeds.tolist(),
        max_updates=1000,
        optimizer=partial(torch.optim.Adam, lr=lr),
        schedule={},
        gradient_clip=None,
        discount=discount,
        polyak=polyak,
    ).to(torch.float64)
    fqe.configure_optimizers()
    return fqe


def test_each_critic_bootstraps_from_itself_at_the_policys_action() -> None:
    evaluated = make_algorithm("iql", seeds=(0, 5))
    fqe, batch = make_fqe(evaluated), random_batch(seeds=2)
    set_apart(fqe.critic_target)
    next_q = fqe.critic_target(batch.next_observations, evaluated.actor.mode(batch.next_observations))
    expected = batch.rewards.unsqueeze(1) + 0.9 * (1 - batch.terminated).unsqueeze(1) * next_q  # (seeds, critics, batch)
    assert (next_q[:, 0] - next_q[:, 1]).abs().min() > 1e-4
    torch.testing.assert_close(fqe.q_target(batch), expected)
    q = fqe.critic(batch.observations, batch.actions)
    torch.testing.assert_close(fqe.critic_loss(batch), ((q - expected) ** 2).mean(-1).sum(-1))
    fqe.reward_factor = 3.0
    torch.testing.assert_close(fqe.q_target(batch) - expected, 2 * batch.rewards.unsqueeze(1).expand_as(expected))
    own = 3 * batch.rewards.unsqueeze(1) + 0.9 * (1 - batch.terminated).unsqueeze(1) * fqe.critic(
        batch.next_observations, evaluated.actor.mode(batch.next_observations)
    )  # by the critic itself, not by what follows it
    torch.testing.assert_close(fqe.residual(batch), (own - q).mean(1))
    at_policy = fqe.critic(batch.observations, evaluated.actor.mode(batch.observations)).mean(1)
    torch.testing.assert_close(fqe.policy_value(batch.observations), at_policy)


def test_the_policy_acts_in_its_own_units() -> None:
    """The critic sees normalized observations, the policy those that it was trained with."""
    own = {"observation_mean": (0.5, 0.0, -1.0), "observation_std": (2.0, 0.1, 1.0)}
    evaluated = make_algorithm("td3_bc", spec=make_spec(**own))
    other = make_spec(observation_mean=(1.0, 2.0, 3.0), observation_std=(0.5, 4.0, 2.0))
    fqe, batch = make_fqe(evaluated, other), random_batch()
    in_environment = batch.observations * fqe.observation_std + fqe.observation_mean
    expected = evaluated.from_environment(evaluated.act(in_environment))
    torch.testing.assert_close(fqe.policy_actions(batch.observations, fqe.seeds), expected)


def test_a_sampling_policy_draws_anew_in_each_update() -> None:
    evaluated = make_algorithm("iql", seeds=(0, 5))
    fqe, batch = make_fqe(evaluated, deterministic=False), random_batch(seeds=2)
    keys = [streams.key(fqe.seeds, streams.purpose("next_action"), update) for update in (0, 1)]
    first, second = (fqe.policy_actions(batch.observations, key) for key in keys)
    assert (first - second).abs().mean() > 0.1
    pieces = [fqe.policy_value(batch.observations, piece) for piece in (0, 0, 1)]
    assert torch.equal(pieces[0], pieces[1])
    assert (pieces[0] - pieces[2]).abs().max() > 1e-3  # other starts, other numbers
    target = fqe.q_target(batch)
    torch.testing.assert_close(fqe.q_target(batch), target)  # of one update, the same
    fqe.step(batch)
    assert (fqe.q_target(batch) - target).abs().max() > 1e-3


def test_the_target_follows_by_its_own_step() -> None:
    """target + polyak (source - target), the source as its step left it."""
    fqe = make_fqe(make_algorithm("iql"), polyak=0.25)
    before = fqe.critic_target.module.network.layers[0].weight.clone()
    fqe.step(random_batch())
    new, moved = fqe.critic.network.layers[0].weight, fqe.critic_target.module.network.layers[0].weight
    assert not torch.equal(new, before)
    torch.testing.assert_close(moved, before + 0.25 * (new - before), rtol=0, atol=1e-12)


def test_only_the_critic_moves() -> None:
    evaluated = make_algorithm("sfac")
    before = {name: value.clone() for name, value in evaluated.state_dict().items()}
    fqe = make_fqe(evaluated)
    weights = fqe.critic.network.layers[0].weight.clone()
    fqe.step(random_batch())
    assert not torch.equal(fqe.critic.network.layers[0].weight, weights)
    assert all(torch.equal(value, before[name]) for name, value in evaluated.state_dict().items())
    assert not [name for name, value in fqe.named_parameters() if name.startswith("evaluated") and value.requires_grad]


def test_it_finds_what_the_policy_earns_and_not_the_behaviour() -> None:
    """Rewards are the first entry of the action, nothing ends: Q = a + 0.5 / (1 - 0.5) E[a'] with a' of the policy."""
    evaluated = make_algorithm("iql", "algo.actor.min_log_std=-6")
    with torch.no_grad():  # a policy that does the same everywhere, but for its noise
        for layer in evaluated.actor.network.layers:
            layer.weight.zero_()
        evaluated.actor.network.layers[-1].bias.copy_(torch.tensor([[0.4, 0.0]], dtype=torch.float64))
        evaluated.actor.log_std.fill_(-2.0)
    fqe = make_fqe(evaluated, deterministic=False, lr=1e-2, critics=1, discount=0.5)
    mean = evaluated.actor.mode(random_batch().observations)[0, 0, 0].item()
    for number in range(240):
        batch = random_batch(size=64, seed=number)
        fqe.step(replace(batch, rewards=batch.actions[..., 0], terminated=torch.zeros_like(batch.terminated)))
    assert abs(mean) > 0.3  # the data's is 0
    assert fqe.policy_value(random_batch(size=1000).observations).mean().item() == pytest.approx(mean / (1 - 0.5), rel=0.1)
