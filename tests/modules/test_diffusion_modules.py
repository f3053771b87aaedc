"""The networks over diffusion steps against plain ones that are given their features row by row."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from brpo.modules.critics import QEnsemble
from brpo.modules.diffusion import DiffusionActor, DiffusionValue, NoisyInput, TimedMLP
from brpo.modules.mlp import MLP, initialize
from tests.helpers import make_spec

SPEC = make_spec(observation=3, action=2)
OPTIONS = {"noise_schedule": "vp", "clip": 1.0, "time_dim": 8, "hidden": (16, 16), "activation": "mish"}


def make_actor(seeds: int = 2, steps: int = 5, **options: Any) -> DiffusionActor:
    actor = DiffusionActor(SPEC, seeds, **{"steps": steps, **OPTIONS, **options}).double()
    initialize(actor, torch.arange(seeds), "actor")
    return actor


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("members", [(1,), (2,), (1, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_features_of_the_step_are_inputs_of_each_row(members: tuple[int, ...], layer_norm: bool) -> None:
    """What is taken once for each step equals an MLP on (inputs, features of the row's step), gradients included."""
    timed = TimedMLP(
        members, 4, 2, steps=5, time_dim=8, time_inner=6, hidden=(7,), activation="mish", layer_norm=layer_norm
    ).double()
    initialize(timed, torch.arange(members[0]), "timed")
    inputs, n = normal(members[0], 6, 4), torch.tensor([[0, 5, 2, 1, 2, 4]]).expand(members[0], -1)
    features = timed.time()[..., n[0], :]  # (*members, batch, features)
    rows = inputs if len(members) == 1 else inputs.unsqueeze(1).expand(-1, members[1], -1, -1)
    plain = each_member(timed.network, torch.cat([rows, features], dim=-1))
    assert torch.allclose(timed(inputs, n), plain, atol=1e-12)
    ours, theirs = (torch.autograd.grad(out.square().sum(), list(timed.parameters()), retain_graph=True) for out in
                    (timed(inputs, n), plain))  # fmt: skip
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))
    assert torch.allclose(timed(inputs, 2)[..., [2, 4], :], plain[..., [2, 4], :], atol=1e-12)


def each_member(network: MLP, inputs: Tensor) -> Tensor:
    """A stack's outputs where every member has inputs of its own (*members, batch, inputs), in plain torch."""
    hidden, last = inputs, len(network.layers) - 1
    for number, layer in enumerate(network.layers):
        hidden = torch.einsum("...bi,...io->...bo", hidden, layer.weight) + layer.bias.unsqueeze(-2)
        if number < last:
            if len(network.norms):
                norm = network.norms[number]
                centred = hidden - hidden.mean(-1, keepdim=True)
                scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
                hidden = scaled * norm.scale.unsqueeze(-2) + norm.shift.unsqueeze(-2)
            hidden = torch.nn.functional.mish(hidden)
    return hidden


