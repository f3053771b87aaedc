"""Rollouts of all seeds at once. Needs only `act(observations, step) -> actions`; no network, no Lightning."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from brpo.evaluation.processes import ProcessEnvs

MAX_STEPS = 100_000  # an environment without a step limit may never end
Act = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Episodes:
    """What the episodes gave, each field (seeds, episodes)."""

    returns: np.ndarray
    discounted: np.ndarray  # sum of discount^k r_k
    discounts: np.ndarray  # sum of discount^k: what a reward of 1 would have given
    lengths: np.ndarray
    first_observations: np.ndarray  # (seeds, episodes, observation)
    last_observations: np.ndarray  # what followed the last action
    following: np.ndarray  # discount^length where the episode was cut off there, 0 where it terminated


class Rollouts:
    """`seeds x episodes` environments side by side, reset with the same fixed seeds at each evaluation.

    Args:
        make: makes one environment.
        seeds: number of policies.
        episodes: episodes of each policy; episode k starts from the same state for every policy.
        seed: seed of episode 0; episode k has `seed + k`.
        processes: that the environments are shared out to; 1 steps them in this one. The episodes are the same.
    """

    def __init__(
        self, make: Callable[[], gymnasium.Env], seeds: int, episodes: int, seed: int = 10_000, processes: int = 1
    ) -> None:
        self.seeds, self.episodes, self.seed = seeds, episodes, seed
        count = seeds * episodes
        self.envs: Any = (
            ProcessEnvs(make, count, min(processes, count))
            if processes > 1
            else gymnasium.vector.SyncVectorEnv([make] * count, copy=False)
        )

    def run(self, act: Act, *, discount: float = 1.0) -> Episodes:
        """Run every environment to the end of its first episode.

        Args:
            act: actions (seeds, episodes, action) in environment units for observations (seeds, episodes, observation)
                and the number of the step.
            discount: of the rewards, per step.
        """
        shape, count = (self.seeds, self.episodes), self.seeds * self.episodes
        observations, _ = self.envs.reset(seed=[self.seed + k for _ in range(self.seeds) for k in range(self.episodes)])
        first = observations.reshape(*shape, -1).copy()
        last = first.reshape(count, -1).copy()
        returns, discounted, discounts = np.zeros((3, count))
        following = np.zeros(count)
        lengths = np.zeros(count, np.int64)
        running, step, factor = np.ones(count, bool), 0, 1.0
        while running.any():
            actions = act(observations.reshape(*shape, -1), step)
            observations, rewards, terminated, truncated, _ = self.envs.step(actions.reshape(count, -1))
            # A finished environment starts again by itself; its further episodes do not count.
            returns += np.where(running, rewards, 0.0)
            discounted += np.where(running, factor * rewards, 0.0)
            discounts += np.where(running, factor, 0.0)
            lengths += running
            step, factor = step + 1, factor * discount
            ended = running & (terminated | truncated | (step == MAX_STEPS))
            last[ended] = observations.reshape(count, -1)[ended]
            following[ended & ~terminated] = factor
            running &= ~ended
        found = (each.reshape(shape) for each in (returns, discounted, discounts, lengths))
        last, following = last.reshape(first.shape), following.reshape(shape)
        return Episodes(*found, first_observations=first, last_observations=last, following=following)

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def useful_processes(environments: int, cores: int) -> int:
    """How many processes to roll out with: none of their own where there are few cores or few environments."""
    if cores < 4 or environments < 8:
        return 1
    return min(cores - 1, environments // 4)
