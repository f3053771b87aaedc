"""Networks over the steps of a diffusion: the policy that predicts noise, and the value of noisy actions."""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from brpo.functional import diffusion, streams
from brpo.functional.activations import mish
from brpo.functional.diffusion import ReverseStep, Schedule
from brpo.modules.mlp import MLP, StackedLinear
from brpo.options import is_number, require, require_number, require_positive, require_whole
from brpo.types import DataSpec


class TimeFeatures(nn.Module):
    """Features of the steps n = 0..N: sines and cosines through two layers, Mish after each.

    Source: BDPO's authors' code.

    Args:
        members: shape of the stack.
        steps: N, the number of diffusion steps.
        size: of the features and of the sines and cosines they are made of; even, at least 4.
        inner: size of the first layer.
    """

    positions: Tensor

    def __init__(self, members: tuple[int, ...], steps: int, size: int, inner: int) -> None:
        super().__init__()
        self.members = members
        self.first = StackedLinear(members, size, inner)
        self.second = StackedLinear(members, inner, size)
        self.register_buffer("positions", diffusion.positional(steps, size), persistent=False)

    def forward(self, n: int | None = None) -> Tensor:
        """Features of every step (*members, N+1, size), or of step n alone (*members, 1, size)."""
        positions = self.positions if n is None else self.positions[n : n + 1]
        rows = positions.expand(self.first.weight.shape[:-2].numel(), -1, -1)
        features = mish(self.second(mish(self.first(rows))))
        return features.view(*self.members, *features.shape[1:])


class NoisyInput(nn.Module):
    """What a network sees of x_n: itself, and the sine and cosine of `pi f` times each entry, for every frequency f.

    Networks of low-dimensional points learn what changes fast last and badly; waves among their inputs change that.
    Source: Fourier features (arXiv:2006.10739), there without the points themselves.

    Args:
        action_dim: size of x_n.
        scale: > 0, factor on x_n.
        frequencies: > 0 each, half periods in a unit of x_n. None: x_n alone.

    Raises:
        ValueError: an option is out of range.
    """

    waves: Tensor

    def __init__(self, action_dim: int, scale: float, frequencies: Sequence[float]) -> None:
        super().__init__()
        require_positive(input_scale=scale)
        require(
            "input_frequencies",
            frequencies,
            "a list of positive and finite numbers",
            lambda v: not isinstance(v, str) and all(is_number(f) and f > 0 for f in v),
        )
        self.scale = float(scale)
        self.size = action_dim * (1 + 2 * len(frequencies))
        self.register_buffer("waves", torch.pi * torch.tensor([float(f) for f in frequencies]), persistent=False)

    def forward(self, noisy: Float[Tensor, "*rows a"]) -> Float[Tensor, "*rows size"]:
        """All that is seen, (..., `size`)."""
        scaled = self.scale * noisy
        if not len(self.waves):
            return scaled
        angles = (noisy.unsqueeze(-1) * self.waves).flatten(-2)
        return torch.cat([scaled, angles.sin(), angles.cos()], dim=-1)


