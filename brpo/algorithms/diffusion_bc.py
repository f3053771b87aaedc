"""Diffusion behaviour cloning: a diffusion model of the data's actions.

Source: DDPM's loss (Ho, Jain, Abbeel 2020, arXiv:2006.11239, Eq. 14) with the network, the schedule and the average of the
weights that BDPO's authors (arXiv:2502.04778) pre-train as their behaviour model. Differs from theirs: weights start as
torch's linear layers do.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.modules.target import Target
from brpo.options import require, require_number, require_part
from brpo.types import Batch, DataSpec


class DiffusionBC(OfflineAlgorithm):
    """Minimizes `E_D[(eps(s, x_n, n) - eps)^2]` over noised actions; acts by the average of the weights.

    The mean action is what comes out of no noise at all; `eval.mode=sampled` denoises noise.

    Args:
        spec: what is known about the data.
        actor: builds the diffusion policy.
        acting: `sampler` (ddpm, ddim) and `steps` (in 1..N; None: all) of the reverse pass that acts.
        common: options of `OfflineAlgorithm`; `polyak` is the step of the average.
    """

    trained = ("actor",)
    own_policy = True

    def __init__(self, spec: DataSpec, *, actor: Callable[..., nn.Module], acting: dict[str, Any], **common: Any) -> None:
        super().__init__(spec, **common)
        require_number("polyak", common.get("polyak"), "in (0, 1]", lambda v: 0 < v <= 1)
        require("acting", acting, "a mapping with the keys sampler and steps",
                lambda v: isinstance(v, dict) and sorted(v) == ["sampler", "steps"])  # fmt: skip
        require_part(actor=actor)
        own = partial(actor, sampler=acting["sampler"], sampling_steps=acting["steps"])
        self.actor = self.build("actor", own)
        self.actor_target = Target(self.actor)

    def update(self, batch: Batch) -> None:
        """One step of denoising, and the average."""
        self.descend("actor", self.actor_loss(batch))
        self.actor_target.follow(self.actor, self.polyak)

    def actor_loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the predicted noise, (seeds,)."""
        n = 1 + self.integers("n", batch.actions.shape[1], self.actor.schedule.steps)
        noise = self.normal("noise", batch.actions)
        return self.actor.denoising_error(batch.observations, batch.actions, n, noise).mean(-1)

    @property
    def policy(self) -> Any:
        """The average of the weights."""
        return self.actor_target.module

    @torch.no_grad()
    def generation_paths(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """As the base."""
        return self.policy.generation(self.normalize(observations), self.seeds)

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Denoising error of the average on held-out actions, the steps in turn."""
        rows = torch.arange(batch.actions.shape[1], device=batch.actions.device)
        n = (1 + rows % self.policy.schedule.steps).expand(batch.actions.shape[:2])
        noise = self.normal("heldout", batch.actions)
        return {"actor/denoising_error": self.policy.denoising_error(batch.observations, batch.actions, n, noise)}
