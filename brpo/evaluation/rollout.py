"""Rollouts of all seeds at once. Needs only `act(observations, step) -> actions`; no network, no Lightning."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import gymnasium
import numpy as np

from brpo.evaluation.group import EnvGroup
from brpo.evaluation.processes import ProcessEnvs

FIRST_SEED = 10_000  # of the environments of an evaluation
MAX_STEPS = 100_000  # an environment without a step limit may never end
MOST = 512  # environments at once: a simulator takes a megabyte and more
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
    """`seeds x episodes` episodes, `MOST` environments side by side at most, from the same fixed seeds at each evaluation.

    Args:
        make: makes one environment.
        seeds: number of policies.
        episodes: episodes of each policy; episode k starts from the same state for every policy.
        seed: seed of episode 0; episode k has `seed + k`.
        processes: that the environments are shared out to; 1 steps them in this one. The episodes are the same.
    """

    def __init__(
        self, make: Callable[[], gymnasium.Env], seeds: int, episodes: int, seed: int = FIRST_SEED, processes: int = 1
    ) -> None:
        self.seeds, self.episodes, self.seed = seeds, episodes, seed
        self.at_once = min(episodes, max(1, MOST // seeds))  # episodes of each policy
        count = seeds * self.at_once
        self.envs = ProcessEnvs(make, count, min(processes, count)) if processes > 1 else EnvGroup(make, count)

    def run(self, act: Act, *, discount: float = 1.0) -> Episodes:
        """Run every episode to its end.

        Args:
            act: actions (seeds, n, action) in environment units for observations (seeds, n, observation) of some episodes,
                and a number of the step that no other step has.
            discount: of the rewards, per step.
        """
        parts = [self._run(act, discount, first) for first in range(0, self.episodes, self.at_once)]
        names = [field.name for field in fields(Episodes)]
        return Episodes(**{name: np.concatenate([getattr(part, name) for part in parts], 1) for name in names})

    def _run(self, act: Act, discount: float, start: int) -> Episodes:
        """The episodes from number `start` on that the environments have room for."""
        shape, count = (self.seeds, self.at_once), self.seeds * self.at_once
        numbers = np.broadcast_to(np.arange(start, start + self.at_once), shape).flatten()
        observations = self.envs.reset([self.seed + int(number) for number in numbers])
        first = observations.reshape(count, -1)
        last = first.copy()
        returns, discounted, discounts, following = np.zeros((4, count))
        lengths = np.zeros(count, np.int64)
        running, step, factor = numbers < self.episodes, 0, 1.0
        while running.any():
            actions = act(observations.reshape(*shape, -1), start // self.at_once * MAX_STEPS + step)
            observations, rewards, terminated, truncated = self.envs.step(actions.reshape(count, -1), running)
            returns += rewards
            discounted += factor * rewards
            discounts += factor * running
            lengths += running
            step, factor = step + 1, factor * discount
            ended = running & (terminated | truncated | (step == MAX_STEPS))
            last[ended] = observations.reshape(count, -1)[ended]
            following[ended & ~terminated] = factor
            running &= ~ended
        found = (returns, discounted, discounts, lengths, first, last, following)
        return Episodes(*(each.reshape(*shape, *each.shape[1:])[:, : self.episodes - start] for each in found))

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()


def useful_processes(environments: int, cores: int) -> int:
    """How many processes to roll out with: none of their own where there are few cores or few environments."""
    if cores < 4 or environments < 8:
        return 1
    return min(cores - 1, environments // 4)
