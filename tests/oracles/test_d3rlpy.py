"""BC, IQL, AWAC, TD3+BC, FQE against d3rlpy (https://github.com/takuseno/d3rlpy): same weights and batch, same losses.

`make oracle` installs it into .oracle; without it these tests are skipped. Where d3rlpy's formula is another one, the test
says so and takes the difference out: the paper's formula is what is left.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.types import Batch
from tests.algorithms.test_fqe import make_fqe
from tests.helpers import make_algorithm, random_batch

d3rlpy = pytest.importorskip("d3rlpy", reason="d3rlpy is not installed; `make oracle` does that")


# --- The same weights and batch -----------------------------------------------------------------------------------------


def ours(algo: str, *overrides: str) -> OfflineAlgorithm:
    """In float32, the target networks moved apart from their sources, so that a mix-up would show."""
    algorithm = make_algorithm(algo, *overrides, dtype=torch.float32)
    with torch.no_grad():
        for name, part in algorithm.named_children():
            for parameter in part.parameters() if name.endswith("_target") else ():
                parameter.mul_(1.1)
    return algorithm


def in_d3rlpy(algorithm: OfflineAlgorithm, config: type, **options: Any) -> Any:
    """d3rlpy's implementation with the sizes and weights of ours."""
    encoder = d3rlpy.models.VectorEncoderFactory([16, 16])
    if hasattr(algorithm, "critic"):
        options |= {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder}
    else:
        options |= {"encoder_factory": encoder}
    if hasattr(algorithm, "value"):
        options |= {"value_encoder_factory": encoder}
    learner = config(**options).create(device="cpu:0")
    learner.create_impl((algorithm.spec.observation_dim,), algorithm.spec.action_dim)
    for mine, member, theirs in same_networks(algorithm, learner.impl._modules):
        copy_weights(mine, member, theirs)
    policy = getattr(learner.impl._modules, "policy", None)
    if hasattr(policy, "_logstd"):
        copy_log_std(algorithm.actor, policy)
    return learner.impl


def same_networks(algorithm: Any, modules: Any) -> list[tuple[Any, tuple[int, ...], nn.Module]]:
    """Each network of ours with its member, and d3rlpy's network in its place."""
    if not hasattr(algorithm, "critic"):
        return [(algorithm.actor, (0,), modules.imitator)]
    pairs = [(algorithm.actor, (0,), modules.policy)]
    for k in range(2):
        pairs += [(algorithm.critic, (0, k), modules.q_funcs[k])]
        pairs += [(algorithm.critic_target.module, (0, k), modules.targ_q_funcs[k])]
    if hasattr(algorithm, "value"):
        pairs += [(algorithm.value, (0,), modules.value_func)]
    if hasattr(algorithm, "actor_target"):
        pairs += [(algorithm.actor_target.module, (0,), modules.targ_policy)]
    return pairs


