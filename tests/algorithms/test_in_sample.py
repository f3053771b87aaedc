"""SQL, EQL and XQL: V, then an actor and Q with the new V. What they share, and each one's losses by hand."""

import math

import pytest
import torch

from tests.algorithms.test_iql import constant_output, three_transitions
from tests.helpers import compose_config, make_algorithm, random_batch, set_apart

IN_SAMPLE = ("sql", "eql", "xql")
every_one = pytest.mark.parametrize("algo", IN_SAMPLE)


def prepared(algo: str, *overrides: str):
    """Q' = (7, 4), Q = (5, 4) and V = 3 everywhere, so u = 1."""
    algorithm = make_algorithm(algo, *overrides)
    constant_output(algorithm.critic, 5.0, 4.0)
    constant_output(algorithm.critic_target.module, 7.0, 4.0)
    constant_output(algorithm.value, 3.0)
    return algorithm


def values(algorithm) -> torch.Tensor:
    batch = three_transitions()
    return algorithm.critic_target(batch.observations, batch.actions).amin(1)


@pytest.mark.parametrize(
    ("algo", "overrides", "value_loss", "weight"),
    [
        ("sql", ["algo.temperature=0.5"], 2.0**2 + 3 / 0.5, 2.0),
        ("sql", ["algo.temperature=0.5", "algo.omega=advantage"], 2.0**2 + 3 / 0.5, 1.0),
        ("sql", ["algo.temperature=0.5", "algo.max_weight=1.5"], 2.0**2 + 3 / 0.5, 1.5),
        ("eql", ["algo.temperature=2", "algo.sharpness=4"], math.exp(-0.5) * (math.exp(0.5) + 1.5), math.exp(2)),
        ("eql", ["algo.temperature=2"], math.exp(-0.5) * (math.exp(0.5) + 1.5), 100.0),
        ("xql", ["algo.temperature=2"], math.exp(-0.5) * (math.exp(0.5) - 1.5), math.exp(3)),
        ("xql", ["algo.temperature=2", "algo.subtract_max=false"], math.exp(0.5) - 1.5, math.exp(3)),
        ("xql", ["algo.temperature=0.1", "algo.inverse_temperature=5"], math.exp(-7) * (math.exp(7) - 8), 100.0),
    ],
)
def test_value_and_actor_losses_by_hand(algo: str, overrides: list[str], value_loss: float, weight: float) -> None:
    """u = 1 for every transition, so the loss of V is the formula and the actor's is the weight times that of cloning."""
    algorithm, batch = prepared(algo, *overrides), three_transitions()
    q = values(algorithm)
    assert q.tolist() == [[4.0, 4.0, 4.0]]
    assert algorithm.value_loss(batch, q).item() == pytest.approx(value_loss)
    log_prob = algorithm.actor.log_prob(batch.observations, batch.actions).mean().item()
    assert algorithm.actor_loss(batch, q).item() == pytest.approx(-weight * log_prob)
    assert algorithm.latest["weight/mean"].tolist() == pytest.approx([weight])
    assert algorithm.latest["weight/effective_share"].tolist() == pytest.approx([1.0])
    assert algorithm.latest["weight/clipped_share"].tolist() == [float(weight == algorithm.max_weight)]


@pytest.mark.parametrize("algo", ["eql", "xql"])
def test_clipped_exponents_are_counted(algo: str) -> None:
    """V is 3; the temperature 0.1 and the clip of 7 hold errors to 0.7."""
    algorithm = prepared(algo, "algo.temperature=0.1", "algo.max_exponent=7")
    algorithm.value_loss(three_transitions(), torch.tensor([[3.6, 3.8, 4.0]], dtype=torch.float64))
    assert algorithm.latest["value/clipped_share"].tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("algo", ["sql", "eql"])
def test_critic_loss_by_hand_stops_at_termination_only(algo: str) -> None:
    """Targets 1 + 0.99 * 3, 2 + 0.99 * 3 and 3 (terminated); critics at 5 and 4."""
    expected = sum((5 - y) ** 2 + (4 - y) ** 2 for y in (3.97, 4.97, 3.0)) / 3
    assert prepared(algo).critic_loss(three_transitions()).item() == pytest.approx(expected)


def test_xql_critic_loss_is_hubers() -> None:
    """Delta 1: errors 1.03, 0.03, 2 of the first critic and 0.03, -0.97, 1 of the second."""
    linear, square = (1.03 - 0.5) + (2 - 0.5), 0.5 * (0.03**2 + 0.03**2 + 0.97**2 + 1)
    xql = prepared("xql", "algo.huber_delta=1")
    assert xql.critic_loss(three_transitions()).item() == pytest.approx((linear + square) / 3)
    assert xql.latest["q/clipped_share"].tolist() == pytest.approx([2 / 6])


def test_sql_leaves_out_what_is_bad_enough() -> None:
    """Temperature 0.5: weights max(1 + Q - 3, 0) of Q = 1, 2, 5 are 0, 0, 3; a third of the sample counts."""
    sql, batch = prepared("sql", "algo.temperature=0.5"), three_transitions()
    q = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64)
    assert sql.weight(batch, q).tolist() == [[0.0, 0.0, 3.0]]
    sql.actor_loss(batch, q)
    assert sql.latest["weight/zero_share"].tolist() == pytest.approx([2 / 3])
    assert sql.latest["weight/effective_share"].tolist() == pytest.approx([1 / 3])


