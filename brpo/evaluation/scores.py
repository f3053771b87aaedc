"""From episode returns to the numbers that are reported."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

TAIL = 0.1


def normalized(returns: np.ndarray, reference_min: float | None, reference_max: float | None) -> np.ndarray | None:
    """D4RL's score, `100 (return - min) / (max - min)`; None without reference scores.

    Source: D4RL (arXiv:2004.07219), Eq. in section 4.
    """
    if reference_min is None or reference_max is None or reference_max == reference_min:
        return None
    return 100.0 * (returns - reference_min) / (reference_max - reference_min)


def cvar(returns: np.ndarray, tail: float = TAIL) -> np.ndarray:
    """Conditional value at risk: mean of the worst `tail` share of the episodes, at least one; over the last axis."""
    count = max(1, int(np.ceil(tail * returns.shape[-1] - 1e-9)))
    worst = np.sort(returns, axis=-1)[..., :count].mean(-1)
    return np.where(np.isnan(returns).any(-1), np.nan, worst)  # NaN is sorted behind the best


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`mean ± std` over seeds in words, with digits behind the point; one seed has no spread, and nothing says nothing."""
    if not values:
        return ""
    return f"{fmean(values):.{digits}f}" + (f" ± {np.std(values):.{digits}f}" if len(values) > 1 else "")
