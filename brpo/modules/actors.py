"""Policies over actions in [-1, 1]. Each gives `mode` and `sample`, and those with a density `log_prob`.

`noise_dim` says how many standard normal numbers `sample` takes for each observation.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brpo.functional import densities
from brpo.modules.mlp import MLP
from brpo.types import DataSpec


def _check_log_std(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"min_log_std must be below max_log_std, got {low} and {high}.")


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
        _check_log_std(min_log_std, max_log_std)
        self.network = MLP((seeds,), spec.observation_dim, spec.action_dim, hidden=hidden, activation=activation)
        self.log_std = nn.Parameter(torch.zeros(seeds, spec.action_dim))
        self.min_log_std, self.max_log_std = min_log_std, max_log_std
        self.noise_dim = spec.action_dim

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
        _check_log_std(min_log_std, max_log_std)
        self.network = MLP((seeds,), spec.observation_dim, 2 * spec.action_dim, hidden=hidden, activation=activation)
        self.min_log_std, self.max_log_std = min_log_std, max_log_std
        self.noise_dim = spec.action_dim

    def forward(self, observations: Float[Tensor, "seeds batch o"]) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, both (seeds, batch, a)."""
        mean, log_std = self.network(observations).chunk(2, dim=-1)
        return mean, log_std.clamp(self.min_log_std, self.max_log_std)

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
        self.network = MLP((seeds,), spec.observation_dim, spec.action_dim, hidden=hidden, activation=activation)
        self.noise_dim = spec.action_dim

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
