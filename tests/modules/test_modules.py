import math

import pytest
import torch

from brpo.modules.actors import DeterministicActor, GaussianActor, SquashedGaussianActor
from brpo.modules.critics import QEnsemble, ValueFunction
from brpo.modules.divergence import SeriesDivergence
from brpo.modules.mlp import MLP, StackedLinear, initialize
from brpo.modules.target import Target
from tests.helpers import make_spec

SPEC = make_spec(observation=3, action=2)


def test_stacked_linear_equals_plain_linears() -> None:
    layer = StackedLinear((2, 3), 4, 5)
    initialize(layer, torch.tensor([0, 1]), "layer")
    inputs = torch.randn(6, 7, 4)
    output = layer(inputs)
    for member in range(6):
        weight, bias = layer.weight.flatten(0, 1)[member], layer.bias.flatten(0, 1)[member]
        assert torch.allclose(output[member], inputs[member] @ weight + bias, atol=1e-6)


def test_single_member_equals_its_stack() -> None:
    """The plain product that serves one member computes what the batched one does."""
    pair, single = MLP((2,), 3, 2, hidden=(8,), activation="relu"), MLP((1,), 3, 2, hidden=(8,), activation="relu")
    initialize(pair, torch.tensor([5, 6]), "net")
    initialize(single, torch.tensor([6]), "net")
    inputs = torch.randn(2, 4, 3)
    assert torch.allclose(pair(inputs)[1], single(inputs[1:])[0], atol=1e-6)


def test_initial_weights_are_those_of_torch_linear_in_distribution() -> None:
    layer = StackedLinear((1,), 100, 400)
    initialize(layer, torch.tensor([0]), "layer")
    assert layer.weight.abs().max() <= 0.1
    assert layer.weight.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert layer.weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert layer.bias.abs().max() <= 0.1
    assert layer.bias.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)
    assert not torch.equal(layer.bias[0], layer.weight[0, 0])  # numbers of its own


def test_initial_weights_depend_on_seed_name_and_layer_and_on_nothing_else() -> None:
    def weights(seeds: list[int], name: str) -> torch.Tensor:
        torch.manual_seed(torch.randint(0, 1000, ()).item())  # torch's own generator plays no part
        net = MLP((len(seeds),), 3, 1, hidden=(3,), activation="relu")
        initialize(net, torch.tensor(seeds), name)
        return torch.stack([net.layers[0].weight, net.layers[0].weight]).detach()

    assert torch.equal(weights([4], "a")[:, 0], weights([1, 4], "a")[:, 1])
    assert not torch.equal(weights([4], "a"), weights([4], "b"))
    assert not torch.equal(weights([4], "a"), weights([5], "a"))


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_last_layer_stays_in_full_precision_under_autocast(seeds: int) -> None:
    """bfloat16 knows 100 and 100.5 and nothing between them: differences of values there would be lost."""
    value = ValueFunction(SPEC, seeds, hidden=(32,), activation="relu")
    initialize(value, torch.arange(seeds), "m")
    with torch.no_grad():
        value.network.layers[-1].bias.fill_(100.0)
    observations = torch.linspace(-2, 2, seeds * 60).view(seeds, 20, 3)
    exact = value(observations)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (value(observations) - exact).abs().max() < 0.02


def test_critics_have_one_value_for_each_seed_critic_and_transition() -> None:
    critic = QEnsemble(SPEC, 2, critics=3, hidden=(8,), activation="relu")
    value = ValueFunction(SPEC, 2, hidden=(8,), activation="relu")
    for module in (critic, value):
        initialize(module, torch.tensor([0, 1]), "m")
    assert critic(torch.randn(2, 5, 3), torch.randn(2, 5, 2)).shape == (2, 3, 5)
    assert value(torch.randn(2, 5, 3)).shape == (2, 5)


def test_shapes_are_checked_while_tests_run() -> None:
    value = ValueFunction(SPEC, 1, hidden=(8,), activation="relu")
    with pytest.raises(Exception, match="observations"):
        value(torch.randn(5, 3))


@pytest.mark.parametrize("actor_class", [GaussianActor, SquashedGaussianActor])
def test_actors(actor_class: type) -> None:
    actor = actor_class(SPEC, 2, hidden=(8,), activation="tanh", min_log_std=-5.0, max_log_std=2.0)
    initialize(actor, torch.tensor([0, 1]), "actor")
    observations = torch.randn(2, 6, 3)
    assert actor.log_prob(observations, torch.rand(2, 6, 2) * 2 - 1).shape == (2, 6)
    assert actor.mode(observations).abs().max() <= 1
    sampled = actor.sample(observations, 100 * torch.randn(2, 6, 2))
    assert sampled.abs().max() <= 1
    assert torch.allclose(actor.sample(observations, torch.zeros(2, 6, 2)), actor.mode(observations))


