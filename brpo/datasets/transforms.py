"""Affine changes of units: observations to zero mean and unit variance, rewards to a common scale of returns."""

from dataclasses import dataclass

import numpy as np

from brpo.options import is_number

RETURN_RANGE = "return_range"


class Moments:
    """Mean and standard deviation of each column of blocks of rows that come one after another, in float64.

    Blocks are merged by their means and sums of squared deviations (Chan, Golub, LeVeque 1979, Eq. 2.1), which is stable
    where a sum of squares is not.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = np.zeros(1)

    def add(self, block: np.ndarray) -> None:
        """Take a block into account, (rows, columns)."""
        values = block.astype(np.float64)
        mean, total = values.mean(0), self.count + len(values)
        difference = mean - self.mean
        self.squares = self.squares + ((values - mean) ** 2).sum(0) + difference**2 * (self.count * len(values) / total)
        self.mean = self.mean + difference * (len(values) / total)
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation of each column."""
        return np.sqrt(self.squares / self.count)


@dataclass(frozen=True)
class Units:
    """The change of units that training sees: `(observation - mean) / std` and `reward * factor + shift`, in float32.

    Attributes:
        mean: of each observation dimension, float32; zeros where observations stay as they are.
        std: of each observation dimension, float32; ones where observations stay as they are.
        factor: positive.
        shift: added to the scaled reward.
        normalize: whether observations change.
    """

    mean: np.ndarray
    std: np.ndarray
    factor: float
    shift: float
    normalize: bool

    @classmethod
    def of_observations(
        cls, mean: np.ndarray, std: np.ndarray, normalize: bool, *, factor: float, shift: float, epsilon: float = 1e-3
    ) -> "Units":
        """Units from the moments of the data.

        `epsilon` is added to the standard deviation, as TD3+BC's authors do (arXiv:2106.06860, section 5); not to one of
        less than ten times as much, which it would hide, and a constant column is only shifted: divided by epsilon, a
        sensor that is one unit off would drive the policy to its bounds [ours].
        """
        if normalize:
            std = np.where(is_constant(mean, std), 1.0, np.where(std < 10.0 * epsilon, std, std + epsilon))
        else:
            mean, std = np.zeros_like(mean), np.ones_like(std)
        return cls(mean.astype(np.float32), std.astype(np.float32), factor, shift, normalize)

    def apply(self, rows: np.ndarray, slices: tuple[slice, ...]) -> None:
        """Change the units of rows in place; each number on its own, so a row alone gives what it gives in a matrix."""
        observation, _, reward, _, next_observation, _ = slices
        if self.normalize:
            for columns in (observation, next_observation):
                rows[:, columns] -= self.mean
                rows[:, columns] /= self.std
        rows[:, reward] *= self.factor
        rows[:, reward] += self.shift


def is_constant(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Which columns have one value, but for rounding, by their moments."""
    return std <= 1e-6 * np.abs(mean)


def have_range(returns: np.ndarray, gross: float) -> bool:
    """Whether returns differ, but for rounding: that of the rewards, which may cancel within an episode.

    Args:
        returns: of the episodes.
        gross: the largest sum of an episode's rewards by magnitude.
    """
    return float(np.ptp(returns)) > 1e-6 * gross


def reward_factor(scale: float | str, returns: np.ndarray, gross: float) -> float:
    """The factor on rewards: a number as it is; `return_range` gives `1000 / (max - min)` of the episodes' returns.

    Source of the latter: the authors' code of IQL (arXiv:2110.06169) for locomotion. Where all returns are equal, but for
    rounding (`have_range`), it is 1.

    Raises:
        ValueError: the scale is neither a positive number nor `return_range`.
    """
    if scale == RETURN_RANGE:
        return 1000.0 / float(np.ptp(returns)) if have_range(returns, gross) else 1.0
    if not is_number(scale) or not float(scale) > 0:
        raise ValueError(f"data.reward_scale={scale} is not allowed. Use a positive number or {RETURN_RANGE}.")
    return float(scale)


def return_weights(returns: np.ndarray, gross: float, temperature: float) -> np.ndarray:
    """Weight of each episode's transitions, at most 1, float64 (episodes,): `exp(return / eta)`, eta = temperature x range.

    Source: the return-weighted sampling of Hong et al. 2023 (arXiv:2306.13085), for any method. What is cloned from such
    batches is, where transitions are deterministic and nothing is discounted, the policy that maximizes the return less eta
    times its KL to the behaviour: the optimum's episodes are the data's, re-weighted so [ours, by the usual identity of
    control as inference, arXiv:1805.00909]. Where all returns are equal, but for rounding
    (`have_range`), so are the weights.
    """
    if not have_range(returns, gross):
        return np.ones(len(returns))
    returns = returns.astype(np.float64)
    return np.exp((returns - returns.max()) / (temperature * np.ptp(returns)))
