"""Environments side by side in one process."""

from collections.abc import Callable, Sequence

import gymnasium
import numpy as np


class EnvGroup:
    """Environments that are stepped one after another, each until its episode ends.

    Not Gymnasium's SyncVectorEnv, which starts an environment again when it is done, and steps it on for nothing until the
    slowest ends.

    Args:
        make: makes one environment.
        count: environments.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], count: int) -> None:
        self.envs = [make() for _ in range(count)]
        space = self.envs[0].observation_space
        self.observations = np.zeros((count, *(space.shape or ())), space.dtype)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """First observations (count, ...), with a seed for each environment."""
        for k, (env, seed) in enumerate(zip(self.envs, seeds, strict=True)):
            self.observations[k], _ = env.reset(seed=seed)
        return self.observations.copy()

    def step(self, actions: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards, terminated and truncated (count, ...) for actions (count, ...).

        Where `running` (count,) is false nothing is done: the observation stays, the reward is 0 and nothing ends.
        """
        rewards = np.zeros(len(self.envs))
        terminated, truncated = np.zeros((2, len(self.envs)), bool)
        for k in np.flatnonzero(running):
            self.observations[k], rewards[k], terminated[k], truncated[k], _ = self.envs[k].step(actions[k])
        return self.observations.copy(), rewards, terminated, truncated

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()
