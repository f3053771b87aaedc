"""Behaviour cloning (BC): maximum likelihood of the data's actions.

Source: Pomerleau (1989), "ALVINN"; the plain baseline of every offline comparison. Nothing differs that we know of.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.types import Batch, DataSpec


class BC(OfflineAlgorithm):
    """Maximizes `E_D[log pi(a|s)]`.

    Args:
        spec: what is known about the data.
        actor: builds the policy.
        common: options of `OfflineAlgorithm`.
    """

    trained = ("actor",)

    def __init__(self, spec: DataSpec, *, actor: Callable[..., nn.Module], **common: Any) -> None:
        super().__init__(spec, **common)
        self.actor = self.build("actor", actor)

    def update(self, batch: Batch) -> None:
        """One step of maximum likelihood."""
        self.descend("actor", self.actor_loss(batch))

    def actor_loss(self, batch: Batch) -> Tensor:
        """`-E_D[log pi(a|s)]`, (seeds,)."""
        return -self.actor.log_prob(batch.observations, batch.actions).mean(-1)

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Log-likelihood of held-out actions."""
        return {"actor/log_prob": self.actor.log_prob(batch.observations, batch.actions)}
