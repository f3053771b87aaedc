"""Policies over actions in [-1, 1]. Each gives `mode` and `sample`, and the stochastic ones `log_prob`.

`sample` makes an action out of `noise_dim` standard normal numbers, which the caller takes from the counter-based
streams: so every kind of policy draws through one door.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from brpo.functional import densities
from brpo.modules.mlp import MLP
from brpo.options import require_flag, require_number, require_whole
from brpo.types import DataSpec

INITIAL_LOG_STD = -1.0  # of a mixture's components
MAX_DEGREES = 1e8  # above, the log-density's constant loses digits also in float64


def _initial_log_std(low: float, high: float, wanted: float = 0.0) -> float:
    """Where a log standard deviation starts: where it is wanted, else at the bound, beyond which no gradient passes."""
    require_number("min_log_std", low, "a finite number", lambda v: True)
    require_number("max_log_std", high, f"a finite number above min_log_std={low}", lambda v: v > low)
    return min(max(wanted, low), high)


class GaussianActor(nn.Module):
    """Gaussian with mean `tanh(network(s))` and one standard deviation per action dimension for all states.

    Source: the policy of IQL's authors' code. Samples are clipped to [-1, 1].

    Args:
        spec: sizes of observation and action.
        seeds: number of seeds.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
        min_log_std: lower bound on the logarithm of the standard deviation. Regression weights and density ratios
            have no finite optimum without it.
        max_log_std: upper bound.
    """

    def __init__(
        self,
        spec: DataSpec,
        seeds: int,
        *,
        hidden: Sequence[int],
        activation: str,
        min_log_std: float,
        max_log_std: float,
    ) -> None:
        super().__init__()
        start = _initial_log_std(min_log_std, max_log_std)
        self.noise_dim = spec.action_dim
        self.network = MLP((seeds,), spec.observation_dim, spec.action_dim, hidden=hidden, activation=activation)
        self.log_std = nn.Parameter(torch.full((seeds, spec.action_dim), start))
        self.min_log_std, self.max_log_std = min_log_std, max_log_std

    def forward(self, observations: Float[Tensor, "seeds batch o"]) -> tuple[Tensor, Tensor]:
        """Mean (seeds, batch, a) and log standard deviation (seeds, 1, a)."""
        log_std = self.log_std.clamp(self.min_log_std, self.max_log_std).unsqueeze(1)
        return torch.tanh(self.network(observations)), log_std

    def log_prob(
        self, observations: Float[Tensor, "seeds batch o"], actions: Float[Tensor, "seeds batch a"]
    ) -> Float[Tensor, "seeds batch"]:
        """Log-density of actions."""
        return densities.gaussian_log_prob(actions, *self(observations))

    def mode(self, observations: Float[Tensor, "seeds batch o"]) -> Float[Tensor, "seeds batch a"]:
        """The mean action."""
        return torch.tanh(self.network(observations))

    def sample(
        self, observations: Float[Tensor, "seeds batch o"], noise: Float[Tensor, "seeds batch a"]
    ) -> Float[Tensor, "seeds batch a"]:
        """An action for each observation out of standard normal `noise`; differentiable where it is not clipped."""
        mean, log_std = self(observations)
        return (mean + log_std.exp() * noise).clamp(-1.0, 1.0)


class SquashedGaussianActor(nn.Module):
    """`tanh` of a Gaussian whose mean and standard deviation depend on the state.

    Source: Soft Actor-Critic (arXiv:1801.01290), appendix C.

    Args:
        spec: sizes of observation and action.
        seeds: number of seeds.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
        min_log_std: lower bound on the log standard deviation before the tanh.
        max_log_std: upper bound.
    """

    def __init__(
        self,
        spec: DataSpec,
        seeds: int,
        *,
        hidden: Sequence[int],
        activation: str,
        min_log_std: float,
        max_log_std: float,
    ) -> None:
        super().__init__()
        self.initial_log_std = _initial_log_std(min_log_std, max_log_std)
        self.noise_dim = spec.action_dim
        self.network = MLP((seeds,), spec.observation_dim, 2 * spec.action_dim, hidden=hidden, activation=activation)
        self.min_log_std, self.max_log_std = min_log_std, max_log_std

    def forward(self, observations: Float[Tensor, "seeds batch o"]) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, both (seeds, batch, a)."""
        mean, log_std = self.network(observations).chunk(2, dim=-1)
        return mean, (log_std + self.initial_log_std).clamp(self.min_log_std, self.max_log_std)

    def log_prob(
        self, observations: Float[Tensor, "seeds batch o"], actions: Float[Tensor, "seeds batch a"]
    ) -> Float[Tensor, "seeds batch"]:
        """Log-density of actions, which are first moved off the boundary by 1e-5."""
        return densities.squashed_gaussian_log_prob(actions, *self(observations))

    def mode(self, observations: Float[Tensor, "seeds batch o"]) -> Float[Tensor, "seeds batch a"]:
        """`tanh` of the mean: the median action, which is the usual deterministic action of this policy."""
        return torch.tanh(self(observations)[0])

    def sample(
        self, observations: Float[Tensor, "seeds batch o"], noise: Float[Tensor, "seeds batch a"]
    ) -> Float[Tensor, "seeds batch a"]:
        """An action for each observation out of standard normal `noise`, differentiable."""
        mean, log_std = self(observations)
        return torch.tanh(mean + log_std.exp() * noise)


