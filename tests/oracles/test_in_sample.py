"""SQL, EQL and XQL against the numpy transcription of their papers, on the same networks and batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.types import Batch
from tests.helpers import make_algorithm, random_batch
from tests.oracles import in_sample as oracle

SEEDS = (0, 3)
SCALE = 6.0  # of Q and V: spreads Q - V, so that clips act on a part of the batch


class Member:
    """What one seed's networks say about its batch, computed in numpy from the weights alone."""

    def __init__(self, algorithm: OfflineAlgorithm, batch: Batch, member: int) -> None:
        fields = {name: getattr(batch, name)[member].numpy() for name in Batch.__slots__}
        self.observations, self.next_observations = fields["observations"], fields["next_observations"]
        self.rewards, self.terminated = fields["rewards"], fields["terminated"]
        self.value = layers(algorithm.value, member)
        both = np.concatenate([self.observations, fields["actions"]], axis=-1)
        self.q = [oracle.network(layers(algorithm.critic, member, k), both)[:, 0] for k in range(2)]
        target = [oracle.network(layers(algorithm.critic_target.module, member, k), both)[:, 0] for k in range(2)]
        self.q_min = np.minimum(*target)
        mean = np.tanh(oracle.network(layers(algorithm.actor, member), self.observations))
        self.log_prob = oracle.log_density(mean, algorithm.actor.log_std[member].detach().numpy(), fields["actions"])

    def v(self, observations: oracle.Array) -> oracle.Array:
        return oracle.network(self.value, observations)[:, 0]

    def q_loss(self, loss: Callable[[oracle.Array], oracle.Array], discount: float = 0.99) -> float:
        target = oracle.q_target(self.rewards, self.terminated, self.v(self.next_observations), discount)
        return sum(float(np.mean(loss(q - target))) for q in self.q)


def layers(stack: Any, *member: int) -> oracle.Layers:
    """Copies, so that finite differences may change them."""
    return [(x.weight[member].detach().numpy().copy(), x.bias[member].detach().numpy().copy()) for x in stack.network.layers]


def sql(member: Member, alpha: float, weight: Any = oracle.sql_weight) -> dict[str, Any]:
    q, v = member.q_min, member.v(member.observations)
    return {
        "value": lambda: oracle.sql_value_loss(q, member.v(member.observations), alpha),
        "weight": weight(q, v, alpha),
        "q_loss": member.q_loss(oracle.squared),
    }


def eql(member: Member, alpha: float) -> dict[str, Any]:
    q, v = member.q_min, member.v(member.observations)
    m = oracle.largest(np.minimum((q - v) / alpha, 5))
    return {
        "value": lambda: oracle.eql_value_loss(q, member.v(member.observations), alpha, 5, m),
        "weight": oracle.eql_weight(q, v, alpha),
        "q_loss": member.q_loss(oracle.squared),
    }


def xql(member: Member, beta: float, inverse_temperature: float, subtract_max: bool = True) -> dict[str, Any]:
    q, v = member.q_min, member.v(member.observations)
    m = oracle.largest(np.minimum((q - v) / beta, 7)) if subtract_max else 0.0
    return {
        "value": lambda: oracle.xql_value_loss(q, member.v(member.observations), beta, 7, m),
        "weight": oracle.xql_weight(q, v, inverse_temperature),
        "q_loss": member.q_loss(oracle.huber),
    }


CASES = [
    ("sql", ["algo.temperature=1"], lambda member: sql(member, 1.0)),
    ("sql", ["algo.temperature=0.1"], lambda member: sql(member, 0.1)),
    (
        "sql",
        ["algo.temperature=0.5", "algo.omega=advantage"],
        lambda member: sql(member, 0.5, oracle.sql_weight_of_the_code),
    ),
    ("eql", ["algo.temperature=2"], lambda member: eql(member, 2.0)),
    ("eql", ["algo.temperature=0.1"], lambda member: eql(member, 0.1)),
    ("xql", ["algo.temperature=2", "algo.inverse_temperature=3"], lambda member: xql(member, 2.0, 3.0)),
    ("xql", ["algo.temperature=0.1", "algo.inverse_temperature=10"], lambda member: xql(member, 0.1, 10.0)),
    (
        "xql",
        ["algo.temperature=1", "algo.inverse_temperature=3", "algo.subtract_max=false"],
        lambda member: xql(member, 1.0, 3.0, subtract_max=False),
    ),
]
every_case = pytest.mark.parametrize(("algo", "overrides", "expect"), CASES)


