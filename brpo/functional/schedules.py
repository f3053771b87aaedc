"""Learning-rate schedules: factors by the share of the training that is done."""

import math
from collections.abc import Callable


def constant(progress: float) -> float:
    """Learning-rate factor 1."""
    return 1.0


def cosine(progress: float) -> float:
    """Learning-rate factor that falls from 1 to 0 along half a cosine, at `progress` 1, and stays there."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine}
