"""One value out of several critics' values of several sampled actions."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

OVER_SAMPLES: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda v: v.mean(-1), "max": lambda v: v.amax(-1)}
OVER_CRITICS = ("lcb", "min")


def over_critics(values: Float[Tensor, "seeds critics *n"], how: str, pessimism: float) -> Float[Tensor, "seeds *n"]:
    """`min` of the critics, or `lcb`: their mean less `pessimism` times their standard deviation (of the population).

    Source: BDPO (arXiv:2502.04778); the population's deviation is its authors' code.
    """
    if how == "min":
        return values.amin(1)
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    # The square root has no gradient at 0, where critics agree to the last bit (an ensemble of one).
    return mean - pessimism * variance.clamp(min=1e-20).sqrt()
