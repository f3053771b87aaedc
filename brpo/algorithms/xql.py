"""Extreme Q-Learning (XQL), offline.

Source: Garg, Hejna, Geist, Ermon (2023), arXiv:2301.02328. Equation numbers are theirs. The paper's beta is called
temperature here.
Differs from the paper, as in the authors' code: the exponent of the V loss is clipped at 7, the loss is scaled by its
largest exponential (`subtract_max=false` is the paper's), and Q is fitted with Huber's loss, delta 20.
Differs from the authors' code:
- their V has layer normalization, on AntMaze with dropout 0.5, and on Kitchen their actor has dropout 0.1; ours have none
  of it;
- weights start as torch's linear layers do, theirs are orthogonal;
- their options that are off unless asked for (random actions in the V loss, a gradient penalty on Q, several updates of V
  for each of Q, values tuned for each data set) do not exist here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.functional import losses, weights
from brpo.modules.target import Target
from brpo.options import require_at_least_zero, require_cap, require_flag, require_positive
from brpo.types import Batch, DataSpec


class XQL(OfflineAlgorithm):
    """Learns V by Gumbel regression, the actor by exponentially weighted regression, and Q by TD on V.

    Args:
        spec: what is known about the data.
        actor: builds the policy.
        critic: builds the Q ensemble.
        value: builds V.
        temperature: > 0, in units of return (scaled rewards), the paper's beta. V is the in-sample soft maximum of
            Q at this temperature. Small: the largest Q in the data; large: their mean.
        inverse_temperature: >= 0, in units of 1/return: of the policy's weight. 0 is behaviour cloning.
        max_exponent: > 0, upper clip on `(Q - V) / temperature` in the loss of V. A sample above it is ignored.
        subtract_max: whether each batch's V loss is divided by its largest exponential.
        max_weight: > 0, upper clip on the regression weight.
        huber_delta: > 0, in units of return: where the loss of Q turns from half the squared error to linear.
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
        inverse_temperature: float,
        max_exponent: float,
        subtract_max: bool,
        huber_delta: float,
        max_weight: float,
        **common: Any,
    ) -> None:
        super().__init__(spec, **common)
        require_positive(temperature=temperature)
        require_cap(max_weight=max_weight, max_exponent=max_exponent, huber_delta=huber_delta)
        require_at_least_zero(inverse_temperature=inverse_temperature)
        require_flag(subtract_max=subtract_max)
        self.temperature, self.max_exponent, self.subtract_max = temperature, max_exponent, subtract_max
        self.inverse_temperature, self.max_weight, self.huber_delta = inverse_temperature, max_weight, huber_delta
        self.actor = self.build("actor", actor)
        self.critic = self.build("critic", critic)
        self.value = self.build("value", value)
        self.critic_target = Target(self.critic)

    def update(self, batch: Batch) -> None:
        """V, then actor and Q with the new V, target. The target's Q at the data serves V and the actor."""
        q = self.critic_target(batch.observations, batch.actions).amin(1)  # (seeds, batch)
        self.descend("value", self.value_loss(batch, q))  # Eq. 11
        self.descend("actor", self.actor_loss(batch, q))
        self.descend("critic", self.critic_loss(batch))
        self.critic_target.follow(self.critic, self.polyak)

    def value_loss(self, batch: Batch, q: Tensor) -> Tensor:
        """Gumbel regression of V to Q, (seeds,)."""
        value = self.value(batch.observations)  # (seeds, batch)
        self.record("value/mean", value.mean(-1))
        self.record("value/clipped_share", losses.clipped_share(q - value, self.temperature, self.max_exponent))
        return losses.gumbel(q - value, self.temperature, self.max_exponent, self.subtract_max).mean(-1)

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
        """Huber's loss of every critic to `r + discount (1 - terminated) V(s')`, (seeds,)."""
        with torch.no_grad():
            next_values = self.value(batch.next_observations)
            target = losses.td_target(batch.rewards, batch.terminated, next_values, self.discount)
        q = self.critic(batch.observations, batch.actions)  # (seeds, critics, batch)
        self.record("q/mean", q.mean((1, 2)))
        beyond = (q - target.unsqueeze(1)).abs() > self.huber_delta
        self.record("q/clipped_share", beyond.to(q.dtype).mean((1, 2)))
        return losses.ensemble_huber(q, target, self.huber_delta)

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Log-likelihood, regression weights, Q and V on held-out transitions."""
        q = self.critic_target(batch.observations, batch.actions).amin(1)
        return {
            "actor/log_prob": self.actor.log_prob(batch.observations, batch.actions),
            "weight/w": self.weight(batch, q),
            "q/target": q,
            "value/v": self.value(batch.observations),
        }
