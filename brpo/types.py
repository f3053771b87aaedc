"""The two records that everything speaks in: a batch of transitions, and what is known about the data."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # processes of evaluation environments read this file, and have no use for torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Transitions of one update, for every seed. All float32 and on the device.

    Observations are normalized if the data module was asked to; actions are scaled to [-1, 1]; rewards are scaled.
    `terminated` is 1 where the episode ended for good (truncation is not termination: it still bootstraps).
    """

    observations: Tensor  # (seeds, batch, observation)
    actions: Tensor  # (seeds, batch, action)
    rewards: Tensor  # (seeds, batch)
    next_observations: Tensor  # (seeds, batch, observation)
    next_actions: Tensor  # (seeds, batch, action)
    terminated: Tensor  # (seeds, batch)


@dataclass(frozen=True)
class DataSpec:
    """What an algorithm, an evaluation and a result file need to know about a data set. Plain values only.

    Attributes:
        dataset_id: the Minari id.
        digest: SHA-256 over the stored contents of every episode.
        observation_dim: size of the flat observation.
        action_dim: size of the flat action.
        action_low: lower bound of each action dimension, in environment units.
        action_high: upper bound of each action dimension, in environment units.
        observation_mean: subtracted from an observation (zeros where normalization is off).
        observation_std: divides an observation (ones where normalization is off).
        reward_scale: factor on the rewards, applied before the shift.
        reward_shift: added to the scaled reward.
        return_min: smallest return of an episode, in environment units.
        return_max: largest return of an episode, in environment units.
        return_mean: mean return of the episodes, in environment units.
        reference_min: the return that scores 0 (D4RL's random policy), or None.
        reference_max: the return that scores 100 (D4RL's expert), or None.
        environment: Gymnasium environment specification as JSON, or None where the data set has none.
        transitions: number of transitions in the data set.
        episodes: number of episodes in the data set.
        one_step: whether every transition is terminated, so that nothing follows an action (the toy tasks).
    """

    dataset_id: str
    digest: str
    observation_dim: int
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    reward_scale: float
    reward_shift: float
    return_min: float
    return_max: float
    return_mean: float
    reference_min: float | None
    reference_max: float | None
    environment: str | None
    transitions: int
    episodes: int
    one_step: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as a checkpoint holds them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataSpec:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is missing, unless it has a default, or unknown.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not needed <= set(values) <= known:
            raise ValueError(f"DataSpec has the keys {sorted(known)}, got {sorted(values)}")
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**plain)


def goal_keys(observation: Container[str]) -> tuple[str, ...]:
    """Parts of a goal observation, a dictionary, in the order in which they are joined to one vector."""
    achieved = ("achieved_goal",) if "achieved_goal" in observation else ()
    return ("observation", *achieved, "desired_goal")
