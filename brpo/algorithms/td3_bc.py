"""TD3+BC: TD3 with a behaviour-cloning term in the actor's loss.

Source: Fujimoto, Gu (2021), arXiv:2106.06860, section 5; TD3 itself: Fujimoto, van Hoof, Meger (2018), arXiv:1802.09477.
Where the paper and its authors' code differ we follow the code: lambda divides by the mean of |Q_1(s, pi(s))| (the paper
writes |Q(s_i, a_i)|), and the squared distance of actions is the mean over their dimensions (the paper does not say).
Differs from the authors' code:
- the delayed step is made in updates 0, 2, 4, ..., theirs in 1, 3, 5, ...;
- actions are scaled to [-1, 1], theirs are in environment units (the same thing in their locomotion tasks);
- the moments that normalize observations are those of all episodes, held-out ones included;
- 1e-3 is added to standard deviations of observations of 0.01 and more, theirs to all; constant columns are only shifted;
- on AntMaze, which the paper does not have, rewards are shifted by -1 as for the other algorithms.
Initial weights are as theirs.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.functional import losses
from brpo.modules.target import Target
from brpo.options import is_number, require, require_at_least_zero, require_whole
from brpo.types import Batch, DataSpec


class TD3BC(OfflineAlgorithm):
    """Learns Q at the smoothed target policy's actions, and a deterministic actor by `max lambda Q - (pi(s) - a)^2`.

    Args:
        spec: what is known about the data.
        actor: builds the deterministic policy.
        critic: builds the Q ensemble. The smallest of its targets is bootstrapped; the first critic trains the actor.
        q_coefficient: >= 0, the paper's alpha: the weight of Q, scaled to mean magnitude 1, against the squared distance
            to the data's action. 0 is behaviour cloning.
        target_noise: >= 0, standard deviation of the noise on the target policy's actions, which lie in [-1, 1].
        target_noise_clip: >= 0, bound on the magnitude of that noise.
        policy_delay: >= 1, the actor and all targets move in every `policy_delay`-th update.
        common: options of `OfflineAlgorithm`.
    """

    trained = ("critic", "actor")
    own_policy = True

    def __init__(
        self,
        spec: DataSpec,
        *,
        actor: Callable[..., nn.Module],
        critic: Callable[..., nn.Module],
        q_coefficient: float,
        target_noise: float,
        target_noise_clip: float,
        policy_delay: int,
        **common: Any,
    ) -> None:
        super().__init__(spec, **common)
        require_at_least_zero(q_coefficient=q_coefficient, target_noise=target_noise)
        require("target_noise_clip", target_noise_clip, "at least 0", lambda v: v == math.inf or (is_number(v) and v >= 0))
        require_whole(1, policy_delay=policy_delay)
        self.q_coefficient, self.policy_delay = q_coefficient, policy_delay
        self.target_noise, self.target_noise_clip = target_noise, target_noise_clip
        self.actor = self.build("actor", actor)
        self.critic = self.build("critic", critic)
        self.actor_target = Target(self.actor)
        self.critic_target = Target(self.critic)

    def update(self, batch: Batch) -> None:
        """The critics; then, when it is due, the actor with the new critic, and all targets."""
        self.descend("critic", self.critic_loss(batch))
        if self.due(self.policy_delay):
            self.descend("actor", self.actor_loss(batch))
            self.critic_target.follow(self.critic, self.polyak)
            self.actor_target.follow(self.actor, self.polyak)

    def critic_loss(self, batch: Batch) -> Tensor:
        """Squared error of every critic to `r + discount (1 - terminated) min_i Q'_i(s', a')`, (seeds,)."""
        target = self.q_target(batch)
        q = self.critic(batch.observations, batch.actions)  # (seeds, critics, batch)
        self.record("q/mean", q.mean((1, 2)))
        return losses.ensemble_squared_error(q, target)

    @torch.no_grad()
    def q_target(self, batch: Batch) -> Tensor:
        """The right side of `critic_loss`, (seeds, batch)."""
        if not self.bootstraps:
            return batch.rewards
        next_q = self.critic_target(batch.next_observations, self.target_actions(batch.next_observations))
        return losses.td_target(batch.rewards, batch.terminated, next_q.amin(1), self.discount)

    @torch.no_grad()
    def target_actions(self, observations: Tensor) -> Tensor:
        """The target policy's actions under clipped noise, inside the bounds: (seeds, batch, action)."""
        actions = self.actor_target(observations)
        noise = self.target_noise * self.normal("target_noise", actions)
        return (actions + noise.clamp(-self.target_noise_clip, self.target_noise_clip)).clamp(-1.0, 1.0)

    def actor_loss(self, batch: Batch) -> Tensor:
        """`-lambda E_D[Q_1(s, pi(s))] + E_D[(pi(s) - a)^2]`, (seeds,)."""
        actions = self.actor(batch.observations)
        q = self.critic.first(batch.observations, actions)  # (seeds, batch)
        scale = losses.value_scale(q, self.q_coefficient)  # the paper's lambda
        q_term = -scale * q.mean(-1)
        bc_term = losses.action_error(actions, batch.actions).mean(-1)
        self.record("actor/lambda", scale)
        self.record("actor/q_term", q_term)
        self.record("actor/bc_term", bc_term)
        return q_term + bc_term

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Distance to held-out actions, and Q at them and at the policy's own."""
        actions = self.actor(batch.observations)
        return {
            "actor/error": losses.action_error(actions, batch.actions),
            "q/target": self.critic_target(batch.observations, batch.actions).amin(1),
            "q/policy": self.critic_target(batch.observations, actions).amin(1),
        }