@pytest.mark.parametrize("activation", ["mish", "tanh"])
@pytest.mark.parametrize("members", [(1,), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_members_one_by_one_equal_layers(members: tuple[int, ...], layer_norm: bool, activation: str) -> None:
    """What a CPU does without gradient equals what it does with one."""
    network = MLP(members, 4, 2, hidden=(70, 9), activation=activation, layer_norm=layer_norm).double()
    initialize(network, torch.arange(members[0]), "net")
    inputs = normal(members[0], 5, 4)
    with torch.no_grad():
        plain = network(inputs)
        for norm in network.norms:
            norm.scale.copy_(normal(*norm.scale.shape))
            norm.shift.copy_(normal(*norm.shift.shape))
        alone = network(inputs)
    assert torch.allclose(alone, network(inputs), atol=1e-12)
    assert torch.equal(alone, plain) != layer_norm  # the norms' parameters are used


def test_an_actor_denoises_with_as_much_noise_as_it_says() -> None:
    observations = normal(2, 6, 3)
    for sampler, steps, noises in (("ddpm", None, 5), ("ddpm", 2, 2), ("ddim", None, 1), ("ddim", 1, 1)):
        actor = make_actor(sampler=sampler, sampling_steps=steps)
        assert actor.noise_dim == noises * 2
        actions = actor.sample(observations, normal(2, 6, actor.noise_dim))
        assert actions.shape == (2, 6, 2)
        assert actions.abs().max() <= 1
        assert torch.equal(actor.mode(observations), actor.sample(observations, torch.zeros(2, 6, actor.noise_dim).double()))


def test_unclipped_samples_are_held_to_the_bounds() -> None:
    actor = make_actor(clip=None)
    noise = 100 * normal(2, 6, actor.noise_dim)
    assert actor.denoise(normal(2, 6, 3), noise)[-1].abs().max() > 1
    assert actor.sample(normal(2, 6, 3), noise).abs().max() == 1


def test_a_perfect_model_of_one_action_samples_it() -> None:
    """The noise in x_n of an action c is known: every sampler, with any number of steps, comes out at c."""
    for sampler, steps in (("ddpm", None), ("ddpm", 2), ("ddim", None), ("ddim", 1)):
        actor = make_actor(seeds=1, sampler=sampler, sampling_steps=steps)
        bars, wanted = actor.schedule.alpha_bars, torch.tensor([0.3, -0.8], dtype=torch.float64)
        actor.network.forward = lambda x, n, bars=bars, wanted=wanted: (
            (x[..., 3:] - bars[n] ** 0.5 * wanted) / (1 - bars[n]) ** 0.5
        )
        actions = actor.sample(normal(1, 6, 3), normal(1, 6, actor.noise_dim))
        assert torch.allclose(actions, wanted.expand(1, 6, 2), atol=1e-12)


def test_diffusion_values_have_one_for_each_seed_critic_and_row() -> None:
    value = DiffusionValue(SPEC, 2, critics=3, steps=5, time_dim=8, hidden=(8,), activation="mish", layer_norm=True)
    initialize(value, torch.tensor([0, 1]), "value")
    assert value(torch.randn(2, 5, 3), torch.randn(2, 5, 2), torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 3, 5)


def test_the_input_scale_reaches_the_noisy_action_alone() -> None:
    """A network that sees 4.5 x_n is the plain one at 4.5 x_n; observations and the steps themselves are as they were."""
    plain, scaled = make_actor(), make_actor(input_scale=4.5)
    observations, noisy, n = normal(2, 6, 3), normal(2, 6, 2), torch.tensor([[1, 5, 2, 1, 2, 4]]).expand(2, -1)
    assert torch.equal(scaled(observations, noisy, n), plain(observations, 4.5 * noisy, n))
    assert scaled.full_path == plain.full_path
    options: dict[str, Any] = {"critics": 3, "steps": 5, "time_dim": 8, "hidden": (8,), "activation": "mish"}
    v, scaled_v = (DiffusionValue(SPEC, 2, **options, layer_norm=True, input_scale=c).double() for c in (1.0, 4.5))
    initialize(v, torch.arange(2), "value")
    scaled_v.load_state_dict(v.state_dict())
    assert torch.equal(scaled_v(observations, noisy, n), v(observations, 4.5 * noisy, n))


def test_a_network_sees_waves_of_the_noisy_action_beside_it() -> None:
    """Sines of all entries by all frequencies, then cosines; the points themselves are scaled, the waves are not."""
    noisy, frequencies = normal(2, 6, 2), (1.0, 4.0)
    seen = NoisyInput(2, 4.5, frequencies).double()
    angles = np.pi * np.stack([entry * f for entry in np.moveaxis(noisy.numpy(), -1, 0) for f in frequencies], axis=-1)
    wanted = np.concatenate([4.5 * noisy.numpy(), np.sin(angles), np.cos(angles)], axis=-1)
    assert seen.size == wanted.shape[-1] == 10
    assert np.allclose(seen(noisy).numpy(), wanted, atol=1e-6)  # pi in float32
    assert torch.equal(NoisyInput(2, 4.5, ()).double()(noisy), 4.5 * noisy)
    for network in (
        make_actor(input_frequencies=frequencies),
        DiffusionValue(
            SPEC, 2, critics=3, steps=5, time_dim=8, hidden=(8,), activation="relu", layer_norm=True, input_frequencies=[2]
        ),
    ):
        assert network.network.inputs == 3 + network.seen.size
        assert network.seen.size == 2 * (1 + 2 * len(network.seen.waves))
        assert not [name for name in network.state_dict() if "waves" in name]


def test_q_sees_actions_times_its_scale() -> None:
    """Every critic, and the first one alone."""
    q, scaled_q = (QEnsemble(SPEC, 2, critics=3, hidden=(8,), activation="mish", input_scale=c).double() for c in (1.0, 4.5))
    initialize(q, torch.arange(2), "critic")
    scaled_q.load_state_dict(q.state_dict())
    observations, actions = normal(2, 6, 3), normal(2, 6, 2)
    assert torch.equal(scaled_q(observations, actions), q(observations, 4.5 * actions))
    assert torch.equal(scaled_q.first(observations, actions), q.first(observations, 4.5 * actions))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_scale": 0.0}, "input_scale=0.0 is not allowed; it must be positive and finite"),
        (
            {"input_frequencies": [1, 0]},
            r"input_frequencies=\[1, 0\] is not allowed; it must be a list of positive and finite",
        ),
        ({"clip": 0.0}, "clip=0.0 is not allowed; it must be positive and finite or null"),
        ({"noise_schedule": "vq"}, "Unknown noise schedule 'vq'. Known: cosine, geometric, linear, vp"),
        ({"sampler": "euler"}, "Unknown sampler 'euler'. Known: ddpm, ddim"),
        ({"sampling_steps": 6}, "1 to 5 steps"),
        ({"steps": 0}, "must be a whole number of at least 1, got 0"),
        ({"time_dim": 3}, "even number of at least 4, got 3"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_actor(**options)
