import math

import pytest
import torch

from brpo.functional import losses


def rows(*values: float) -> torch.Tensor:
    """(1 seed, batch)."""
    return torch.tensor([values], dtype=torch.float64)


def test_expectile_by_hand() -> None:
    """0.7 weighs positive errors by 0.7 and negative ones by 0.3: 0.7 * 4, 0.3 * 1, 0."""
    assert losses.expectile(rows(2.0, -1.0, 0.0), 0.7).tolist()[0] == pytest.approx([2.8, 0.3, 0.0])


def test_expectile_of_one_half_is_half_the_squared_error() -> None:
    error = torch.linspace(-3, 3, 13, dtype=torch.float64)
    assert torch.allclose(losses.expectile(error, 0.5), 0.5 * error.square())


def test_expectile_gradient_by_hand() -> None:
    error = rows(2.0, -1.0).requires_grad_()
    losses.expectile(error, 0.9).sum().backward()
    assert error.grad is not None
    assert error.grad.tolist()[0] == pytest.approx([3.6, -0.2])


def test_gumbel_by_hand() -> None:
    """Errors 1 and -1 at temperature 1: z = 1, -1 and m = 1, so e^-1 (e - 2) and e^-1 (1/e)."""
    expected = [math.exp(-1) * (math.e - 2), math.exp(-1) * math.exp(-1)]
    assert losses.gumbel(rows(1.0, -1.0), 1.0, 7.0).tolist()[0] == pytest.approx(expected)


def test_gumbel_offset_is_bounded_below_and_the_exponent_above() -> None:
    """All z = -5: m = -1, so e (e^-5 - (-5) - 1). z = 100 is clipped at 7 and has no gradient."""
    assert losses.gumbel(rows(-5.0), 1.0, 7.0).item() == pytest.approx(math.e * (math.exp(-5) + 4))
    error = rows(100.0, 0.5).requires_grad_()
    losses.gumbel(error, 1.0, 7.0).sum().backward()
    assert error.grad is not None
    assert error.grad[0, 0] == 0
    assert error.grad[0, 1] > 0


def test_gumbel_minimum_is_the_soft_maximum() -> None:
    """argmin_V E[gumbel(Q - V)] = temperature log E exp(Q / temperature)."""
    q, temperature = rows(0.0, 1.0, 3.0), 0.8
    v = torch.linspace(0, 3, 30_001, dtype=torch.float64).unsqueeze(1)
    z = (q - v) / temperature  # one row for each candidate; the offset would differ between rows, so it is left out
    best = v[(z.exp() - z - 1).mean(-1).argmin()].item()
    expected = temperature * (torch.logsumexp(q / temperature, -1).item() - math.log(3))
    assert best == pytest.approx(expected, abs=2e-4)
    at_best = (q - expected).requires_grad_()
    losses.gumbel(at_best, temperature, 7.0).mean().backward()
    assert at_best.grad is not None
    assert at_best.grad.sum().item() == pytest.approx(0.0, abs=1e-9)  # stationary with the offset too


def test_gumbel_without_the_maximum_by_hand() -> None:
    """Errors 1 and -1 at temperature 1: e - 2 and 1/e; z = 100 is still clipped, at 2: e^2 - 3."""
    values = losses.gumbel(rows(1.0, -1.0, 100.0), 1.0, 2.0, subtract_max=False).tolist()[0]
    assert values == pytest.approx([math.e - 2, 1 / math.e, math.e**2 - 3])


def test_exponential_value_by_hand() -> None:
    """Q - V = 2 and -2 at temperature 2: z = 1, -1 and m = 1; V = 4 and 6: e^-1 (e + 2) and e^-1 (1/e + 3)."""
    values = losses.exponential_value(rows(2.0, -2.0), rows(4.0, 6.0), 2.0, 5.0).tolist()[0]
    assert values == pytest.approx([math.exp(-1) * (math.e + 2), math.exp(-1) * (1 / math.e + 3)])


def test_exponential_value_pushes_a_clipped_value_down() -> None:
    """z = 50 is clipped at 5, so m = 5: the exponential has no gradient there, V / temperature has e^-5 / 2."""
    q, value = rows(100.0), rows(0.0).requires_grad_()
    losses.exponential_value(q - value, value, 2.0, 5.0).sum().backward()
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(math.exp(-5) / 2)


def test_exponential_value_is_stationary_at_the_soft_maximum() -> None:
    """V = temperature log E exp(Q / temperature), offset included."""
    q, temperature = rows(0.0, 1.0, 3.0), 0.8
    v = (temperature * (torch.logsumexp(q / temperature, -1) - math.log(3))).requires_grad_()
    losses.exponential_value(q - v, v.expand(1, 3), temperature, 5.0).mean().backward()
    assert v.grad is not None
    assert v.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_sparse_value_by_hand() -> None:
    """Temperature 0.5: (1 + u)^2 + 2 V with u = 2, -0.5, -4 and V = 1, 0, 3: 9 + 2, 0.25, 0 + 6."""
    assert losses.sparse_value(rows(2.0, -0.5, -4.0), rows(1.0, 0.0, 3.0), 0.5).tolist()[0] == [11.0, 0.25, 6.0]


