"""Fitted Q evaluation (FQE): what a fixed policy is worth, from the data alone.

Source: Le, Voloshin, Yue (2019), arXiv:1903.08738, algorithm 3; by stochastic steps towards a target network instead of a
regression to the end in each iteration, as in Paine et al. (2020), arXiv:2007.09055. No configuration of `train.py`:
`brpo estimate` uses it (brpo/estimates.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.functional import streams
from brpo.modules.target import Target
from brpo.types import Batch, DataSpec


class FQE(OfflineAlgorithm):
    """Learns `Q(s, a) = r + discount (1 - terminated) Q'(s', pi(s'))` of policies that stay as they are, one for each seed.

    Args:
        spec: what is known about the data.
        evaluated: the algorithm whose policy is evaluated, with the same seeds; its units may be others.
        deterministic: the policy acts by its mode; else it samples.
        critic: builds the Q ensemble, each member of which bootstraps from itself.
        reward_factor: on the rewards of the batches, so that Q has a size that the optimizer reaches.
        common: options of `OfflineAlgorithm`.
    """

    trained = ("critic",)

    def __init__(
        self,
        spec: DataSpec,
        *,
        evaluated: OfflineAlgorithm,
        deterministic: bool,
        critic: Callable[..., nn.Module],
        reward_factor: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(spec, **common)
        self.evaluated, self.deterministic = evaluated.requires_grad_(False), deterministic
        self.reward_factor = reward_factor
        self.critic = self.build("critic", critic)
        self.critic_target = Target(self.critic)

    def update(self, batch: Batch) -> None:
        """Q and its target."""
        self.descend("critic", self.critic_loss(batch))
        self.critic_target.follow(self.critic, self.polyak)

    def critic_loss(self, batch: Batch) -> Tensor:
        """Squared error of every critic to its own target, (seeds,)."""
        target = self.q_target(batch)
        q = self.critic(batch.observations, batch.actions)  # (seeds, critics, batch)
        self.record("q/mean", q.mean((1, 2)))
        return (q - target).square().mean(-1).sum(-1)

    @torch.no_grad()
    def q_target(self, batch: Batch) -> Tensor:
        """`r + discount (1 - terminated) Q'(s', pi(s'))`, (seeds, critics, batch)."""
        keys = streams.key(self.stream_seeds, streams.purpose("next_action"), self.updates)
        return self.backup(self.critic_target, batch, keys)

    def backup(self, critic: nn.Module, batch: Batch, keys: Tensor) -> Tensor:
        """`r + discount (1 - terminated) Q(s', pi(s'))` by a critic, (seeds, critics, batch)."""
        next_q = critic(batch.next_observations, self.policy_actions(batch.next_observations, keys))
        rewards, going_on = self.reward_factor * batch.rewards.unsqueeze(1), 1.0 - batch.terminated.unsqueeze(1)
        return rewards + self.discount * going_on * next_q

    @torch.no_grad()
    def policy_actions(self, observations: Tensor, keys: Tensor) -> Tensor:
        """Actions of the evaluated policy (seeds, n, action) for observations in this module's units."""
        in_environment = observations * self.observation_std + self.observation_mean
        return self.evaluated.choose(self.evaluated.normalize(in_environment), self.deterministic, keys)

    @torch.no_grad()
    def policy_value(self, observations: Tensor, piece: int = 0) -> Tensor:
        """Mean over the critics of `Q(s, pi(s))` (seeds, n) for observations in this module's units, in its rewards.

        `piece` names the random numbers of a sampling policy, beside the update.
        """
        keys = streams.key(self.seeds, streams.purpose("policy_value"), self.updates, piece)
        return self.critic(observations, self.policy_actions(observations, keys)).mean(1)

    @torch.no_grad()
    def residual(self, batch: Batch, piece: int = 0) -> Tensor:
        """Mean over the critics of `r + discount (1 - terminated) Q(s', pi(s')) - Q(s, a)`, (seeds, n)."""
        keys = streams.key(self.seeds, streams.purpose("residual"), self.updates, piece)
        return (self.backup(self.critic, batch, keys) - self.critic(batch.observations, batch.actions)).mean(1)
