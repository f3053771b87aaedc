"""Implicit Q-Learning (IQL).

Source: Kostrikov, Nair, Levine (2022), arXiv:2110.06169. Equation numbers are theirs.
Differs from the authors' code: weights start as torch's linear layers do, theirs are orthogonal; they scale the rewards of
HalfCheetah, Hopper and Walker2d alone; on Kitchen their actor has dropout 0.1.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.functional import losses, weights
from brpo.modules.target import Target
from brpo.options import require_at_least_zero, require_cap, require_number
from brpo.types import Batch, DataSpec


class IQL(OfflineAlgorithm):
    """Learns V by expectile regression, the actor by weighted regression, and Q by TD on V.

    Args:
        spec: what is known about the data.
        actor: builds the policy.
        critic: builds the Q ensemble.
        value: builds V.
        expectile: in (0, 1). 0.5 gives the mean of Q over the data's actions; near 1, their maximum.
        inverse_temperature: >= 0, in units of 1/return (scaled rewards). 0 is behaviour cloning.
        max_weight: > 0, upper clip on the regression weight.
        common: options of `OfflineAlgorithm`.
    """

    trained = ("value", "actor", "critic")

    def __init__(
        self,
        spec: DataSpec,
        *,
        actor: Callable[..., nn.Module],
        critic: Callable[..., nn.Module],
        value: Callable[..., nn.Module],
        expectile: float,
        inverse_temperature: float,
        max_weight: float,
        **common: Any,
    ) -> None:
        super().__init__(spec, **common)
        require_number("expectile", expectile, "in (0, 1)", lambda v: 0 < v < 1)
        require_at_least_zero(inverse_temperature=inverse_temperature)
        require_cap(max_weight=max_weight)
        self.expectile, self.inverse_temperature, self.max_weight = expectile, inverse_temperature, max_weight
        self.actor = self.build("actor", actor)
        self.critic = self.build("critic", critic)
        self.value = self.build("value", value)
        self.critic_target = Target(self.critic)

    def update(self, batch: Batch) -> None:
        """V, actor, Q, target: the authors' order. The target's Q at the data serves V and the actor."""
        q = self.critic_target(batch.observations, batch.actions).amin(1)  # (seeds, batch)
        self.descend("value", self.value_loss(batch, q))  # Eq. 5
        self.descend("actor", self.actor_loss(batch, q))  # Eq. 7
        self.descend("critic", self.critic_loss(batch))  # Eq. 6
        self.critic_target.follow(self.critic, self.polyak)

    def value_loss(self, batch: Batch, q: Tensor) -> Tensor:
        """Expectile regression of V to Q, (seeds,)."""
        value = self.value(batch.observations)  # (seeds, batch)
        self.record("value/mean", value.mean(-1))
        return losses.expectile(q - value, self.expectile).mean(-1)

    def actor_loss(self, batch: Batch, q: Tensor) -> Tensor:
        """Regression with weights `exp(inverse_temperature (Q - V))`, (seeds,)."""
        weight = self.weight(batch, q)  # (seeds, batch)
        self.record("weight/mean", weight.mean(-1))
        self.record("weight/effective_share", weights.effective_sample_share(weight))
        self.record("weight/clipped_share", weights.clipped_share(weight, self.max_weight))
        return losses.weighted_regression(self.actor.log_prob(batch.observations, batch.actions), weight)

    @torch.no_grad()
    def weight(self, batch: Batch, q: Tensor) -> Tensor:
        """The clipped exponential of the advantage, (seeds, batch)."""
        advantage = q - self.value(batch.observations)
        return weights.clipped_exp(advantage * self.inverse_temperature, self.max_weight)

    def critic_loss(self, batch: Batch) -> Tensor:
        """Squared error of every critic to `r + discount (1 - terminated) V(s')`, (seeds,)."""
        with torch.no_grad():
            next_values = self.value(batch.next_observations)
            target = losses.td_target(batch.rewards, batch.terminated, next_values, self.discount)
        q = self.critic(batch.observations, batch.actions)  # (seeds, critics, batch)
        self.record("q/mean", q.mean((1, 2)))
        return losses.ensemble_squared_error(q, target)

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Log-likelihood, regression weights, Q and V on held-out transitions."""
        q = self.critic_target(batch.observations, batch.actions).amin(1)
        return {
            "actor/log_prob": self.actor.log_prob(batch.observations, batch.actions),
            "weight/w": self.weight(batch, q),
            "q/target": q,
            "value/v": self.value(batch.observations),
        }