class TimedMLP(nn.Module):
    """An MLP of (inputs, time features of n) for each member of a stack.

    There are N+1 steps only, so the first layer's product with their features is taken once for each step and not once for
    each row of the batch: a row picks the one of its step. The same function, at the cost of a narrower input.

    Args:
        members: shape of the stack.
        inputs: size of the input without the time features.
        outputs: size of the output.
        steps: N, the number of diffusion steps.
        time_dim: size of the time features.
        time_inner: size of the layer between them and the sines and cosines.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
        layer_norm: normalize what goes into each activation of `hidden`.
    """

    which: Tensor

    def __init__(
        self,
        members: tuple[int, ...],
        inputs: int,
        outputs: int,
        *,
        steps: int,
        time_dim: int,
        time_inner: int,
        hidden: Sequence[int],
        activation: str,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.time = TimeFeatures(members, steps, time_dim, time_inner)
        self.network = MLP(members, inputs + time_dim, outputs, hidden=hidden, activation=activation, layer_norm=layer_norm)
        self.register_buffer("which", torch.eye(steps + 1), persistent=False)  # row n marks step n

    def forward(self, inputs: Tensor, n: int | Tensor) -> Tensor:
        """Map (seeds, batch, inputs) to (*members, batch, outputs); n is one step, or (seeds, batch) of them."""
        network = self.network
        (weight, bias, *rest), norms = network.in_order()
        weight, time_weight = weight.split([self.inputs, weight.shape[-2] - self.inputs], dim=-2)
        if isinstance(n, int):
            bias = bias + (self.time(n) @ time_weight).squeeze(-2)
        else:
            weight = torch.cat([weight, self.time() @ time_weight], dim=-2)
            inputs = torch.cat([inputs, self.which[n]], dim=-1)
        return network.run(inputs, network.members, [weight, bias, *rest], norms)


class DiffusionActor(nn.Module):
    """A policy that draws actions by denoising: a network predicts the noise in x_n.

    Source: BDPO's authors' code; `sampler` and `sampling_steps` as in DDIM (arXiv:2010.02502).

    Args:
        spec: sizes of observation and action.
        seeds: number of seeds.
        steps: N >= 1, the number of diffusion steps.
        noise_schedule: a key of `diffusion.BETAS`.
        clip: bound on each entry of the clean estimate, or None. Actions lie in [-1, 1].
        time_dim: size of the time features.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
        sampler: how `sample` steps: `ddpm` with noise, `ddim` without.
        sampling_steps: in 1..N, how many steps `sample` takes; None takes all.
        input_scale: > 0, factor on x_n as the network sees it; the diffusion itself stays as it is. Ours.
        input_frequencies: of waves of x_n that the network sees too (`NoisyInput`). Ours.
        variance_interpolation: in [0, 1], of the variance of `ddpm`'s steps: 1 is beta_n, 0 that of the posterior.

    Raises:
        ValueError: an option is out of range.
    """

    steps_by_n: Tensor

    def __init__(
        self,
        spec: DataSpec,
        seeds: int,
        *,
        steps: int,
        noise_schedule: str,
        clip: float | None,
        time_dim: int,
        hidden: Sequence[int],
        activation: str,
        sampler: str = "ddpm",
        sampling_steps: int | None = None,
        input_scale: float = 1.0,
        input_frequencies: Sequence[float] = (),
        variance_interpolation: float = 1.0,
    ) -> None:
        super().__init__()
        if clip is not None:
            require_number("clip", clip, "positive and finite or null", lambda v: v > 0)
        require_number("variance_interpolation", variance_interpolation, "in [0, 1]", lambda v: 0 <= v <= 1)
        self.seen = NoisyInput(spec.action_dim, input_scale, input_frequencies)
        self.schedule = Schedule.of(noise_schedule, steps, variance_interpolation)
        self.clip, self.action_dim = clip, spec.action_dim
        self.network = TimedMLP(
            (seeds,),
            spec.observation_dim + self.seen.size,
            spec.action_dim,
            steps=steps,
            time_dim=time_dim,
            time_inner=time_dim,
            hidden=hidden,
            activation=activation,
            layer_norm=False,
        )
        self.full_path = diffusion.reverse_path(self.schedule, "ddpm", None)
        self.path = diffusion.reverse_path(self.schedule, sampler, sampling_steps)
        self.noise_dim = spec.action_dim * diffusion.noises_needed(self.path)
        self.register_buffer("steps_by_n", self.schedule.table(), persistent=False)

    def forward(
        self, observations: Float[Tensor, "seeds batch o"], noisy: Float[Tensor, "seeds batch a"], n: int | Tensor
    ) -> Float[Tensor, "seeds batch a"]:
        """The noise predicted in x_n; n is one step in 1..N, or (seeds, batch) of them."""
        return self.network(torch.cat([observations, self.seen(noisy)], dim=-1), n)

    def steps_at(self, n: Int[Tensor, "seeds batch"]) -> ReverseStep:
        """DDPM's step from each row's n to n - 1."""
        return ReverseStep(*self.steps_by_n[n].unsqueeze(-2).unbind(-1))

    def denoising_error(
        self,
        observations: Float[Tensor, "seeds batch o"],
        actions: Float[Tensor, "seeds batch a"],
        n: Int[Tensor, "seeds batch"],
        noise: Float[Tensor, "seeds batch a"],
    ) -> Float[Tensor, "seeds batch"]:
        """`(eps(s, x_n, n) - eps)^2`, the mean over the action's dimensions. Source: DDPM (arXiv:2006.11239), Eq. 14."""
        noisy = diffusion.noised(actions, noise, self.steps_at(n))
        return (self(observations, noisy, n) - noise).square().mean(-1)

    def denoise(
        self, observations: Float[Tensor, "seeds batch o"], noise: Float[Tensor, "seeds batch k"]
    ) -> list[Float[Tensor, "seeds batch a"]]:
        """x_N, ..., x_0 out of standard normal `noise`, `noise_dim` numbers a row: x_N, then those of the steps in order."""
        noisy, *noises = noise.split(self.action_dim, dim=-1)
        way = [noisy]
        for (n, step), drawn in zip_longest(self.path, noises):  # the last step takes none, nor does any of DDIM's
            noisy = self.back(noisy, self(observations, noisy, n), step, drawn)
            way.append(noisy)
        return way

    def back(self, noisy: Tensor, predicted: Tensor, step: ReverseStep, noise: Tensor | None) -> Tensor:
        """One reverse step; `noise` is left out where there is none to take."""
        mean = diffusion.reverse_mean(noisy, predicted, step, self.clip)
        return mean if noise is None else mean + step.std * noise

    def sample(
        self, observations: Float[Tensor, "seeds batch o"], noise: Float[Tensor, "seeds batch k"]
    ) -> Float[Tensor, "seeds batch a"]:
        """An action for each observation out of standard normal `noise`, `noise_dim` numbers for each."""
        return self.denoise(observations, noise)[-1].clamp(-1.0, 1.0)

    def generation(
        self, observations: Float[Tensor, "seeds batch o"], seeds: Int[Tensor, " seeds"]
    ) -> tuple[Float[Tensor, "seeds steps batch a"], Float[Tensor, "steps"]]:
        """How `sample` comes to actions, from noise of the seeds: all points to the action, and abar of each, 1 there."""
        keys = streams.key(seeds, streams.purpose("generation"))
        noise = streams.normal(keys, (observations.shape[1], self.noise_dim), observations.dtype)
        *way, last = self.denoise(observations, noise)
        alpha_bars = [self.schedule.alpha_bars[n] for n, _ in self.path]
        return torch.stack([*way, last.clamp(-1.0, 1.0)], dim=1), noise.new_tensor([*alpha_bars, 1.0])

    def mode(self, observations: Float[Tensor, "seeds batch o"]) -> Float[Tensor, "seeds batch a"]:
        """The action that comes out of no noise at all: x_N = 0, and the means of the steps. Ours; no density's maximum."""
        return self.sample(observations, observations.new_zeros(*observations.shape[:-1], self.noise_dim))


class DiffusionValue(nn.Module):
    """Values `V_n(s, x_n)` of noisy actions, several for each seed.

    Source: BDPO (arXiv:2502.04778).

    Args:
        spec: sizes of observation and action.
        seeds: number of seeds.
        critics: >= 1, the size of the ensemble.
        steps: N, the number of diffusion steps.
        time_dim: size of the time features.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
        layer_norm: normalize what goes into each activation.
        input_scale: as the actor's.
        input_frequencies: as the actor's.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        spec: DataSpec,
        seeds: int,
        *,
        critics: int,
        steps: int,
        time_dim: int,
        hidden: Sequence[int],
        activation: str,
        layer_norm: bool,
        input_scale: float = 1.0,
        input_frequencies: Sequence[float] = (),
    ) -> None:
        super().__init__()
        require_whole(1, critics=critics)
        self.seen = NoisyInput(spec.action_dim, input_scale, input_frequencies)
        self.network = TimedMLP(
            (seeds, critics),
            spec.observation_dim + self.seen.size,
            1,
            steps=steps,
            time_dim=time_dim,
            time_inner=2 * time_dim,
            hidden=hidden,
            activation=activation,
            layer_norm=layer_norm,
        )

    def forward(
        self, observations: Float[Tensor, "seeds batch o"], noisy: Float[Tensor, "seeds batch a"], n: int | Tensor
    ) -> Float[Tensor, "seeds critics batch"]:
        """V_n of every critic; n is one step in 0..N, or (seeds, batch) of them."""
        return self.network(torch.cat([observations, self.seen(noisy)], dim=-1), n).squeeze(-1)
