"""Exponential Q-Learning (EQL).

Source: Xu et al. (2023), "Offline RL with No OOD Actions", arXiv:2303.15810. The paper's alpha is called temperature here:
pi maximizes `E_pi[Q] - temperature * KL(pi || pi_D)`, whose value is the in-sample soft maximum.
Differs from the paper: the exponent of the V loss is clipped at 5 and the loss scaled by its largest exponential, and the
policy weight is `exp(10 u / temperature)` clipped at 100, all three as in the authors' code. `sharpness=1` is the paper's.
Differs from the authors' code:
- their V and Q have layer normalization; on AntMaze their V has dropout 0.5 and the learning rate is 2e-4, on Kitchen
  their actor has dropout 0.1; ours have none of it;
- weights start as torch's linear layers do, theirs are orthogonal.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.functional import losses, weights
from brpo.modules.target import Target
from brpo.options import require_at_least_zero, require_cap, require_positive
from brpo.types import Batch, DataSpec


class EQL(OfflineAlgorithm):
    """Learns V as the in-sample soft maximum, the actor by exponentially weighted regression, and Q by TD on V.

    Args:
        spec: what is known about the data.
        actor: builds the policy.
        critic: builds the Q ensemble.
        value: builds V.
        temperature: > 0, in units of return (scaled rewards), the paper's alpha; u = Q - V below. Small: V is
            the largest Q in the data; large: their mean.
        sharpness: >= 0, factor on `u / temperature` in the policy's weight. 0 is behaviour cloning.
        max_exponent: > 0, upper clip on `u / temperature` in the loss of V. A sample above it only pushes V down.
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
        temperature: float,
        sharpness: float,
        max_exponent: float,
        max_weight: float,
        **common: Any,
    ) -> None:
        super().__init__(spec, **common)
        require_positive(temperature=temperature)
        require_cap(max_weight=max_weight, max_exponent=max_exponent)
        require_at_least_zero(sharpness=sharpness)
        self.temperature, self.max_exponent = temperature, max_exponent
        self.sharpness, self.max_weight = sharpness, max_weight
        self.actor = self.build("actor", actor)
        self.critic = self.build("critic", critic)
        self.value = self.build("value", value)
        self.critic_target = Target(self.critic)

    def update(self, batch: Batch) -> None:
        """V, then actor and Q with the new V, target. The target's Q at the data serves V and the actor."""
        q = self.critic_target(batch.observations, batch.actions).amin(1)  # (seeds, batch)
        self.descend("value", self.value_loss(batch, q))
        self.descend("actor", self.actor_loss(batch, q))
        self.descend("critic", self.critic_loss(batch))
        self.critic_target.follow(self.critic, self.polyak)

    def value_loss(self, batch: Batch, q: Tensor) -> Tensor:
        """`E_D[exp(u / temperature) + V / temperature]`, clipped and scaled, (seeds,)."""
        value = self.value(batch.observations)  # (seeds, batch)
        self.record("value/mean", value.mean(-1))
        self.record("value/clipped_share", losses.clipped_share(q - value, self.temperature, self.max_exponent))
        return losses.exponential_value(q - value, value, self.temperature, self.max_exponent).mean(-1)

    def actor_loss(self, batch: Batch, q: Tensor) -> Tensor:
        """Regression with weights `exp(sharpness u / temperature)`, (seeds,)."""
        weight = self.weight(batch, q)  # (seeds, batch)
        self.record("weight/mean", weight.mean(-1))
        self.record("weight/effective_share", weights.effective_sample_share(weight))
        self.record("weight/clipped_share", weights.clipped_share(weight, self.max_weight))
        return losses.weighted_regression(self.actor.log_prob(batch.observations, batch.actions), weight)

    @torch.no_grad()
    def weight(self, batch: Batch, q: Tensor) -> Tensor:
        """The clipped exponential of the advantage, (seeds, batch)."""
        advantage = q - self.value(batch.observations)
        return weights.clipped_exp(advantage * (self.sharpness / self.temperature), self.max_weight)

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
