import math

import pytest
import torch

from brpo.training import idle_options
from tests.algorithms.test_iql import constant_output, three_transitions
from tests.algorithms.test_td3_bc import LinearCritic
from tests.helpers import compose_config, make_algorithm, random_batch


def prepared(*overrides: str):
    """The policy's every action is (0.5, 0.5); the online critic says 2 a_0 and 100, its target 7 and 4."""
    awac = make_algorithm("awac", *overrides)
    constant_output(awac.actor, math.atanh(0.5), math.atanh(0.5))
    constant_output(awac.critic_target.module, 7.0, 4.0)
    awac.critic = LinearCritic(2.0, torch.zeros(1, 3, dtype=torch.float64))
    awac.normal = lambda name, like: torch.zeros_like(like)
    return awac


def batch_of(*first_actions: float):
    batch = three_transitions()
    batch.actions.zero_()
    batch.actions[0, :, 0] = torch.tensor(first_actions)
    return batch


def test_actor_loss_by_hand() -> None:
    """Q = 2 a_0 = 1, 2, -2 and V = Q(0.5) = 1, temperature 0.5: weights exp(0), exp(2), exp(-6)."""
    awac, batch = prepared("algo.temperature=0.5"), batch_of(0.5, 1.0, -1.0)
    weight = torch.tensor([[1.0, math.exp(2), math.exp(-6)]], dtype=torch.float64)
    log_prob = awac.actor.log_prob(batch.observations, batch.actions)
    assert awac.actor_loss(batch).item() == pytest.approx(-(weight * log_prob).mean().item())
    assert awac.latest["weight/mean"].tolist() == pytest.approx([weight.mean().item()])
    assert awac.latest["value/mean"].tolist() == pytest.approx([1.0])
    assert awac.latest["weight/clipped_share"].tolist() == [0.0]


def test_weight_is_clipped_at_max_weight() -> None:
    awac, batch = prepared("algo.temperature=0.1"), batch_of(0.5, 1.0, -1.0)
    assert awac.weight(*awac.action_values(batch)).tolist()[0] == pytest.approx([1.0, 100.0, math.exp(-30)])
    awac.actor_loss(batch)
    assert awac.latest["weight/clipped_share"].tolist() == pytest.approx([1 / 3])


def test_softmax_weights_have_mean_one_and_keep_the_ratios() -> None:
    awac, batch = prepared("algo.temperature=0.5", "algo.omega=softmax"), batch_of(0.5, 1.0, -1.0)
    weight = awac.weight(*awac.action_values(batch))
    assert weight.mean().item() == pytest.approx(1.0)
    assert (weight[0, 1] / weight[0, 0]).item() == pytest.approx(math.exp(2))
    awac.actor_loss(batch)
    assert "weight/clipped_share" not in awac.latest


def test_a_clip_that_the_softmax_leaves_idle_is_announced() -> None:
    typed = ["algo.omega=softmax", "algo.max_weight=5"]
    said = "algo.max_weight has no effect under algo.omega=softmax"
    assert idle_options(make_algorithm("awac", *typed), typed) == [said]
    assert idle_options(make_algorithm("awac", "algo.max_weight=5"), typed) == []


def test_critic_loss_by_hand_stops_at_termination_only() -> None:
    """Target critics 7 and 4: targets 1 + 0.99 * 4, 2 + 0.99 * 4 and 3; the online critics say 2 a_0 and 100."""
    awac, batch = prepared(), batch_of(0.5, 1.0, -1.0)
    targets = (4.96, 5.96, 3.0)
    expected = sum((q - y) ** 2 + (100 - y) ** 2 for q, y in zip((1.0, 2.0, -2.0), targets, strict=True)) / 3
    assert awac.critic_loss(batch).item() == pytest.approx(expected)


def test_target_uses_the_policys_action_at_the_next_observation() -> None:
    awac, batch = make_algorithm("awac"), random_batch()
    seen = []
    awac.critic_target.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    awac.critic_loss(batch)
    observations, actions = seen[0]
    noise = awac.normal("next_actions", actions)
    assert torch.equal(observations, batch.next_observations)
    assert torch.equal(actions, awac.actor.sample(batch.next_observations, noise))
    assert not torch.equal(noise, awac.normal("actions", actions))


def test_the_advantage_is_over_an_action_of_the_policy_at_the_observation() -> None:
    """From noise of its own, not that of the target's action."""
    awac, batch = make_algorithm("awac"), random_batch()
    seen = []
    awac.critic.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    awac.action_values(batch)
    sampled = awac.actor.sample(batch.observations, awac.normal("actions", batch.actions))
    for (observations, actions), wanted in zip(seen, (batch.actions, sampled), strict=True):
        assert torch.equal(observations, batch.observations)
        assert torch.equal(actions, wanted)


def test_the_actor_meets_the_new_critic() -> None:
    awac, reference = make_algorithm("awac"), make_algorithm("awac")
    batch = random_batch()
    awac.step(batch)
    reference.descend("critic", reference.critic_loss(batch))
    assert awac.take_records()["loss/actor"] == pytest.approx(reference.actor_loss(batch).tolist())


def test_a_large_temperature_is_behaviour_cloning() -> None:
    awac, batch = make_algorithm("awac", "algo.temperature=1e9"), random_batch()
    expected = -awac.actor.log_prob(batch.observations, batch.actions).mean().item()
    assert awac.actor_loss(batch).item() == pytest.approx(expected)


def test_no_gradient_flows_into_the_weight() -> None:
    awac, batch = make_algorithm("awac"), random_batch()
    loss = awac.actor_loss(batch).sum()
    assert not awac.weight(*awac.action_values(batch)).requires_grad
    gradients = torch.autograd.grad(loss, list(awac.critic.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mujoco/hopper/medium-v0", 0.3333),
        ("brpo/halfcheetah/medium-replay-v0", 0.3333),
        ("D4RL/pointmaze/umaze-v2", 1.0),
        ("D4RL/antmaze/umaze-v1", 1.0),
    ],
)
def test_temperature_by_family(name: str, expected: float) -> None:
    assert compose_config("algo=awac", f"dataset={name}")["algo"]["temperature"] == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algo.temperature=0", "algo.temperature=0 is not allowed; it must be positive"),
        ("algo.omega=series", "algo.omega=series is not allowed; it must be exp or softmax"),
        ("algo.max_weight=-1", "algo.max_weight=-1 is not allowed"),
    ],
)
def test_options_are_checked_at_construction(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_algorithm("awac", override)
