"""Behaviour-regularized diffusion policy optimization (BDPO).

Source: arXiv:2502.04778; where the paper leaves something open, its authors' code (docs/bdpo.md says what).
Differs from the authors' code:
- weights start as torch's linear layers do, theirs are orthogonal;
- the cosine schedules of the learning rates end at max_updates, theirs after a number of steps of its own;
- the best of the candidates is taken where `eval.mode=mean`, what no noise gives without any; `sampled`: a plain sample;
- where every transition terminates its episode, or the discount is 0, no next action is sampled: it would count nothing.
"""

import math
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.functional import diffusion, ensembles, losses, streams
from brpo.modules.target import Target
from brpo.options import (
    options_of,
    require,
    require_at_least_zero,
    require_number,
    require_one_of,
    require_part,
    require_whole,
)
from brpo.types import Batch, DataSpec

ACTING = ["candidates", "sampler", "steps", "temperature"]
MOST_STEPS_RECORDED = 10


class BDPO(OfflineAlgorithm):
    """Learns Q over environment steps, V over diffusion steps, and a diffusion actor near a model of the behaviour.

    Args:
        spec: what is known about the data.
        actor: builds the diffusion policy, and the behaviour model.
        critic: builds the Q ensemble.
        value: builds the ensemble of diffusion values V_n.
        eta: >= 0, in units of scaled returns: weight of the pathwise KL to the behaviour model.
        samples: >= 1, actions (or next noisy actions) for each target.
        over_samples: `mean` or `max` of Q over the samples, in the Q target; V and the actor take the mean.
        over_critics: `lcb` (mean less rho_lcb times the standard deviation) or `min` of the ensemble.
        rho_lcb: >= 0, standard deviations.
        policy_delay: >= 1, actor and behaviour move in every `policy_delay`-th update ...
        critic_only: >= 0, ... from this one on.
        actor_polyak: in (0, 1], step of the actor's average, at each of its updates.
        behavior_polyak: in (0, 1], step of the behaviour's average, at each of its updates.
        behavior_training: `joint`: the behaviour model moves with the actor; `fixed` (ours): it stays as it was pre-trained.
        acting: `candidates` >= 1 that are drawn, 0 (ours) takes what no noise gives; `temperature` >= 0 of the softmax
            over their Q, 0 takes the best; `sampler` (ddpm, ddim) and `steps` (in 1..N; None: all) of the reverse pass.
        common: options of `OfflineAlgorithm`; `polyak` is the step of both critics' averages.
    """

    trained = ("critic", "value", "actor", "behavior")
    own_policy = True
    pretrained = ("behavior",)
    pretrained_also = ("behavior_target",)
    pretrain_options = ("actor", "behavior_polyak")
    pretrained_by = ("actor",)
    pretrained_as = MappingProxyType({"behavior": "actor", "behavior_target": "actor_target"})  # in diffusion_bc

    def __init__(
        self,
        spec: DataSpec,
        *,
        actor: Callable[..., nn.Module],
        critic: Callable[..., nn.Module],
        value: Callable[..., nn.Module],
        eta: float,
        samples: int,
        over_samples: str,
        over_critics: str,
        rho_lcb: float,
        policy_delay: int,
        critic_only: int,
        actor_polyak: float,
        behavior_polyak: float,
        behavior_training: str,
        acting: dict[str, Any],
        **common: Any,
    ) -> None:
        super().__init__(spec, **common)
        require_at_least_zero(eta=eta, rho_lcb=rho_lcb)
        require_one_of(ensembles.OVER_SAMPLES, over_samples=over_samples)
        require_one_of(ensembles.OVER_CRITICS, over_critics=over_critics)
        require_number("actor_polyak", actor_polyak, "in (0, 1]", lambda v: 0 < v <= 1)
        require_number("behavior_polyak", behavior_polyak, "in (0, 1]", lambda v: 0 < v <= 1)
        self.keep_behavior(behavior_training)
        require("acting", acting, f"a mapping with the keys {', '.join(ACTING)}",
                lambda v: isinstance(v, dict) and sorted(v) == ACTING)  # fmt: skip
        with options_of("acting"):
            require_at_least_zero(temperature=acting["temperature"])
            require_whole(0, candidates=acting["candidates"])
        require_whole(1, samples=samples, policy_delay=policy_delay)
        require_whole(0, critic_only=critic_only)
        self.eta, self.samples, self.over_samples = eta, samples, ensembles.OVER_SAMPLES[over_samples]
        self.aggregate = partial(ensembles.over_critics, how=over_critics, pessimism=rho_lcb)
        self.policy_delay, self.critic_only = policy_delay, critic_only
        self.actor_polyak, self.behavior_polyak = actor_polyak, behavior_polyak
        self.candidates, self.temperature = acting["candidates"], acting["temperature"]
        require_part(actor=actor, value=value)
        policy = partial(actor, sampler=acting["sampler"], sampling_steps=acting["steps"])
        self.actor = self.build("actor", policy)
        self.behavior = self.build("behavior", policy)
        self.steps = self.actor.schedule.steps
        self.critic = self.build("critic", critic)
        self.value = self.build("value", partial(value, steps=self.steps))
        self.behavior_target, self.actor_target = Target(self.behavior), Target(self.actor)
        self.critic_target, self.value_target = Target(self.critic), Target(self.value)
        self.after_pretraining()

    # --- Training -----------------------------------------------------------------------------------------------------

    def pretrain(self, batch: Batch) -> None:
        """One update of the behaviour model, before any other part is trained."""
        self.descend("behavior", self.behavior_loss(batch))
        self.behavior_target.follow(self.behavior, self.behavior_polyak)

    @torch.no_grad()
    def after_pretraining(self) -> None:
        """The actor starts as a copy of the behaviour's average."""
        for mine, theirs in zip(self.actor.parameters(), self.behavior_target.parameters(), strict=True):
            mine.copy_(theirs)
        self.actor_target.follow(self.actor, 1.0)

    def update(self, batch: Batch) -> None:
        """Both critics; then, when due, the actor with the moved critics, and the behaviour model unless it is fixed."""
        self.descend("critic", self.critic_loss(batch))
        self.descend("value", self.value_loss(batch))
        self.critic_target.follow(self.critic, self.polyak)
        self.value_target.follow(self.value, self.polyak)
        if self.due(self.policy_delay, after=self.critic_only):
            self.descend("actor", self.actor_loss(batch))
            self.actor_target.follow(self.actor, self.actor_polyak)
            if "behavior" in self.trained:
                self.descend("behavior", self.behavior_loss(batch))
                self.behavior_target.follow(self.behavior, self.behavior_polyak)

    def critic_loss(self, batch: Batch) -> Tensor:
        """Squared error of every Q to its target, the mean over critics and batch, (seeds,)."""
        target = self.q_target(batch)
        q = self.critic(batch.observations, batch.actions)  # (seeds, critics, batch)
        self.record("q/mean", q.mean((1, 2)))
        self.record("q/spread", q.std(1, correction=0).mean(-1))
        return losses.ensemble_squared_error(q, target) / q.shape[1]

    @torch.no_grad()
    def q_target(self, batch: Batch) -> Tensor:
        """`r + discount (1 - terminated) (agg Q'(s', x_0) - eta sum_n l_n(s'))`, (seeds, batch), by the actor's average."""
        if not self.bootstraps:
            return batch.rewards
        observations = self.repeated(batch.next_observations)
        like = observations.new_empty(*observations.shape[:2], self.steps * self.spec.action_dim)
        actions, penalties = self.sampled_path(observations, self.normal("q_target", like))
        q = self.aggregate(self.over_samples(self.by_sample(self.critic_target(observations, actions))))
        self.record_penalties(penalties)
        penalty = self.by_sample(penalties.sum(0)).mean(-1)  # (seeds, batch)
        return losses.td_target(batch.rewards, batch.terminated, q - self.eta * penalty, self.discount)

    def sampled_path(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The chain of the actor's average: x_0 (seeds, n, action), and l_n of its steps, n = N first: (N, seeds, n)."""
        actor, penalties = self.actor_target.module, []
        noisy, *noises = noise.split(self.spec.action_dim, dim=-1)
        for (n, step), drawn in zip(actor.full_path, [*noises, None], strict=True):
            predicted = actor(observations, noisy, n)
            penalties.append(diffusion.step_kl(predicted, self.behavior_target(observations, noisy, n), step))
            noisy = actor.back(noisy, predicted, step, drawn)
        return noisy, torch.stack(penalties)

    def record_penalties(self, penalties: Tensor) -> None:
        """The pathwise KL and its profile over the steps, of (N, seeds, n)."""
        profile = penalties.mean(-1)  # (N, seeds)
        self.record("kl/pathwise", profile.sum(0))
        for n in self.profiled_steps:
            self.record(f"kl/step_{n}", profile[self.steps - n])

    @property
    def profiled_steps(self) -> range:
        """The n that a profile of the penalties shows."""
        return range(1, self.steps + 1, math.ceil(self.steps / MOST_STEPS_RECORDED))

    def value_loss(self, batch: Batch) -> Tensor:
        """Squared error of every V_n to its target, the mean over critics and batch, (seeds,)."""
        with torch.no_grad():
            noisy, n, target = self.one_step_back(batch, self.actor_target.module, "value")
        value = self.value(batch.observations, noisy, n)  # (seeds, critics, batch)
        self.record("value/mean", value.mean((1, 2)))
        return losses.ensemble_squared_error(value, target) / value.shape[1]

    def actor_loss(self, batch: Batch) -> Tensor:
        """`-E[-eta l_n + V'_{n-1}(s, x_{n-1})]`, (seeds,)."""
        return -self.one_step_back(batch, self.actor, "actor")[2].mean(-1)

    def one_step_back(self, batch: Batch, actor: Any, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """`-eta l_n(s, x_n) + V'_{n-1}(s, x_{n-1})` with V_0 = Q, from noised data actions by one step of an actor.

        Returns:
            x_n (seeds, batch, action), n (seeds, batch), and the value, (seeds, batch).
        """
        n = 1 + self.integers(f"{name}/n", batch.actions.shape[1], self.steps)
        step = actor.steps_at(n)
        noisy = diffusion.noised(batch.actions, self.normal(f"{name}/forward", batch.actions), step)
        predicted = actor(batch.observations, noisy, n)
        penalty = diffusion.step_kl(predicted, self.behavior_target(batch.observations, noisy, n), step)
        mean = diffusion.reverse_mean(noisy, predicted, step, actor.clip)
        previous = self.repeated(mean)
        previous = previous + self.repeated(step.std) * self.normal(f"{name}/reverse", previous)
        following = self.following_value(self.repeated(batch.observations), previous, self.repeated(n - 1))
        return noisy, n, following - self.eta * penalty

    def following_value(self, observations: Tensor, noisy: Tensor, n: Tensor) -> Tensor:
        """The target critics' V_n, Q where n = 0, mean over the samples, (seeds, batch); differentiable in the actions."""
        v = self.aggregate(self.by_sample(self.value_target.module(observations, noisy, n)).mean(-1))
        q = self.aggregate(self.by_sample(self.critic_target.module(observations, noisy)).mean(-1))
        return torch.where(self.by_sample(n)[..., 0] == 0, q, v)

    def behavior_loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the noise that the behaviour model predicts, (seeds,)."""
        n = 1 + self.integers("behavior/n", batch.actions.shape[1], self.steps)
        noise = self.normal("behavior/forward", batch.actions)
        return self.behavior.denoising_error(batch.observations, batch.actions, n, noise).mean(-1)

    def repeated(self, rows: Tensor) -> Tensor:
        """A copy of each row for each sample: (seeds, batch, ...) to (seeds, batch x samples, ...)."""
        return rows.repeat_interleave(self.samples, dim=1)

    def by_sample(self, rows: Tensor) -> Tensor:
        """(..., batch x samples) as (..., batch, samples)."""
        return rows.unflatten(-1, (-1, self.samples))

    # --- Acting -------------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Any:
        """The actor's average."""
        return self.actor_target.module

    def choose(self, observations: Tensor, deterministic: bool, keys: Tensor) -> Tensor:
        """Where `deterministic`, one of the candidates by their Q, else a plain sample; by the actor's average."""
        if not deterministic or self.candidates <= 1:
            return super().choose(observations, deterministic and self.candidates == 0, keys)
        count = self.candidates
        observations = observations.repeat_interleave(count, dim=1)
        actions = super().choose(observations, False, keys)
        q = self.critic_target(observations, actions).mean(1).unflatten(-1, (-1, count))  # (seeds, n, candidates)
        if self.temperature > 0:  # the largest of Q / temperature + Gumbel noise is a draw from the softmax
            named = streams.key(keys, streams.purpose("candidate"))
            drawn = streams.uniform(named, tuple(q.shape[1:]), torch.float64)  # float32 rounds some to 1, which would win
            q = q / self.temperature - drawn.log().neg().log()
        chosen = q.argmax(-1)[..., None, None].expand(-1, -1, 1, actions.shape[-1])
        return actions.unflatten(1, (-1, count)).gather(2, chosen).squeeze(2)

    @torch.no_grad()
    def value_estimate(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The aggregated Q, (seeds, n)."""
        return self.aggregate(self.critic(self.normalize(observations), actions))

    @torch.no_grad()
    def generation_paths(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """As the base, by plain samples, whatever the number of candidates."""
        return self.policy.generation(self.normalize(observations), self.seeds)

    @torch.no_grad()
    def generation_value(self, observations: Tensor, points: Tensor, position: int) -> Tensor:
        """The aggregated V_n of the average; Q at the action."""
        observations, path = self.normalize(observations), self.policy.path
        if position == len(path):
            return self.aggregate(self.critic_target(observations, points))
        return self.aggregate(self.value_target(observations, points, path[position][0]))

    # --- What it says of itself ---------------------------------------------------------------------------------------

    def notices(self) -> list[str]:
        """Where a part is not trained."""
        notices = []
        if self.pretrain_updates == 0 and "behavior" in self.trained:
            notices.append(
                "algo.pretrain_updates=0: without behavior=PATH the behaviour model starts untrained; the paper trains it "
                "2000000 updates"
            )
        if self.critic_only >= self.max_updates:
            notices.append(
                f"algo.critic_only={self.critic_only} is not below max_updates={self.max_updates}: the actor never moves; "
                "the paper takes max_updates=2000000, and 100000 on toy tasks. Give more updates or a smaller "
                "algo.critic_only"
            )
        return notices

    def without_effect(self) -> dict[str, str]:
        """The step size of parts that have their own, and what one sample, `min` and one candidate leave unused."""
        idle = {}
        if set(self.trained) <= set(self.learning_rates):
            idle["optimizer.lr"] = "algo.learning_rates, which has that of every part"
        if self.samples == 1:
            idle["over_samples"] = "algo.samples=1"
        if self.aggregate.keywords["how"] == "min":
            idle["rho_lcb"] = "algo.over_critics=min"
        if self.candidates <= 1:
            idle["acting.temperature"] = f"algo.acting.candidates={self.candidates}"
        return idle

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The behaviour's denoising error, the pathwise KL, and V_n beside what the chain from there achieves."""
        observations, actions = batch.observations, batch.actions
        n, noise = self.noised_heldout(actions)
        like = actions.new_empty(*actions.shape[:2], self.steps * self.spec.action_dim)
        noises = self.normal("heldout/chain", like)
        sampled, penalties = self.sampled_path(observations, noises)
        noisy = diffusion.noised(actions, noise, self.actor_target.module.steps_at(n))
        predicted = self.aggregate(self.value_target(observations, noisy, n))
        achieved = self.achieved(observations, noisy, n, noises)
        # Where updates sample chains they record the profile (`record_penalties`).
        profile = {} if self.bootstraps else {f"kl/step_{m}": penalties[self.steps - m] for m in self.profiled_steps}
        return {
            **profile,
            **self.diagnose_pretrained(batch),
            "actor/kl": penalties.sum(0),
            "q/target": self.aggregate(self.critic_target(observations, actions)),
            "q/policy": self.aggregate(self.critic_target(observations, sampled)),
            "value/predicted": predicted,
            "value/achieved": achieved,
            "value/gap": predicted - achieved,
        }

    def diagnose_pretrained(self, batch: Batch) -> dict[str, Tensor]:
        """The denoising error of the behaviour model's average."""
        error = self.behavior_target.module.denoising_error
        return {"behavior/denoising_error": error(batch.observations, batch.actions, *self.noised_heldout(batch.actions))}

    def noised_heldout(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """A step n for each held-out action, all in turn, (seeds, n), and the noise that leads there."""
        rows = torch.arange(actions.shape[1], device=actions.device)
        return (1 + rows % self.steps).expand(actions.shape[:2]), self.normal("heldout/forward", actions)

    def achieved(self, observations: Tensor, noisy: Tensor, n: Tensor, noise: Tensor) -> Tensor:
        """`Q'(s, x_0) - eta sum l` of the actor's chain from x_n, each row from its own n, (seeds, n)."""
        actor, penalty = self.actor_target.module, torch.zeros_like(noisy[..., 0])
        _, *noises = noise.split(self.spec.action_dim, dim=-1)
        for (m, step), drawn in zip(actor.full_path, [*noises, None], strict=True):
            begun, predicted = n >= m, actor(observations, noisy, m)
            kl = diffusion.step_kl(predicted, self.behavior_target(observations, noisy, m), step)
            penalty = penalty + torch.where(begun, kl, 0.0)
            noisy = torch.where(begun.unsqueeze(-1), actor.back(noisy, predicted, step, drawn), noisy)
        return self.aggregate(self.critic_target(observations, noisy)) - self.eta * penalty
