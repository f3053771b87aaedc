"""Symmetric f-divergence actor-critic (Sf-AC).

Source: arXiv:2508.04225. The policy loss is written out from the paper's words (docs/sfac.md has the derivation):

    - E_D[w log pi(a|s)]  +  symmetry_coefficient * E_D[rho h(t)],     rho = pi / pi_D,  t = w / rho,

with h the truncated series of the conditional symmetry function, its ratio clipped to [1 - epsilon, 1 + epsilon].
Defaults are chosen by us: the paper's table was not available. docs/sfac.md lists every known difference.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.functional import losses, series, weights
from brpo.functional.divergences import get_divergence
from brpo.modules.target import Target
from brpo.options import (
    options_of,
    require,
    require_at_least_zero,
    require_cap,
    require_number,
    require_one_of,
    require_part,
    require_positive,
)
from brpo.types import Batch, DataSpec

OMEGAS = ("exp", "series")
RATIOS = ("target", "behavior")
EPSILON_SCHEDULES = ("fixed", "spread")
STEEP = 100.0  # of the exact term at the lower end of its clip range: more is announced
VALUES = ("expectile", "sample", "softmax", "normalizer")


class SfAC(OfflineAlgorithm):
    """Advantage regression towards `pi* = w pi_D`, made symmetric by a clipped series in `pi* / pi`.

    Args:
        spec: what is known about the data.
        actor: builds the policy.
        behavior: builds the model of the behaviour policy, fitted by maximum likelihood.
        critic: builds the Q ensemble.
        value: builds V.
        divergence: name as `get_divergence` takes it: the divergence of the policy loss (D_opt).
        target_divergence: the divergence that regularizes the target, whose series `omega=series` solves (D_reg).
            `omega=exp` is the closed form of one of them, `kl`, whatever stands here.
        regularizer: builds the series term; called with the divergence's name.
        temperature: > 0, in units of return (scaled rewards): divides the advantage.
        omega: `exp`: `exp(A / temperature)` (paper, Eq. 8); `series`: the solution of the regularized problem with the
            target divergence's series of order `policy_order`.
        policy_order: 2..5, order of the series for `omega=series`.
        max_weight: > 0, clips `exp(A / temperature)`.
        symmetry_coefficient: >= 0, factor on the series term; 0 is plain advantage regression.
        epsilon_schedule: `fixed`, or `spread`: epsilon / (1 + spread / temperature) with the standard deviation of the
            target critics at the transition, so that the series acts less where the critics disagree. Ours.
        ratio: `target`: t = pi*/pi under the outer ratio rho; `behavior`: t = pi/pi_D without one.
        max_ratio: > 0, beyond which rho is continued by its tangent in log rho (bounds the gradient's variance).
        value_loss: `expectile` (as IQL), `sample` (V at the policy's actions; the Q target then uses Q at them),
            `softmax` (in-sample soft maximum at the same temperature, by Gumbel regression), or `normalizer` (lambda(s),
            with which the target's ratio has mean 1 in each state: SQL's V for `series` of order 2, the soft maximum for
            `exp`).
        expectile: in (0, 1), for `value_loss=expectile`.
        max_exponent: > 0, clip of the exponent for the soft maximum.
        behavior_training: `joint`: each update fits the behaviour model too, after its pre-training if there is one;
            `fixed`: it stays as its pre-training leaves it. Ours.
        common: options of `OfflineAlgorithm`.
    """

    trained = ("behavior", "value", "actor", "critic")
    pretrained = ("behavior",)

    def __init__(
        self,
        spec: DataSpec,
        *,
        actor: Callable[..., nn.Module],
        behavior: Callable[..., nn.Module],
        critic: Callable[..., nn.Module],
        value: Callable[..., nn.Module],
        divergence: str,
        target_divergence: str,
        regularizer: Callable[..., nn.Module],
        temperature: float,
        omega: str,
        policy_order: int,
        max_weight: float,
        symmetry_coefficient: float,
        epsilon_schedule: str,
        ratio: str,
        max_ratio: float,
        value_loss: str,
        expectile: float,
        max_exponent: float,
        behavior_training: str,
        **common: Any,
    ) -> None:
        super().__init__(spec, **common)
        require_positive(temperature=temperature)
        require_cap(max_weight=max_weight, max_ratio=max_ratio, max_exponent=max_exponent)
        require_at_least_zero(symmetry_coefficient=symmetry_coefficient)
        require("policy_order", policy_order, "2, 3, 4 or 5", lambda v: type(v) is int and 2 <= v <= 5)
        require_number("expectile", expectile, "in (0, 1)", lambda v: 0 < v < 1)
        require_one_of(OMEGAS, omega=omega)
        require_one_of(EPSILON_SCHEDULES, epsilon_schedule=epsilon_schedule)
        require_one_of(RATIOS, ratio=ratio)
        require_one_of(VALUES, value_loss=value_loss)
        self.keep_behavior(behavior_training)
        self.divergence, self.target_divergence = get_divergence(divergence), get_divergence(target_divergence)
        require_part(regularizer=regularizer)
        with options_of("regularizer"):
            self.regularizer: Any = regularizer(divergence)
        self.branch = series.branch(self.target_divergence, policy_order) if omega == "series" else None
        self.policy_order = policy_order
        self.temperature, self.omega, self.max_weight = temperature, omega, max_weight
        self.symmetry_coefficient, self.ratio, self.max_ratio = symmetry_coefficient, ratio, max_ratio
        self.epsilon_schedule = epsilon_schedule
        self.value_kind, self.expectile, self.max_exponent = value_loss, expectile, max_exponent
        self.actor = self.build("actor", actor)
        self.behavior = self.build("behavior", behavior)
        self.critic = self.build("critic", critic)
        self.value = self.build("value", value)
        self.critic_target = Target(self.critic)

    def update(self, batch: Batch) -> None:
        """Behaviour model unless it is fixed, V, actor, Q, target."""
        critics = self.critic_target(batch.observations, batch.actions)  # (seeds, critics, batch)
        q = critics.amin(1)  # (seeds, batch)
        if "behavior" in self.trained:
            self.descend("behavior", self.behavior_loss(batch))
        self.descend("value", self.value_loss(batch, q))
        self.descend("actor", self.actor_loss(batch, q, self.shrink(critics)))
        self.descend("critic", self.critic_loss(batch))
        self.critic_target.follow(self.critic, self.polyak)

    def pretrain(self, batch: Batch) -> None:
        """The behaviour model alone."""
        self.descend("behavior", self.behavior_loss(batch))

    def behavior_loss(self, batch: Batch) -> Tensor:
        """Maximum likelihood of the data, (seeds,)."""
        return -self.log_prob(self.behavior, batch).mean(-1)

    def log_prob(self, policy: Any, batch: Batch) -> Tensor:
        """Log-density of the data's actions, (seeds, batch), in full precision also under autocast.

        A mean that is rounded to bfloat16 moves the ratio of two densities by up to several percent (docs/engines.md).
        """
        with torch.autocast(batch.actions.device.type, enabled=False):
            return policy.log_prob(batch.observations, batch.actions)

    def value_loss(self, batch: Batch, q: Tensor) -> Tensor:
        """The chosen regression of V, (seeds,)."""
        value = self.value(batch.observations)  # (seeds, batch)
        self.record("value/mean", value.mean(-1))
        if self.value_kind == "expectile":
            return losses.expectile(q - value, self.expectile).mean(-1)
        if self.value_kind == "sample":
            return (self.sampled_q(batch.observations, "value") - value).square().mean(-1)
        if self.value_kind == "normalizer" and self.branch is not None:
            conjugate = series.conjugate(self.branch, (q - value) / self.temperature)
            return (conjugate + value / self.temperature).mean(-1)
        self.record("value/clipped_share", losses.clipped_share(q - value, self.temperature, self.max_exponent))
        return losses.gumbel(q - value, self.temperature, self.max_exponent).mean(-1)

    @torch.no_grad()
    def sampled_q(self, observations: Tensor, name: str) -> Tensor:
        """`Q_min(s, a)` of the target critics at one action of the policy, (seeds, batch)."""
        return self.critic_target(observations, self.sample(observations, name)).amin(1)

    def shrink(self, critics: Tensor) -> Tensor | None:
        """Factor on epsilon in (0, 1], (seeds, batch), from the spread of the critics (seeds, critics, batch)."""
        if self.epsilon_schedule == "fixed":
            return None
        return 1.0 / (1.0 + critics.std(1, correction=0) / self.temperature)

    def actor_loss(self, batch: Batch, q: Tensor, shrink: Tensor | None = None) -> Tensor:
        """Advantage regression plus the symmetry term, (seeds,)."""
        weight = self.weight(batch, q)  # (seeds, batch)
        log_prob = self.log_prob(self.actor, batch)
        with torch.no_grad():
            behavior_log_prob = self.log_prob(self.behavior, batch)
        log_rho = log_prob - behavior_log_prob
        regression = losses.weighted_regression(log_prob, weight)
        symmetry = self.symmetry_loss(log_rho, weight, shrink)
        self.record("actor/regression", regression)
        self.record("actor/symmetry", symmetry)
        if self.symmetry_coefficient == 0:
            return regression
        return regression + self.symmetry_coefficient * symmetry

    def symmetry_loss(self, log_rho: Tensor, weight: Tensor, shrink: Tensor | None = None) -> Tensor:
        """`E_D[rho h(w/rho)]`, or `E_D[h(rho)]` for `ratio=behavior`, (seeds,)."""
        log_t = self.log_t(log_rho, weight)
        terms = self.regularizer(log_t, shrink)
        if self.ratio == "target":
            terms = weights.capped_ratio(log_rho, self.max_ratio) * terms
        if shrink is not None:
            self.record("series/epsilon", self.regularizer.epsilon * shrink.mean(-1))
        self.record("ratio/clipped_share", self.regularizer.clipped_share(log_t, shrink))
        self.record("ratio/above_max_share", (log_rho > math.log(self.max_ratio)).to(log_rho.dtype).mean(-1))
        return terms.mean(-1)

    def log_t(self, log_rho: Tensor, weight: Tensor) -> Tensor:
        """Logarithm of the ratio that the series is clipped and taken in, (seeds, batch)."""
        return log_rho if self.ratio == "behavior" else weight.log() - log_rho

    @torch.no_grad()
    def weight(self, batch: Batch, q: Tensor) -> Tensor:
        """`w = omega / mean omega`, (seeds, batch): both terms of the loss use the same, else t is centred off 1."""
        if self.value_kind == "sample":  # the authors weigh by the online critics here
            q = self.critic(batch.observations, batch.actions).amin(1)
        exponent = (q - self.value(batch.observations)) / self.temperature
        if self.branch is None:
            clipped = exponent > math.log(self.max_weight)
            omega = weights.clipped_exp(exponent, self.max_weight)
            # Not from omega: where the whole batch is far below V, it is 0.
            weight = weights.softmax_over_batch(exponent.clamp(max=math.log(self.max_weight)))
        else:
            omega = series.target_ratio(self.branch, exponent)
            clipped = exponent > self.branch.at_high
            self.record("weight/lowest_share", (exponent < self.branch.at_low).to(omega.dtype).mean(-1))
            weight = weights.normalize(omega)
        self.record("weight/mean_before_normalization", omega.mean(-1))
        self.record("weight/effective_share", weights.effective_sample_share(weight))
        self.record("weight/clipped_share", clipped.to(weight.dtype).mean(-1))
        return weight

    def critic_loss(self, batch: Batch) -> Tensor:
        """Squared error of every critic to its target, (seeds,)."""
        target = self.q_target(batch)
        q = self.critic(batch.observations, batch.actions)  # (seeds, critics, batch)
        self.record("q/mean", q.mean((1, 2)))
        return losses.ensemble_squared_error(q, target)

    @torch.no_grad()
    def q_target(self, batch: Batch) -> Tensor:
        """`r + discount (1 - terminated)` times V(s'), or Q at the policy's action there, (seeds, batch)."""
        if not self.bootstraps:
            return batch.rewards
        if self.value_kind == "sample":
            next_values = self.sampled_q(batch.next_observations, "critic")
        else:
            next_values = self.value(batch.next_observations)
        return losses.td_target(batch.rewards, batch.terminated, next_values, self.discount)

    def constants(self) -> dict[str, float]:
        """Largest error of the truncated series on the clip range, and whether it converges there."""
        return {"series/remainder": self.regularizer.remainder, "series/converges": float(self.regularizer.converges)}

    def notices(self) -> list[str]:
        """Where the series is nothing, or no approximation, and where the weights end."""
        notices = []
        if not self.regularizer.exact and not any(self.regularizer.coefficients[2:]):
            notices.append(
                f"the series of {self.divergence.name} up to loss_order={len(self.regularizer.coefficients) - 1} is zero: "
                f"symmetry_coefficient has no effect"
            )
        elif self.regularizer.exact and self.regularizer.at_low > STEEP:
            notices.append(
                f"epsilon={self.regularizer.epsilon:g} lets ratios come near 0, where the exact term of "
                f"{self.divergence.name} is {self.regularizer.at_low:.2g}: each weight of 0 pushes as much"
            )
        elif not (self.regularizer.exact or self.regularizer.converges):
            notices.append(
                f"epsilon={self.regularizer.epsilon:g} is above the radius {self.divergence.series_radius:g} of the series: "
                f"it acts as a penalty on large ratios, not as an approximation of {self.divergence.name}"
            )
        if self.branch is not None:
            ends = [
                (math.isfinite(self.branch.high), "above", self.branch.high),
                (self.branch.low > -1.0 + 1e-9, "below", self.branch.low),
            ]
            notices += [
                f"omega=series with policy_order={self.policy_order} gives no ratio {side} {1.0 + end:.4g}: the series of "
                f"{self.target_divergence.name} stops being convex there"
                for ended, side, end in ends
                if ended
            ]
        return notices

    def without_effect(self) -> dict[str, str]:
        """Options of the target, the ratio, the series and V that another choice leaves unused."""
        omega, value_loss = f"algo.omega={self.omega}", f"algo.value_loss={self.value_kind}"
        idle: dict[str, str] = {}
        for option in ("max_weight",) if self.omega == "series" else ("policy_order", "target_divergence"):
            idle[option] = omega
        if self.value_kind != "expectile":
            idle["expectile"] = value_loss
        if self.value_kind in ("expectile", "sample"):
            idle["max_exponent"] = value_loss
        elif self.value_kind == "normalizer" and self.omega == "series":
            idle["max_exponent"] = omega
        if self.symmetry_coefficient == 0:
            term = ("divergence", "regularizer", "epsilon_schedule", "ratio", "max_ratio")
            return idle | dict.fromkeys(term, "algo.symmetry_coefficient=0")
        if self.regularizer.exact:
            idle["regularizer.loss_order"] = "algo.regularizer.exact=true"
        if self.ratio == "behavior":
            idle["max_ratio"] = "algo.ratio=behavior"
        return idle

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Likelihoods of both models, the ratios, the weights, Q and V on held-out transitions."""
        critics = self.critic_target(batch.observations, batch.actions)
        q, shrink = critics.amin(1), self.shrink(critics)
        behavior = self.diagnose_pretrained(batch)
        log_prob = self.log_prob(self.actor, batch)
        log_rho, weight = log_prob - behavior["behavior/log_prob"], self.weight(batch, q)
        found = {} if shrink is None else {"series/epsilon": self.regularizer.epsilon * shrink}
        return {
            **found,
            "actor/log_prob": log_prob,
            **behavior,
            "ratio/rho": log_rho.exp(),
            "ratio/t": self.log_t(log_rho, weight).exp(),
            "weight/w": weight,
            "q/target": q,
            "value/v": self.value(batch.observations),
        }

    def diagnose_pretrained(self, batch: Batch) -> dict[str, Tensor]:
        """Likelihood of the behaviour model on held-out transitions."""
        return {"behavior/log_prob": self.log_prob(self.behavior, batch)}