def test_sparse_value_is_stationary_where_the_weights_are_normalized() -> None:
    """Q = 0, 1, 3 at temperature 0.5: weights max(1 + Q - V, 0) are 0, 0.5, 2.5 at V = 1.5, their mean 1."""
    q, v = rows(0.0, 1.0, 3.0), torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    losses.sparse_value(q - v, v.expand(1, 3), 0.5).mean().backward()
    assert v.grad is not None
    assert v.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_td_target_by_hand_stops_at_termination_only() -> None:
    target = losses.td_target(rows(1.0, 1.0), rows(0.0, 1.0), rows(10.0, 10.0), 0.9)
    assert target.tolist()[0] == pytest.approx([10.0, 1.0])


def test_ensemble_squared_error_by_hand() -> None:
    """Two critics, batch of two: (1 + 4)/2 + (0 + 9)/2."""
    q = torch.tensor([[[1.0, 2.0], [0.0, 3.0]]])
    assert losses.ensemble_squared_error(q, torch.zeros(1, 2)).tolist() == [7.0]


def test_ensemble_huber_by_hand_and_its_gradient_is_bounded() -> None:
    """Delta 2, two critics: errors 1, -2 give (0.5 + 2) / 2; errors 0, 5 give (0 + 2 (5 - 1)) / 2."""
    q = torch.tensor([[[1.0, -2.0], [0.0, 5.0]]], requires_grad=True)
    loss = losses.ensemble_huber(q, torch.zeros(1, 2), 2.0)
    loss.sum().backward()
    assert loss.tolist() == [1.25 + 4.0]
    assert q.grad is not None
    assert q.grad.tolist() == [[[0.5, -1.0], [0.0, 1.0]]]


def test_huber_inside_delta_is_half_the_squared_error() -> None:
    q, target = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    assert torch.allclose(losses.ensemble_huber(q, target, 100.0), 0.5 * losses.ensemble_squared_error(q, target))


def test_weighted_regression_by_hand_and_without_gradient_into_the_weight() -> None:
    """-(2 * -1 + 0.5 * -4) / 2 = 2."""
    log_prob, weight = rows(-1.0, -4.0).requires_grad_(), rows(2.0, 0.5).requires_grad_()
    loss = losses.weighted_regression(log_prob, weight)
    loss.sum().backward()
    assert loss.tolist() == [2.0]
    assert log_prob.grad is not None
    assert log_prob.grad.tolist()[0] == [-1.0, -0.25]
    assert weight.grad is None


def test_value_scale_by_hand_and_without_gradient() -> None:
    """2 / ((1 + 3) / 2) = 1 for the first seed, 2 / ((8 + 0) / 2) = 0.5 for the second."""
    q = torch.tensor([[1.0, -3.0], [8.0, 0.0]], dtype=torch.float64, requires_grad=True)
    scale = losses.value_scale(q, 2.0)
    assert scale.tolist() == [1.0, 0.5]
    assert not scale.requires_grad
    nothing = torch.zeros(1, 2)
    assert (losses.value_scale(nothing, 2.0).unsqueeze(-1) * nothing).tolist() == [[0.0, 0.0]]  # and not NaN


def test_scaled_values_do_not_depend_on_the_scale_of_rewards() -> None:
    q = torch.randn(2, 5, dtype=torch.float64)
    scaled = losses.value_scale(q, 2.5).unsqueeze(-1) * q
    assert torch.allclose(losses.value_scale(1000 * q, 2.5).unsqueeze(-1) * 1000 * q, scaled)
    assert scaled.abs().mean(-1).tolist() == pytest.approx([2.5, 2.5])


def test_action_error_by_hand() -> None:
    """((1 - 0)^2 + (2 - 5)^2) / 2 = 5 and 0."""
    actions, data_actions = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[0.0, 5.0], [3.0, 4.0]]])
    assert losses.action_error(actions, data_actions).tolist() == [[5.0, 0.0]]


def test_losses_keep_seeds_apart() -> None:
    error = torch.randn(3, 5, dtype=torch.float64)
    value = torch.randn(3, 5, dtype=torch.float64)
    for loss in (
        lambda u, v: losses.gumbel(u, 1.0, 7.0),
        lambda u, v: losses.exponential_value(u, v, 1.0, 5.0),
        lambda u, v: losses.sparse_value(u, v, 1.0),
    ):
        alone = torch.cat([loss(error[k : k + 1], value[k : k + 1]) for k in range(3)])
        assert torch.equal(loss(error, value), alone)
