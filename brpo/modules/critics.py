"""State and state-action values."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brpo.modules.mlp import MLP
from brpo.options import require_positive, require_whole
from brpo.types import DataSpec


class QEnsemble(nn.Module):
    """Several independent Q functions for each seed.

    Args:
        spec: sizes of observation and action.
        seeds: number of seeds.
        critics: >= 1, the size of the ensemble.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
        layer_norm: normalize what goes into each activation.
        input_scale: > 0, factor on the action as the network sees it.
    """

    def __init__(
        self,
        spec: DataSpec,
        seeds: int,
        *,
        critics: int,
        hidden: Sequence[int],
        activation: str,
        layer_norm: bool = False,
        input_scale: float = 1.0,
    ) -> None:
        super().__init__()
        require_whole(1, critics=critics)
        require_positive(input_scale=input_scale)
        self.input_scale = float(input_scale)
        inputs, shape = spec.observation_dim + spec.action_dim, (seeds, critics)
        self.network = MLP(shape, inputs, 1, hidden=hidden, activation=activation, layer_norm=layer_norm)

    def forward(
        self, observations: Float[Tensor, "seeds batch o"], actions: Float[Tensor, "seeds batch a"]
    ) -> Float[Tensor, "seeds critics batch"]:
        """Q of every critic."""
        return self.network(self._inputs(observations, actions)).squeeze(-1)

    def first(
        self, observations: Float[Tensor, "seeds batch o"], actions: Float[Tensor, "seeds batch a"]
    ) -> Float[Tensor, "seeds batch"]:
        """Q of the first critic, its weights held fixed: what a policy is improved by."""
        return self.network.first(self._inputs(observations, actions)).squeeze(-1)

    def _inputs(self, observations: Tensor, actions: Tensor) -> Tensor:
        scaled = actions if self.input_scale == 1.0 else self.input_scale * actions
        return torch.cat([observations, scaled], dim=-1)


class ValueFunction(nn.Module):
    """One V function for each seed.

    Args:
        spec: size of the observation.
        seeds: number of seeds.
        hidden: sizes of the hidden layers.
        activation: name of the activation.
    """

    def __init__(self, spec: DataSpec, seeds: int, *, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.network = MLP((seeds,), spec.observation_dim, 1, hidden=hidden, activation=activation)

    def forward(self, observations: Float[Tensor, "seeds batch o"]) -> Float[Tensor, "seeds batch"]:
        """V of every observation."""
        return self.network(observations).squeeze(-1)
