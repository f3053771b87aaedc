import copy
import math

import pytest
import torch
from torch import Tensor, nn

from brpo.types import Batch
from tests.algorithms.test_iql import constant_output, three_transitions
from tests.helpers import compose_config, make_algorithm, make_spec, random_batch

TRAINED_LATE = ("actor", "actor_target", "critic_target")


class LinearCritic(nn.Module):
    """Two critics: `slope * a_0 + offset` for each transition, and one that says `other` everywhere."""

    def __init__(self, slope: float, offset: Tensor, other: float = 100.0) -> None:
        super().__init__()
        self.slope, self.offset, self.other = slope, offset, other

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        q = self.slope * actions[..., 0] + self.offset
        return torch.stack([q, torch.full_like(q, self.other)], dim=1)

    def first(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self(observations, actions)[:, 0]


def quiet(*overrides: str):
    """TD3+BC without smoothing noise."""
    return make_algorithm("td3_bc", "algo.target_noise=0", *overrides)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("other", [100.0, -100.0])
def test_actor_loss_by_hand(other: float) -> None:
    """Q_1 = 1, -2, 3 at the action (0, 0); coefficient 2.5.

    lambda = 2.5 / ((1 + 2 + 3) / 3) = 1.25; the Q term is -1.25 * (1 - 2 + 3) / 3 = -5/6. Data actions (1, 0), (0, -1) and
    (0.5, 0.5): squares averaged over the two dimensions are 0.5, 0.5, 0.25, their mean 5/12. The second critic is not asked.
    """
    td3_bc = make_algorithm("td3_bc", "algo.q_coefficient=2.5")
    constant_output(td3_bc.actor, 0.0, 0.0)
    td3_bc.critic = LinearCritic(0.0, torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64), other)
    batch = three_transitions()
    batch.actions.copy_(torch.tensor([[[1.0, 0.0], [0.0, -1.0], [0.5, 0.5]]]))
    assert td3_bc.actor_loss(batch).item() == pytest.approx(-5 / 6 + 5 / 12)
    records = {name: value.tolist() for name, value in td3_bc.latest.items()}
    assert records == {
        "actor/lambda": [pytest.approx(1.25)],
        "actor/q_term": [pytest.approx(-5 / 6)],
        "actor/bc_term": [pytest.approx(5 / 12)],
    }


def test_critic_loss_by_hand() -> None:
    """Target critics 10 and 9: the smaller is bootstrapped, but for the terminated third transition.

    Targets 1 + 0.99 * 9, 2 + 0.99 * 9, 3; critics at 5 and 4. A truncated transition is not marked, so it bootstraps.
    """
    td3_bc = make_algorithm("td3_bc")
    constant_output(td3_bc.critic, 5.0, 4.0)
    constant_output(td3_bc.critic_target.module, 10.0, 9.0)
    targets = (9.91, 10.91, 3.0)
    expected = sum((5 - y) ** 2 + (4 - y) ** 2 for y in targets) / 3
    assert td3_bc.critic_loss(three_transitions()).item() == pytest.approx(expected)


def test_target_uses_the_target_actor_at_the_next_observation() -> None:
    """Target critic Q' = a_0 + s_0', its action that of the target actor at s'; the online actor plays something else."""
    td3_bc = quiet()
    constant_output(td3_bc.actor, -1.0, -1.0)
    constant_output(td3_bc.critic, 0.0, 0.0)
    batch = three_transitions()
    td3_bc.critic_target.module = LinearCritic(1.0, batch.next_observations[..., 0])
    next_q = (td3_bc.actor_target(batch.next_observations)[..., 0] + batch.next_observations[..., 0])[0]
    targets = batch.rewards[0] + 0.99 * (1 - batch.terminated[0]) * next_q
    assert td3_bc.critic_loss(batch).item() == pytest.approx(2 * targets.square().mean().item())


def test_smoothing_noise_is_clipped_and_actions_stay_in_bounds() -> None:
    """Standard deviation 0.2, clip 0.5: the spread of the noise is that of the normal cut at 2.5 deviations, 0.199."""
    td3_bc = make_algorithm("td3_bc")
    constant_output(td3_bc.actor_target.module, 0.0, math.atanh(0.9))
    observations = torch.zeros(1, 20_000, 3, dtype=torch.float64)
    actions = td3_bc.target_actions(observations)[0]
    assert actions[:, 0].std().item() == pytest.approx(0.199, abs=0.003)
    assert actions[:, 0].abs().max().item() == 0.5
    assert actions[:, 1].max().item() == 1.0
    assert actions[:, 1].min().item() == pytest.approx(0.4)
    td3_bc.updates += 1
    assert not torch.equal(actions, td3_bc.target_actions(observations)[0])


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_and_targets_move_in_every_delayed_update_only(delay: int) -> None:
    td3_bc = make_algorithm("td3_bc", f"algo.policy_delay={delay}")
    for update in range(6):
        before = {name: state(getattr(td3_bc, name)) for name in ("critic", *TRAINED_LATE)}
        td3_bc.step(random_batch(seed=update))
        assert not same(before["critic"], state(td3_bc.critic))
        for name in TRAINED_LATE:
            assert same(before[name], state(getattr(td3_bc, name))) == (update % delay != 0), (name, update)
        assert ("loss/actor" in td3_bc.take_records()) == (update % delay == 0)


