import math

import pytest
import torch

from brpo.types import Batch
from tests.helpers import make_algorithm, make_spec, random_batch


def constant_output(module: torch.nn.Module, *values: float) -> None:
    """Make the last layer of a stack give constants, one for each member."""
    with torch.no_grad():
        layer = module.network.layers[-1]
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(values).view_as(layer.bias))


def three_transitions() -> Batch:
    batch = random_batch(size=3)
    return Batch(
        batch.observations,
        batch.actions,
        torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64),
        batch.next_observations,
        batch.next_actions,
        torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64),
    )


def test_losses_by_hand() -> None:
    """Q' = (5, 4), V = 3, expectile 0.7, discount 0.99.

    value: u = 4 - 3 = 1, loss 0.7. actor: weight exp(2 * 1). critic: targets 1 + 2.97, 2 + 2.97, 3; critics at 5 and 4.
    """
    iql = make_algorithm("iql", "algo.expectile=0.7", "algo.inverse_temperature=2")
    constant_output(iql.critic, 5.0, 4.0)
    constant_output(iql.critic_target.module, 5.0, 4.0)
    constant_output(iql.value, 3.0)
    batch = three_transitions()
    q = iql.critic_target(batch.observations, batch.actions).amin(1)
    assert q.tolist() == [[4.0, 4.0, 4.0]]
    assert iql.value_loss(batch, q).item() == pytest.approx(0.7)
    log_prob = iql.actor.log_prob(batch.observations, batch.actions).mean().item()
    assert iql.actor_loss(batch, q).item() == pytest.approx(-math.exp(2) * log_prob)
    targets = (3.97, 4.97, 3.0)
    expected = sum((5 - y) ** 2 for y in targets) / 3 + sum((4 - y) ** 2 for y in targets) / 3
    assert iql.critic_loss(batch).item() == pytest.approx(expected)


def test_weight_is_clipped_and_its_share_recorded() -> None:
    iql = make_algorithm("iql", "algo.inverse_temperature=3", "algo.max_weight=100")
    constant_output(iql.critic_target.module, 50.0, 60.0)
    constant_output(iql.value, 0.0)
    batch = three_transitions()
    q = iql.critic_target(batch.observations, batch.actions).amin(1)
    iql.actor_loss(batch, q)
    records = {name: value.tolist() for name, value in iql.latest.items()}
    assert records["weight/mean"] == pytest.approx([100.0])
    assert records["weight/clipped_share"] == [1.0]
    assert records["weight/effective_share"] == pytest.approx([1.0])


def test_value_converges_to_the_expectile_of_a_bandit() -> None:
    """One state, Q = 0 or 1 with equal shares: the 0.9 expectile is 0.9."""
    spec = make_spec(observation=1, action=1)
    iql = make_algorithm("iql", "algo.expectile=0.9", "algo.optimizer.lr=0.01", spec=spec)
    batch = random_batch(size=64, spec=spec)
    zeros = torch.zeros_like(batch.observations)
    batch = Batch(zeros, batch.actions, batch.rewards, zeros, batch.next_actions, torch.ones_like(batch.terminated))
    q = (torch.arange(64) % 2).double().unsqueeze(0)
    for _ in range(600):
        iql.descend("value", iql.value_loss(batch, q))
    assert iql.value(zeros).mean().item() == pytest.approx(0.9, abs=0.01)


def test_truncated_transitions_bootstrap_and_terminated_ones_do_not() -> None:
    iql = make_algorithm("iql")
    constant_output(iql.value, 10.0)
    constant_output(iql.critic, 0.0, 0.0)
    batch = three_transitions()
    q_loss = iql.critic_loss(batch).item()
    targets = (1 + 9.9, 2 + 9.9, 3.0)
    assert q_loss == pytest.approx(2 * sum(y**2 for y in targets) / 3)