class StudentTActor(nn.Module):
    """Heavy-tailed: independent Student t variables with location `tanh(network(s))`.

    An action far from the location costs likelihood like a power of its distance and not like the square in the
    exponent, so a few odd actions move the fit, and ratios of densities, less than a Gaussian's. Samples are clipped to
    [-1, 1]. Source: the heavy-tailed policies of Zhu et al. (2024), "q-exponential family for policy optimization"
    (arXiv:2408.07245); a t variable for each action dimension, and the parametrization, are ours.

    Args:
        spec: sizes of observation and action.
        seeds: number of seeds.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
        min_log_std: lower bound on the logarithm of the scale. The standard deviation is
            `scale sqrt(v / (v - 2))` for v > 2 degrees of freedom, and infinite else.
        max_log_std: upper bound.
        state_dependent_std: whether the network gives the scale too; else there is one per action dimension.
        degrees_of_freedom: > 1. Near 1 Cauchy's tails, above 30 about a Gaussian.
        learn_degrees_of_freedom: whether these are where learning starts, one number per action dimension, bounded
            below by 1; else they stay.

    Raises:
        ValueError: an option is out of range.
    """

    degrees: Tensor

    def __init__(
        self,
        spec: DataSpec,
        seeds: int,
        *,
        hidden: Sequence[int],
        activation: str,
        min_log_std: float,
        max_log_std: float,
        state_dependent_std: bool,
        degrees_of_freedom: float,
        learn_degrees_of_freedom: bool,
    ) -> None:
        super().__init__()
        self.initial_log_std = _initial_log_std(min_log_std, max_log_std)
        require_flag(state_dependent_std=state_dependent_std, learn_degrees_of_freedom=learn_degrees_of_freedom)
        allowed = f"above 1 and at most {MAX_DEGREES:g}, where it is a Gaussian to float32"
        require_number("degrees_of_freedom", degrees_of_freedom, allowed, lambda v: 1 < v <= MAX_DEGREES)
        size = spec.action_dim
        self.noise_dim = 2 * size
        outputs = 2 * size if state_dependent_std else size
        self.network = MLP((seeds,), spec.observation_dim, outputs, hidden=hidden, activation=activation)
        self.log_scale = None if state_dependent_std else nn.Parameter(torch.zeros(seeds, size))
        self.min_log_std, self.max_log_std = min_log_std, max_log_std
        above = float(degrees_of_freedom) - 1.0
        self.raw_degrees = None
        if learn_degrees_of_freedom:  # degrees = 1 + softplus(raw)
            self.raw_degrees = nn.Parameter(torch.full((seeds, size), above + math.log(-math.expm1(-above))))
        else:
            self.register_buffer("degrees", torch.full((seeds, size), 1.0 + above), persistent=False)

    def forward(self, observations: Float[Tensor, "seeds batch o"]) -> tuple[Tensor, Tensor, Tensor]:
        """Location (seeds, batch, a), log scale (seeds, batch or 1, a) and degrees of freedom (seeds, 1, a)."""
        if self.log_scale is None:
            location, log_scale = self.network(observations).chunk(2, dim=-1)
        else:
            location, log_scale = self.network(observations), self.log_scale.unsqueeze(1)
        degrees = self.degrees if self.raw_degrees is None else 1.0 + F.softplus(self.raw_degrees)
        log_scale = (log_scale + self.initial_log_std).clamp(self.min_log_std, self.max_log_std)
        return torch.tanh(location), log_scale, degrees.unsqueeze(1)

    def log_prob(
        self, observations: Float[Tensor, "seeds batch o"], actions: Float[Tensor, "seeds batch a"]
    ) -> Float[Tensor, "seeds batch"]:
        """Log-density of actions."""
        return densities.student_t_log_prob(actions, *self(observations))

    def mode(self, observations: Float[Tensor, "seeds batch o"]) -> Float[Tensor, "seeds batch a"]:
        """The location."""
        return self(observations)[0]

    def sample(
        self, observations: Float[Tensor, "seeds batch o"], noise: Float[Tensor, "seeds batch n"]
    ) -> Float[Tensor, "seeds batch a"]:
        """An action for each observation out of standard normal `noise`; differentiable where it is not clipped."""
        location, log_scale, degrees = self(observations)
        first, second = noise.chunk(2, dim=-1)
        deviation = densities.student_t_noise(first, second, degrees)
        return (location + log_scale.exp() * deviation).clamp(-1.0, 1.0)