def prepared(algo: str, overrides: list[str]) -> tuple[OfflineAlgorithm, Batch, torch.Tensor]:
    """Two seeds whose target critics differ from the critics and whose rewards reach beyond Huber's delta."""
    algorithm = make_algorithm(algo, *overrides, seeds=SEEDS)
    batch = random_batch(seeds=len(SEEDS), size=24)
    batch.rewards.mul_(20)
    with torch.no_grad():
        for part, factor in ((algorithm.critic, SCALE), (algorithm.critic_target, 1.2 * SCALE), (algorithm.value, SCALE)):
            for parameter in part.parameters():
                parameter.mul_(factor ** (1 / 3))
        algorithm.actor.log_std.fill_(-0.7)
        q = algorithm.critic_target(batch.observations, batch.actions).amin(1)
        bias = algorithm.value.network.layers[-1].bias  # V lies amid Q
        bias += (q - algorithm.value(batch.observations)).mean(-1).view_as(bias)
    return algorithm, batch, q


@every_case
def test_losses_and_weights_are_the_papers(algo: str, overrides: list[str], expect: Callable[[Member], Any]) -> None:
    algorithm, batch, q = prepared(algo, overrides)
    ours = algorithm.value_loss(batch, q), algorithm.actor_loss(batch, q), algorithm.critic_loss(batch)
    weights = algorithm.weight(batch, q)
    for k in range(len(SEEDS)):
        member = Member(algorithm, batch, k)
        expected = expect(member)
        assert q[k].numpy() == pytest.approx(member.q_min, abs=1e-9)
        assert weights[k].numpy() == pytest.approx(expected["weight"], rel=1e-9, abs=1e-9)
        losses = [expected["value"](), oracle.policy_loss(expected["weight"], member.log_prob), expected["q_loss"]]
        assert [loss[k].item() for loss in ours] == pytest.approx(losses, rel=1e-9)


@every_case
def test_gradients_of_v_are_those_of_finite_differences(
    algo: str, overrides: list[str], expect: Callable[[Member], Any]
) -> None:
    algorithm, batch, q = prepared(algo, overrides)
    parameters = [x for layer in algorithm.value.network.layers for x in (layer.weight, layer.bias)]
    ours = torch.autograd.grad(algorithm.value_loss(batch, q).sum(), parameters)
    member = Member(algorithm, batch, 1)
    theirs = oracle.finite_differences(expect(member)["value"], [x for layer in member.value for x in layer])
    largest = max(np.abs(gradient).max() for gradient in theirs)
    assert largest > 0
    for gradient, expected in zip(ours, theirs, strict=True):
        assert gradient[1].numpy() == pytest.approx(expected, abs=1e-5 * max(largest, 1.0))


def test_the_cases_meet_the_clips() -> None:
    """Else the comparison says nothing about them."""
    met = set()
    for algo, overrides, expect in CASES:
        algorithm, batch, _ = prepared(algo, overrides)
        member = Member(algorithm, batch, 1)
        weight, exponent = expect(member)["weight"], (member.q_min - member.v(member.observations)) / algorithm.temperature
        target = oracle.q_target(member.rewards, member.terminated, member.v(member.next_observations), 0.99)
        acts = {
            "largest weight": weight == 100,
            "no weight": weight == 0,
            "exponent": exponent > 7,
            "huber": np.abs(member.q[0] - target) > 20,
        }
        met |= {(algo, clip) for clip, where in acts.items() if where.any() and not where.all()}
    exponential = {(algo, clip) for algo in ("eql", "xql") for clip in ("largest weight", "exponent")}
    assert exponential | {("sql", "no weight"), ("xql", "huber")} <= met
