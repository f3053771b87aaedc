"""Affine changes of units: observations to zero mean and unit variance, rewards to a common scale of returns."""

import numpy as np

RETURN_RANGE = "return_range"


def observation_moments(observations: np.ndarray, normalize: bool, epsilon: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each dimension, (observation,) float32; zeros and ones where not `normalize`.

    `epsilon` is added to the standard deviation, as TD3+BC's authors do (arXiv:2106.06860, Eq. 6).
    """
    size = observations.shape[1]
    if not normalize:
        return np.zeros(size, np.float32), np.ones(size, np.float32)
    mean, std = observations.mean(0, dtype=np.float64), observations.std(0, dtype=np.float64)
    return mean.astype(np.float32), (std + epsilon).astype(np.float32)


def reward_factor(scale: float | str, returns: np.ndarray) -> float:
    """The factor on rewards: a number as it is; `return_range` gives `1000 / (max - min)` of the episodes' returns.

    Source of the latter: the authors' code of IQL (arXiv:2110.06169) for locomotion. Where all returns are equal it is 1.

    Raises:
        ValueError: the scale is neither a positive number nor `return_range`.
    """
    if scale == RETURN_RANGE:
        spread = float(returns.max() - returns.min())
        return 1000.0 / spread if spread > 0 else 1.0
    if isinstance(scale, str | bool) or not scale > 0:
        raise ValueError(f"data.reward_scale={scale} is not allowed. Use a positive number or {RETURN_RANGE}.")
    return float(scale)
