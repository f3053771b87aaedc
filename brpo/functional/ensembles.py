"""One value out of several critics' values of several sampled actions."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def mean(values: Tensor) -> Tensor:
    """Mean over the samples, the last axis."""
    return values.mean(-1)


def largest(values: Tensor) -> Tensor:
    """The largest of the samples, the last axis."""
    return values.amax(-1)


OVER_SAMPLES: dict[str, Callable[[Tensor], Tensor]] = {"mean": mean, "max": largest}
OVER_CRITICS = ("lcb", "min")


def over_critics(values: Float[Tensor, "seeds critics *n"], how: str, pessimism: float) -> Float[Tensor, "seeds *n"]:
    """`min` of the critics, or `lcb`: their mean less `pessimism` times their standard deviation (of the population).

    Source: BDPO (arXiv:2502.04778); the population's deviation is its authors' code.

    Raises:
        ValueError: neither of the two.
    """
    if how == "min":
        return values.amin(1)
    if how != "lcb":
        raise ValueError(f"Unknown way {how!r} over critics. Known: {', '.join(OVER_CRITICS)}.")
    variance, average = torch.var_mean(values, dim=1, correction=0)
    # The square root has no gradient at 0, where critics agree to the last bit (an ensemble of one).
    return average - pessimism * variance.clamp(min=1e-20).sqrt()