@pytest.mark.parametrize("algo", ["eql", "iql", "sql", "xql"])
def test_value_meets_the_target_critic_and_actor_and_critic_the_new_value(algo: str) -> None:
    """The losses that an update records are those of the target's Q and of the V that its own step of V left behind."""
    algorithm, reference = make_algorithm(algo), make_algorithm(algo)
    for each in (algorithm, reference):
        set_apart(each.critic_target)
    batch = random_batch()
    algorithm.step(batch)
    records = algorithm.take_records()
    q = reference.critic_target(batch.observations, batch.actions).amin(1)
    value_loss = reference.value_loss(batch, q)
    assert records["loss/value"] == pytest.approx(value_loss.tolist())
    reference.descend("value", value_loss)
    assert records["loss/actor"] == pytest.approx(reference.actor_loss(batch, q).tolist())
    assert records["loss/critic"] == pytest.approx(reference.critic_loss(batch).tolist())


@pytest.mark.parametrize(
    ("algo", "overrides", "level"),
    [
        ("sql", ["algo.temperature=0.5"], 0.5),
        ("sql", ["algo.temperature=0.125"], 0.75),
        ("eql", ["algo.temperature=0.5"], 0.5 * math.log((1 + math.exp(2)) / 2)),
        ("xql", ["algo.temperature=0.5"], 0.5 * math.log((1 + math.exp(2)) / 2)),
        ("xql", ["algo.temperature=0.5", "algo.subtract_max=false"], 0.5 * math.log((1 + math.exp(2)) / 2)),
    ],
)
def test_value_of_a_bandit_is_the_closed_form(algo: str, overrides: list[str], level: float) -> None:
    """Q = 0 or 1 with equal shares: V = alpha log E exp(Q / alpha); for SQL E max(1 + (Q - V) / (2 alpha), 0) = 1.

    SQL: at alpha 0.5 both weights are positive and V is the mean; at 0.125 only Q = 1 counts, 1 + 4 (1 - V) = 2.
    """
    algorithm = make_algorithm(algo, *overrides, "algo.optimizer.lr=0.03")
    batch = random_batch(size=2)
    batch.observations.zero_()
    q = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    for _ in range(150):
        algorithm.descend("value", algorithm.value_loss(batch, q))
    assert algorithm.value(batch.observations).mean().item() == pytest.approx(level, abs=0.01)


@every_one
def test_no_gradient_leaves_a_loss_for_another_part(algo: str) -> None:
    algorithm, batch = make_algorithm(algo), random_batch()
    q = algorithm.critic_target(batch.observations, batch.actions).amin(1)
    losses = {
        "value": algorithm.value_loss(batch, q),
        "actor": algorithm.actor_loss(batch, q),
        "critic": algorithm.critic_loss(batch),
    }
    for part, loss in losses.items():
        for other in algorithm.trained:
            parameters = list(getattr(algorithm, other).parameters())
            gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True, retain_graph=True)
            assert any(gradient is not None for gradient in gradients) == (part == other), (part, other)


@pytest.mark.parametrize("algo", [*IN_SAMPLE, "iql"])
def test_diagnostics_are_what_the_parts_say(algo: str) -> None:
    algorithm, batch = make_algorithm(algo), random_batch(size=9)
    set_apart(algorithm.critic_target)
    q = algorithm.critic_target(batch.observations, batch.actions).amin(1)
    expected = {
        "actor/log_prob": algorithm.actor.log_prob(batch.observations, batch.actions),
        "weight/w": algorithm.weight(batch, q),
        "q/target": q,
        "value/v": algorithm.value(batch.observations),
    }
    found = algorithm.diagnose(batch)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("algo", "key", "expected"),
    [
        ("sql", "temperature", (1.0, 0.1, 0.5)),
        ("eql", "temperature", (2.0, 0.5, 2.0)),
        ("xql", "temperature", (2.0, 0.6, 5.0)),
        ("xql", "inverse_temperature", (3.0, 10.0, 0.5)),
    ],
)
def test_values_by_family(algo: str, key: str, expected: tuple[float, ...]) -> None:
    ids = ("mujoco/hopper/medium-v0", "D4RL/antmaze/umaze-v1", "D4RL/kitchen/complete-v2")
    found = tuple(compose_config(f"algo={algo}", f"dataset={name}")["algo"][key] for name in ids)
    assert found == expected


@pytest.mark.parametrize(
    ("algo", "override", "message"),
    [
        ("sql", "algo.temperature=0", "algo.temperature=0 is not allowed; it must be positive"),
        ("sql", "algo.omega=exp", "algo.omega=exp is not allowed; it must be sparse or advantage"),
        ("eql", "algo.sharpness=-1", "algo.sharpness=-1 is not allowed; it must be at least 0"),
        ("eql", "algo.max_exponent=0", "algo.max_exponent=0 is not allowed"),
        ("xql", "algo.subtract_max=maybe", "algo.subtract_max=maybe is not allowed; it must be true or false"),
        ("xql", "algo.huber_delta=null", "algo.huber_delta=None is not allowed"),
        ("xql", "algo.inverse_temperature=-3", "algo.inverse_temperature=-3 is not allowed"),
    ],
)
def test_options_are_checked_at_construction(algo: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_algorithm(algo, override)