class MixtureActor(nn.Module):
    """Mixture of Gaussians whose weights and means `tanh(network(s))` depend on the state.

    For data of several behaviours, between whose actions a single Gaussian would put its mean. Samples are clipped to
    [-1, 1]. Source: Bishop (1994), "Mixture density networks"; bounded means and standard deviations are ours, and so is the
    start: means spread over the actions with standard deviation 0.37. From means alike and standard deviation 1 the weights
    go to one component before any has found a mode (tried on two modes in one dimension, with 2 and 5 components).

    Args:
        spec: sizes of observation and action.
        seeds: number of seeds.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
        min_log_std: lower bound on the log standard deviation of each component. Likelihood has no maximum without it: a
            component could shrink onto one action.
        max_log_std: upper bound.
        state_dependent_std: whether the network gives the standard deviations too; else there is one per component and
            action dimension.
        components: >= 1, number of Gaussians.

    Raises:
        ValueError: an option is out of range.
    """

    start: Tensor

    def __init__(
        self,
        spec: DataSpec,
        seeds: int,
        *,
        hidden: Sequence[int],
        activation: str,
        min_log_std: float,
        max_log_std: float,
        state_dependent_std: bool,
        components: int,
    ) -> None:
        super().__init__()
        self.initial_log_std = _initial_log_std(min_log_std, max_log_std, INITIAL_LOG_STD)
        require_flag(state_dependent_std=state_dependent_std)
        require_whole(1, components=components)
        shape = (components, spec.action_dim)
        means = components * spec.action_dim
        self.noise_dim = 1 + spec.action_dim
        self.shape, self.sizes = shape, [components, means] + ([means] if state_dependent_std else [])
        self.network = MLP((seeds,), spec.observation_dim, sum(self.sizes), hidden=hidden, activation=activation)
        self.log_std = None if state_dependent_std else nn.Parameter(torch.zeros(seeds, *shape))
        self.min_log_std, self.max_log_std = min_log_std, max_log_std
        self.register_buffer("start", torch.atanh(_spread(*shape)), persistent=False)

    def forward(self, observations: Float[Tensor, "seeds batch o"]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (seeds, batch, k), means (seeds, batch, k, a) and log standard deviations (seeds, batch or 1, k, a)."""
        logits, mean, *rest = self.network(observations).split(self.sizes, dim=-1)
        mean = torch.tanh(mean.unflatten(-1, self.shape) + self.start)
        log_std = rest[0].unflatten(-1, self.shape) if self.log_std is None else self.log_std.unsqueeze(1)
        return logits, mean, (log_std + self.initial_log_std).clamp(self.min_log_std, self.max_log_std)

    def log_prob(
        self, observations: Float[Tensor, "seeds batch o"], actions: Float[Tensor, "seeds batch a"]
    ) -> Float[Tensor, "seeds batch"]:
        """Log-density of actions."""
        return densities.mixture_log_prob(actions, *self(observations))

    def mode(self, observations: Float[Tensor, "seeds batch o"]) -> Float[Tensor, "seeds batch a"]:
        """The mean of the component with the largest weight: the behaviour that the policy follows most often.

        Not the point of highest density: in many dimensions that is the narrowest component, however rare it is.
        """
        logits, mean, _ = self(observations)
        return _pick(mean, logits.argmax(-1))

    def sample(
        self, observations: Float[Tensor, "seeds batch o"], noise: Float[Tensor, "seeds batch n"]
    ) -> Float[Tensor, "seeds batch a"]:
        """An action for each observation out of standard normal `noise`, whose first column chooses the component.

        Differentiable in means and standard deviations, not in the weights.
        """
        logits, mean, log_std = self(observations)
        chosen = densities.component(logits, noise[..., 0])
        mean, log_std = _pick(mean, chosen), _pick(log_std.expand_as(mean), chosen)
        return (mean + log_std.exp() * noise[..., 1:]).clamp(-1.0, 1.0)


def _spread(count: int, dimensions: int) -> Tensor:
    """`count` points in (-0.9, 0.9)^dimensions, the first in the middle, evenly spread for any count.

    Source: Roberts (2018), "The unreasonable effectiveness of quasirandom sequences": multiples, modulo 1, of the powers of
    1/g, g the root above 1 of `g^(dimensions + 1) = g + 1`.
    """
    root = 2.0
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    powers = torch.tensor([root ** -(j + 1) for j in range(dimensions)], dtype=torch.float64)
    points = (0.5 + torch.arange(count, dtype=torch.float64).unsqueeze(-1) * powers) % 1.0
    return (0.9 * (2.0 * points - 1.0)).to(torch.get_default_dtype())


def _pick(values: Tensor, chosen: Tensor) -> Tensor:
    """The chosen components (seeds, batch) of values (seeds, batch, k, a): (seeds, batch, a)."""
    index = chosen[..., None, None].expand(*chosen.shape, 1, values.shape[-1])
    return values.gather(-2, index).squeeze(-2)


class DeterministicActor(nn.Module):
    """The action `tanh(network(s))`, without a density.

    Source: the policy of TD3+BC's authors' code.

    Args:
        spec: sizes of observation and action.
        seeds: number of seeds.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
    """

    def __init__(self, spec: DataSpec, seeds: int, *, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.noise_dim = spec.action_dim  # as other policies draw, though none of it is used
        self.network = MLP((seeds,), spec.observation_dim, spec.action_dim, hidden=hidden, activation=activation)

    def forward(self, observations: Float[Tensor, "seeds batch o"]) -> Float[Tensor, "seeds batch a"]:
        """The action."""
        return torch.tanh(self.network(observations))

    def mode(self, observations: Float[Tensor, "seeds batch o"]) -> Float[Tensor, "seeds batch a"]:
        """The action."""
        return self(observations)

    def sample(
        self, observations: Float[Tensor, "seeds batch o"], noise: Float[Tensor, "seeds batch a"]
    ) -> Float[Tensor, "seeds batch a"]:
        """The action again, whatever the noise: a policy that puts all its mass on one action has no other sample."""
        return self(observations)