def test_the_actor_meets_the_new_critic_and_targets_follow_the_new_parts() -> None:
    """Polyak 1 copies what the update has made."""
    td3_bc = quiet("algo.polyak=1")
    reference = copy.deepcopy(td3_bc)
    reference.configure_optimizers()
    batch = random_batch()
    td3_bc.step(batch)
    reference.descend("critic", reference.critic_loss(batch))
    reference.descend("actor", reference.actor_loss(batch))
    assert same(state(td3_bc.actor), state(reference.actor))
    assert same(state(td3_bc.critic_target.module), state(reference.critic))
    assert same(state(td3_bc.actor_target.module), state(reference.actor))


def actor_gradient(td3_bc, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), list(td3_bc.actor.parameters()))])


def test_no_gradient_flows_through_lambda() -> None:
    """The gradient is that of a loss with lambda as a number, and not that of `-alpha mean(Q) / mean|Q|`."""
    td3_bc = make_algorithm("td3_bc", "algo.q_coefficient=2.5")
    batch = random_batch()
    actual = actor_gradient(td3_bc, td3_bc.actor_loss(batch))

    def terms() -> tuple[Tensor, Tensor]:
        actions = td3_bc.actor(batch.observations)
        return td3_bc.critic(batch.observations, actions)[:, 0], (actions - batch.actions).square().mean((-2, -1))

    q, error = terms()
    number = 2.5 / q.abs().mean().item()
    assert torch.allclose(actual, actor_gradient(td3_bc, error - number * q.mean(-1)), atol=1e-12)
    q, error = terms()
    through = actor_gradient(td3_bc, error - 2.5 * q.mean(-1) / q.abs().mean(-1))
    assert not torch.allclose(actual, through, atol=1e-3)


def test_coefficient_zero_is_behaviour_cloning() -> None:
    """The loss and its gradient are those of the squared error."""
    td3_bc = make_algorithm("td3_bc", "algo.q_coefficient=0")
    batch = random_batch()
    error = (td3_bc.actor(batch.observations) - batch.actions).square().mean((-2, -1))
    loss = td3_bc.actor_loss(batch)
    assert loss.tolist() == pytest.approx(error.tolist())
    assert torch.allclose(actor_gradient(td3_bc, loss), actor_gradient(td3_bc, error), atol=1e-15)


@pytest.mark.parametrize(("coefficient", "slope", "action"), [(0.0, 1.0, 0.2), (0.1, 1.0, 0.344949), (0.1, 7.0, 0.344949)])
def test_policy_of_a_bandit_is_the_closed_form(coefficient: float, slope: float, action: float) -> None:
    """One state, Q = k a, data actions of mean m = 0.2: stationary where 2 (a - m) = coefficient k / |k a|.

    So a = (m + sqrt(m^2 + 2 coefficient)) / 2, whatever the scale k of the rewards; with coefficient 0 it is m.
    """
    td3_bc = make_algorithm(
        "td3_bc", f"algo.q_coefficient={coefficient}", "algo.optimizer.lr=0.01", spec=make_spec(observation=1, action=1)
    )
    actions = torch.linspace(-0.3, 0.7, 64, dtype=torch.float64).view(1, -1, 1)
    zeros, ones = torch.zeros_like(actions), torch.ones(1, 64, dtype=torch.float64)
    batch = Batch(zeros, actions, ones, zeros, actions, ones)
    td3_bc.critic = LinearCritic(slope, torch.zeros(1, 64, dtype=torch.float64))
    for _ in range(500):
        td3_bc.descend("actor", td3_bc.actor_loss(batch))
    assert td3_bc.actor.mode(zeros)[0, 0].item() == pytest.approx(action, abs=1e-3)


def test_diagnostics_by_hand() -> None:
    """Target Q' = 3 a_0 at the data's actions and at the policy's, which are all 0."""
    td3_bc = make_algorithm("td3_bc")
    constant_output(td3_bc.actor, 0.0, 0.0)
    batch = random_batch(size=5)
    td3_bc.critic_target.module = LinearCritic(3.0, torch.zeros(1, 5, dtype=torch.float64))
    values = td3_bc.diagnose(batch)
    assert torch.allclose(values["actor/error"], batch.actions.square().mean(-1))
    assert torch.allclose(values["q/target"], 3 * batch.actions[..., 0])
    assert values["q/policy"].abs().max() == 0


def test_it_brings_the_papers_data_options_and_the_command_line_wins() -> None:
    data = compose_config("algo=td3_bc")["data"]
    assert (data["normalize_observations"], data["reward_scale"], data["reward_shift"]) == (True, 1.0, 0.0)
    assert data["heldout"] == compose_config("algo=iql")["data"]["heldout"]
    typed = compose_config("data.normalize_observations=false", "data.reward_scale=return_range", "algo=td3_bc")["data"]
    assert (typed["normalize_observations"], typed["reward_scale"]) == (False, "return_range")
    assert compose_config("algo=iql")["data"]["normalize_observations"] is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algo.q_coefficient=-1", "algo.q_coefficient=-1 is not allowed; it must be at least 0"),
        ("algo.target_noise=-0.1", "algo.target_noise=-0.1 is not allowed"),
        ("algo.target_noise_clip=null", "algo.target_noise_clip=None is not allowed"),
        ("algo.policy_delay=0", "algo.policy_delay=0 is not allowed; it must be a whole number >= 1"),
        ("algo.policy_delay=1.5", "algo.policy_delay=1.5 is not allowed"),
        ("+algo.alpha=2.5", "has no option 'alpha'.*Known options: .*q_coefficient"),
    ],
)
def test_options_are_checked_at_construction(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_algorithm("td3_bc", override)