def test_deterministic_actor_samples_its_mode() -> None:
    actor = DeterministicActor(SPEC, 2, hidden=(8,), activation="tanh")
    initialize(actor, torch.tensor([0, 1]), "actor")
    observations = 100 * torch.randn(2, 6, 3)
    mode = actor.mode(observations)
    assert mode.shape == (2, 6, 2)
    assert mode.abs().max() <= 1
    assert torch.equal(actor(observations), mode)
    assert torch.equal(actor.sample(observations, torch.randn(2, 6, 2)), mode)
    assert not hasattr(actor, "log_prob")


def test_actor_learns_a_known_mean_and_spread() -> None:
    """Maximum likelihood of actions N(0.5, 0.2): the exact answer."""
    torch.manual_seed(0)
    actor = GaussianActor(
        make_spec(observation=1, action=1), 1, hidden=(16,), activation="relu", min_log_std=-5, max_log_std=2
    )
    initialize(actor, torch.tensor([0]), "actor")
    actions = 0.5 + 0.2 * torch.randn(1, 4000, 1)
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        (-actor.log_prob(torch.zeros(1, 4000, 1), actions).mean()).backward()
        optimizer.step()
    mean, log_std = actor(torch.zeros(1, 1, 1))
    assert mean.item() == pytest.approx(0.5, abs=0.02)
    assert log_std.exp().item() == pytest.approx(0.2, abs=0.01)


def test_target_follows_by_polyak_and_is_not_trained() -> None:
    source = ValueFunction(SPEC, 1, hidden=(4,), activation="relu")
    initialize(source, torch.tensor([0]), "v")
    target = Target(source)
    before = target.module.network.layers[0].weight.clone()
    with torch.no_grad():
        source.network.layers[0].weight += 1.0
    target.follow(source, 0.25)
    assert torch.allclose(target.module.network.layers[0].weight, before + 0.25)
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_series_divergence_by_hand() -> None:
    """Jeffreys to order 3: h(1.5) = 0.5 * 0.25 - 0.125 / 3; beyond the clip it is constant without gradient."""
    module = SeriesDivergence("jeffreys", loss_order=3, epsilon=0.5)
    log_ratio = torch.log(torch.tensor([[1.5, 10.0]], dtype=torch.float64)).requires_grad_()
    values = module(log_ratio)
    values.sum().backward()
    expected = 0.5 * 0.25 - 0.125 / 3
    assert values.tolist()[0] == pytest.approx([expected, expected])
    assert log_ratio.grad is not None
    assert log_ratio.grad[0, 1] == 0
    assert module.clipped_share(torch.tensor([[0.1, 1.0, 10.0]]).log()).item() == pytest.approx(2 / 3)


def test_exact_and_truncated_agree_within_the_remainder() -> None:
    log_ratio = torch.log(torch.linspace(0.5, 1.5, 101, dtype=torch.float64)).unsqueeze(0)
    truncated = SeriesDivergence("jensen_shannon", loss_order=5, epsilon=0.5)
    exact = SeriesDivergence("jensen_shannon", loss_order=5, epsilon=0.5, exact=True)
    assert (truncated(log_ratio) - exact(log_ratio)).abs().max() <= truncated.remainder + 1e-12
    assert truncated.remainder < 1e-3


def test_ratios_of_zero_and_of_infinity_have_finite_gradients() -> None:
    module = SeriesDivergence("jeffreys", loss_order=4, epsilon=1.0)
    log_ratio = torch.tensor([[-math.inf, -800.0, 800.0]], requires_grad=True)
    values = module(log_ratio)
    values.sum().backward()
    assert values.isfinite().all()
    assert log_ratio.grad is not None
    assert log_ratio.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "jefreys", "loss_order": 3, "epsilon": 0.5}, "Unknown divergence 'jefreys'"),
        (
            {"divergence": "jeffreys", "loss_order": 1, "epsilon": 0.5},
            "loss_order=1 is not allowed; it must be a whole number >= 2",
        ),
        (
            {"divergence": "jeffreys", "loss_order": 3, "epsilon": 0.0},
            "epsilon=0.0 is not allowed; it must be positive",
        ),
        ({"divergence": "jeffreys", "loss_order": 3, "epsilon": 100.0}, "g_3 = -0.333 is negative"),
        ({"divergence": "jensen_shannon", "loss_order": 4, "epsilon": 3.0}, "g_4 = -0.0104 is negative"),
        ({"divergence": "total_variation", "loss_order": 3, "epsilon": 0.5}, "not differentiable at 1"),
        ({"divergence": "jeffreys", "loss_order": 20, "epsilon": 100.0}, r"make terms of 5e\+38, and float32 ends at 3e38"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeriesDivergence(**options)


def test_good_parity_is_allowed_beyond_the_radius() -> None:
    assert not SeriesDivergence("jeffreys", loss_order=4, epsilon=100.0).converges
    assert not SeriesDivergence("jensen_shannon", loss_order=3, epsilon=100.0).converges


@pytest.mark.parametrize("activation", ["swisch", ""])
def test_unknown_activation(activation: str) -> None:
    with pytest.raises(ValueError, match=r"activation=.* is not allowed; it must be relu or tanh"):
        MLP((1,), 2, 2, hidden=(4,), activation=activation)