def linear_layers(plain: nn.Module) -> list[nn.Linear]:
    return [module for module in plain.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def copy_weights(stack: Any, member: tuple[int, ...], plain: nn.Module) -> None:
    """Put one member of a stack of networks into plain linear layers, input first."""
    for mine, theirs in zip(stack.network.layers, linear_layers(plain), strict=True):
        theirs.weight.copy_(mine.weight[member].T)
        theirs.bias.copy_(mine.bias[member])


@torch.no_grad()
def copy_log_std(actor: Any, policy: Any) -> None:
    """d3rlpy keeps the logit of where it lies between its bounds."""
    actor.log_std.fill_(-0.5)
    low, high = policy._min_logstd, policy._max_logstd
    policy._logstd.copy_(torch.logit((actor.log_std - low) / (high - low)))


def difference(stack: Any, member: tuple[int, ...], plain: nn.Module) -> float:
    """Largest difference of a weight between a member and plain layers."""
    pairs = zip(stack.network.layers, linear_layers(plain), strict=True)
    return max((mine.weight[member].T - theirs.weight).abs().max().item() for mine, theirs in pairs)


def float_batch(seed: int = 0) -> Batch:
    return random_batch(size=32, seed=seed, dtype=torch.float32)


def to_d3rlpy(batch: Batch) -> Any:
    from d3rlpy.torch_utility import TorchMiniBatch

    def column(x: Tensor) -> Tensor:
        return x[0].unsqueeze(-1)

    return TorchMiniBatch(
        observations=batch.observations[0],
        actions=batch.actions[0],
        rewards=column(batch.rewards),
        next_observations=batch.next_observations[0],
        next_actions=batch.next_actions[0],
        returns_to_go=column(batch.rewards),
        terminals=column(batch.terminated),
        intervals=torch.ones_like(column(batch.rewards)),
        device="cpu:0",
    )


def close(expected: Any) -> Any:
    return pytest.approx(torch.as_tensor(expected).item(), abs=1e-5, rel=1e-5)


# --- The algorithms -------------------------------------------------------------------------------------------------------


def test_bc_is_d3rlpys_up_to_the_constant_of_the_density() -> None:
    """d3rlpy fits the mean by squared error; with a standard deviation of 1, `-log pi` is d/2 (error + log 2 pi)."""
    bc, batch = ours("bc"), float_batch()
    theirs = in_d3rlpy(bc, d3rlpy.algos.BCConfig, policy_type="deterministic")
    error = theirs.compute_loss(batch.observations[0], batch.actions[0]).loss.item()
    dimensions = bc.spec.action_dim
    assert bc.actor_loss(batch).item() == close(0.5 * dimensions * (error + math.log(2 * math.pi)))


def test_iql_losses_are_d3rlpys() -> None:
    iql, batch = ours("iql", "algo.expectile=0.8", "algo.inverse_temperature=4"), float_batch()
    theirs = in_d3rlpy(iql, d3rlpy.algos.IQLConfig, expectile=0.8, weight_temp=4.0)
    their_batch = to_d3rlpy(batch)
    q = iql.critic_target(batch.observations, batch.actions).amin(1)
    expected = theirs.compute_critic_loss(their_batch, theirs.compute_target(their_batch))
    assert iql.value_loss(batch, q).item() == close(expected.v_loss)
    assert iql.critic_loss(batch).item() == close(expected.q_loss)
    actor_loss = theirs.compute_actor_loss(their_batch, theirs._modules.policy(their_batch.observations)).actor_loss
    assert iql.actor_loss(batch, q).item() == close(actor_loss)


def test_iql_update_is_d3rlpys_but_for_the_v_that_q_is_fitted_to() -> None:
    """In both the actor meets the new V. d3rlpy fits Q to the old one, IQL's authors and we to the new."""
    iql, batch = ours("iql", "algo.inverse_temperature=3"), float_batch()
    theirs = in_d3rlpy(iql, d3rlpy.algos.IQLConfig, weight_temp=3.0)
    with_old_v = iql.critic_loss(batch).item()
    iql.step(batch)
    records, expected = iql.take_records(), theirs.inner_update(to_d3rlpy(batch), 0)
    assert records["loss/value"] == [close(expected["v_loss"])]
    assert records["loss/actor"] == [close(expected["actor_loss"])]
    assert difference(iql.value, (0,), theirs._modules.value_func) < 1e-5
    assert with_old_v == close(expected["q_loss"])
    assert records["loss/critic"] != [close(expected["q_loss"])]


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What both draw as standard normal numbers, (batch, action): set it in place."""
    noise = torch.randn(32, 2, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(OfflineAlgorithm, "normal", lambda self, name, like: noise.expand_as(like))
    normal = torch.distributions.Normal
    monkeypatch.setattr(normal, "rsample", lambda self, shape=(): (self.loc + self.scale * noise).expand(*shape, 32, 2))
    return noise


def test_awac_actor_loss_is_d3rlpys_over_the_batch_size(same_noise: Tensor) -> None:
    """d3rlpy sums over the batch where the paper takes the mean."""
    awac, batch = ours("awac", "algo.omega=softmax", "algo.temperature=0.5"), float_batch()
    theirs = in_d3rlpy(awac, d3rlpy.algos.AWACConfig, lam=0.5)
    their_batch = to_d3rlpy(batch)
    expected = theirs.compute_actor_loss(their_batch, theirs._modules.policy(their_batch.observations)).actor_loss
    assert awac.actor_loss(batch).item() == close(expected / 32)


def test_awac_critic_loss_is_d3rlpys_without_the_entropy_and_the_squashing(same_noise: Tensor) -> None:
    """d3rlpy's target is Soft Actor-Critic's: the entropy at temperature 1, of a tanh-transformed Gaussian.

    At temperature 0, and at the mean action, where the two policies agree, the paper's target is left.
    """
    awac, batch = ours("awac"), float_batch()
    theirs = in_d3rlpy(awac, d3rlpy.algos.AWACConfig)
    same_noise.zero_()
    their_batch = to_d3rlpy(batch)
    with_entropy = theirs.compute_target(their_batch)
    with torch.no_grad():
        next(theirs._modules.log_temp.parameters()).fill_(-math.inf)
    target = theirs.compute_target(their_batch)
    assert not torch.allclose(with_entropy, target, atol=1e-2)
    assert awac.critic_loss(batch).item() == close(theirs.compute_critic_loss(their_batch, target).critic_loss)


def test_td3_bc_losses_and_six_updates_are_d3rlpys() -> None:
    """Without smoothing noise. d3rlpy counts its updates as we do, so the delayed steps coincide."""
    td3_bc = ours("td3_bc", "algo.target_noise=0")
    theirs = in_d3rlpy(td3_bc, d3rlpy.algos.TD3PlusBCConfig, target_smoothing_sigma=0.0)
    for update in range(6):
        batch = float_batch(seed=update)
        td3_bc.step(batch)
        expected = theirs.inner_update(to_d3rlpy(batch), update)
        records = td3_bc.take_records()
        assert records["loss/critic"] == [close(expected["critic_loss"])]
        assert ("loss/actor" in records) == ("actor_loss" in expected)
        if "loss/actor" in records:
            assert records["loss/actor"] == [close(expected["actor_loss"])]
            assert records["actor/bc_term"] == [close(expected["bc_loss"])]
    for mine, member, network in same_networks(td3_bc, theirs._modules):
        assert difference(mine, member, network) < 1e-5


def test_six_updates_of_fqe_are_d3rlpys() -> None:
    """Of a TD3+BC policy. d3rlpy copies Q to its target now and then: after each update here, as ours with polyak 1."""
    td3_bc = ours("td3_bc")
    policy = in_d3rlpy(td3_bc, d3rlpy.algos.TD3PlusBCConfig)
    fqe = make_fqe(td3_bc, critics=1, lr=1e-3, polyak=1.0).to(torch.float32)
    encoder = d3rlpy.models.VectorEncoderFactory([16, 16])
    config = d3rlpy.ope.FQEConfig(
        learning_rate=1e-3, gamma=0.9, n_critics=1, target_update_interval=1, encoder_factory=encoder
    )
    theirs = d3rlpy.ope.FQE(algo=SimpleNamespace(impl=policy), config=config, device="cpu:0")
    theirs.create_impl((fqe.spec.observation_dim,), fqe.spec.action_dim)
    modules = theirs.impl._modules
    for mine, network in ((fqe.critic, modules.q_funcs[0]), (fqe.critic_target.module, modules.targ_q_funcs[0])):
        copy_weights(mine, (0, 0), network)
    for update in range(6):
        batch = float_batch(seed=update)
        fqe.step(batch)
        expected = theirs.impl.inner_update(to_d3rlpy(batch), update)
        assert fqe.take_records()["loss/critic"] == [close(expected["loss"])]
    assert difference(fqe.critic, (0, 0), modules.q_funcs[0]) < 1e-5
    batch = float_batch()
    values = theirs.impl._q_func_forwarder.compute_expected_q(batch.observations[0], td3_bc.actor(batch.observations)[0])
    torch.testing.assert_close(fqe.policy_value(batch.observations)[0], values.flatten(), rtol=1e-5, atol=1e-5)
