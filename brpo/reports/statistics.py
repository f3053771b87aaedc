"""What is said about several runs on several tasks: pure functions on arrays of numbers, one array per task.

Source of the aggregates: Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
arXiv:2108.13264. Everything that resamples is `scipy.stats.bootstrap` with a fixed seed: a report says the same twice.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from brpo.evaluation.scores import TAIL

LEVEL = 0.95
TRIMMED = 0.25  # share cut off at each end by the interquartile mean
RESAMPLES = 5000
PROFILE_RESAMPLES = 1000  # a profile is a whole curve of shares
_SEED = 0

Tasks = Sequence[np.ndarray]  # one array (runs,) per task; the numbers of runs may differ
Interval = tuple[float, float] | None


def mean_of_tasks(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over tasks of the mean over runs: every task counts the same, however many runs it has."""
    return np.mean([np.mean(task, axis=axis) for task in tasks], axis=0)


def iqm(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean: mean of what is left when a quarter of all runs of all tasks is cut off at each end.

    The number that is cut is rounded down: of three runs or fewer none is. Where tasks have unlike numbers of runs, each
    counts the same, its runs as if repeated up to a common number (ours). Source: arXiv:2108.13264, section 4.
    """
    count = _common_runs(tasks, axis)
    cut = int(TRIMMED * count) / count
    return _mean_between(tasks, cut, 1.0 - cut, axis)


def worst_tenth(*tasks: np.ndarray, axis: int = -1) -> np.ndarray:
    """Conditional value at risk: mean of the lowest tenth of all runs, rounded up; tasks count as in `iqm`."""
    count = _common_runs(tasks, axis)
    return _mean_between(tasks, 0.0, math.ceil(TAIL * count - 1e-9) / count, axis)


def _common_runs(tasks: Tasks, axis: int) -> int:
    """Runs of all tasks together, had each as many as the least number that all theirs divide."""
    return len(tasks) * math.lcm(*(task.shape[axis] for task in tasks))


def _mean_between(tasks: Tasks, low: float, high: float, axis: int) -> np.ndarray:
    """Mean of what lies between two shares of all runs in order, of which every task has the same share."""
    runs = np.concatenate([np.moveaxis(task, axis, -1) for task in tasks], axis=-1)
    shares = np.concatenate([np.full(task.shape[axis], 1.0 / (len(tasks) * task.shape[axis])) for task in tasks])
    order = np.argsort(runs, axis=-1)
    ends = np.cumsum(shares[order], axis=-1)
    kept = np.maximum(np.minimum(ends, high) - np.maximum(ends - shares[order], low), 0.0)
    return (kept * np.take_along_axis(runs, order, axis=-1)).sum(-1) / kept.sum(-1)


def interval(statistic: Callable[..., np.ndarray], tasks: Tasks) -> Interval:
    """Stratified bootstrap percentile interval at 95 %: runs are drawn again within each task, never across tasks.

    None where a task has a single run, which says nothing about the spread of runs.
    Source: arXiv:2108.13264, section 4.

    Args:
        statistic: of one array per task, along `axis`.
        tasks: arrays (runs,).
    """
    found = _resampled(statistic, tasks, RESAMPLES)
    return None if found is None else (float(found.low), float(found.high))


def _resampled(statistic: Callable[..., np.ndarray], samples: Tasks, resamples: int) -> Any:
    """Scipy's percentile interval with `low` and `high`, where each of several samples is drawn from on its own."""
    if not samples or any(sample.shape[-1] < 2 for sample in samples):
        return None
    rng = np.random.default_rng(_SEED)
    result = stats.bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        vectorized=True,
        axis=-1,
        confidence_level=LEVEL,
        method="percentile",
        rng=rng,
    )
    return result.confidence_interval


def improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Probability that a run of ours is better than one of theirs on one task; a draw counts half. Larger is better.

    Mann and Whitney's U over the number of pairs; over the last axis.

    Args:
        ours: (..., runs).
        theirs: (..., other runs).
    """
    return (0.5 + 0.5 * np.sign(ours[..., :, None] - theirs[..., None, :])).mean((-2, -1))


def probability_of_improvement(ours: Tasks, theirs: Tasks) -> tuple[float, Interval]:
    """Mean over tasks of `improvement`, with its interval. Source: arXiv:2108.13264, section 4.

    Args:
        ours: arrays (runs,) for each task.
        theirs: of the other method, the same tasks in the same order.
    """

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        half = len(samples) // 2
        return np.mean([improvement(x, y) for x, y in zip(samples[:half], samples[half:], strict=True)], axis=0)

    samples = [*ours, *theirs]
    return float(statistic(*samples)), interval(statistic, samples)


def performance_profile(tasks: Tasks, thresholds: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Share of runs above each threshold, mean over tasks, (thresholds,); and its pointwise 95 % band, if runs repeat.

    Source: arXiv:2108.13264, section 4 (run-score distribution).
    """
    above = [(task[None, :] > thresholds[:, None]).astype(float) for task in tasks]  # (thresholds, runs)
    band = _resampled(mean_of_tasks, above, PROFILE_RESAMPLES)
    return mean_of_tasks(*above), None if band is None else (band.low, band.high)
