"""Advantage-Weighted Actor-Critic (AWAC), offline.

Source: Nair, Gupta, Dalal, Levine (2020), arXiv:2006.09359. Equation numbers are theirs. The paper's lambda is called
temperature here. The clip at 100 and the MuJoCo temperature are CORL's (arXiv:2210.07105).
Differs from CORL: 2 hidden layers instead of 3, `tanh` on the policy's mean, no normalization of observations (set
`data.normalize_observations=true`), and rewards scaled by `data.reward_scale=return_range`, which CORL takes as they are:
a temperature of T there is T * reward scale here.
Differs from the authors' code: they use `omega=softmax`, and go on online afterwards.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.functional import losses, weights
from brpo.modules.target import Target
from brpo.options import require_cap, require_one_of, require_positive
from brpo.types import Batch, DataSpec

OMEGAS = ("exp", "softmax")


class AWAC(OfflineAlgorithm):
    """Learns Q by TD at the policy's actions, and the actor by regression weighted with the policy's own advantage.

    Args:
        spec: what is known about the data.
        actor: builds the policy.
        critic: builds the Q ensemble, of which the smallest counts.
        temperature: > 0, in units of return (scaled rewards), the paper's lambda: divides the advantage. Large: behaviour
            cloning; small: the best actions of the data only.
        omega: `exp`: `exp(A / temperature)`, clipped at `max_weight`; `softmax`: over the batch, times its size.
        max_weight: > 0, upper clip on the regression weight of `omega=exp`.
        common: options of `OfflineAlgorithm`.
    """

    trained = ("critic", "actor")

    def __init__(
        self,
        spec: DataSpec,
        *,
        actor: Callable[..., nn.Module],
        critic: Callable[..., nn.Module],
        temperature: float,
        omega: str,
        max_weight: float,
        **common: Any,
    ) -> None:
        super().__init__(spec, **common)
        require_positive(temperature=temperature)
        require_cap(max_weight=max_weight)
        require_one_of(OMEGAS, omega=omega)
        self.temperature, self.omega, self.max_weight = temperature, omega, max_weight
        self.actor = self.build("actor", actor)
        self.critic = self.build("critic", critic)
        self.critic_target = Target(self.critic)

    def update(self, batch: Batch) -> None:
        """Q, then the actor with the new Q, target: the paper's algorithm 1."""
        self.descend("critic", self.critic_loss(batch))  # Eq. 10
        self.descend("actor", self.actor_loss(batch))  # Eq. 13
        self.critic_target.follow(self.critic, self.polyak)

    def critic_loss(self, batch: Batch) -> Tensor:
        """Squared error of every critic to `r + discount (1 - terminated) min_i Q'_i(s', a')`, a' ~ pi, (seeds,)."""
        target = self.q_target(batch)
        q = self.critic(batch.observations, batch.actions)  # (seeds, critics, batch)
        self.record("q/mean", q.mean((1, 2)))
        return losses.ensemble_squared_error(q, target)

    @torch.no_grad()
    def q_target(self, batch: Batch) -> Tensor:
        """The right side of `critic_loss`, (seeds, batch)."""
        if not self.bootstraps:
            return batch.rewards
        next_actions = self.sample(batch.next_observations, "next_actions")
        next_values = self.critic_target(batch.next_observations, next_actions).amin(1)
        return losses.td_target(batch.rewards, batch.terminated, next_values, self.discount)

    def actor_loss(self, batch: Batch) -> Tensor:
        """Regression weighted with the advantage, (seeds,)."""
        weight = self.weight(*self.action_values(batch))  # (seeds, batch)
        self.record("weight/mean", weight.mean(-1))
        self.record("weight/effective_share", weights.effective_sample_share(weight))
        if self.omega == "exp":
            self.record("weight/clipped_share", weights.clipped_share(weight, self.max_weight))
        return losses.weighted_regression(self.actor.log_prob(batch.observations, batch.actions), weight)

    @torch.no_grad()
    def action_values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The smallest Q of the data's action, and of one of the policy's, which estimates V: both (seeds, batch)."""
        actions = self.sample(batch.observations, "actions")
        q = self.critic(batch.observations, batch.actions).amin(1)
        value = self.critic(batch.observations, actions).amin(1)
        self.record("value/mean", value.mean(-1))
        return q, value

    def weight(self, q: Tensor, value: Tensor) -> Tensor:
        """The exponential or softmax of the advantage `Q - V`, (seeds, batch)."""
        exponent = (q - value) / self.temperature
        if self.omega == "softmax":
            return weights.softmax_over_batch(exponent)
        return weights.clipped_exp(exponent, self.max_weight)

    def without_effect(self) -> dict[str, str]:
        """A softmax over the batch has no clip."""
        return {"max_weight": "algo.omega=softmax"} if self.omega == "softmax" else {}

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Log-likelihood, regression weights, Q at the data's actions and at the policy's on held-out transitions."""
        q, value = self.action_values(batch)
        return {
            "actor/log_prob": self.actor.log_prob(batch.observations, batch.actions),
            "weight/w": self.weight(q, value),
            "q/target": self.critic_target(batch.observations, batch.actions).amin(1),
            "value/v": value,
        }
