"""The exact optimum of KL-regularized generation by diffusion, where the data are points with known values."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def diffusion_value(
    noisy: Float[Tensor, "n action"],
    points: Float[Tensor, "points action"],
    values: Float[Tensor, "points"],
    alpha_bar: float,
    temperature: float,
) -> Float[Tensor, "n"]:
    """`V_n(x) = eta log sum_i p_i exp(e_i / eta)` with `p_i ~ exp(-||x - sqrt(abar) x_i||^2 / (2 (1 - abar)))`, sum p_i = 1.

    What regularized generation is worth from `x` on: the soft mean of the values over the points that `x` may be the
    noise of. At abar = 0 it is `eta log mean exp(e_i / eta)` everywhere. Source: derived from arXiv:2502.04778, whose
    pathwise KL makes generation a control problem of that value; it holds for reverse steps of any form, and Gaussian
    ones stay below it by little.

    Args:
        noisy: `x`, points at some step of the diffusion.
        points: the data's actions without noise, `x_i`.
        values: their rewards `e_i`; of one unit with the temperature.
        alpha_bar: in [0, 1), the share of the data's variance at that step.
        temperature: `eta` > 0.

    Raises:
        ValueError: `alpha_bar` or `temperature` is out of range.
    """
    if not 0.0 <= alpha_bar < 1.0:
        raise ValueError(f"alpha_bar must be in [0, 1), got {alpha_bar}: without noise the value is the reward itself")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    distances = torch.cdist(noisy, math.sqrt(alpha_bar) * points).square()  # (n, points)
    log_p = -distances / (2.0 * (1.0 - alpha_bar))
    return temperature * ((log_p + values / temperature).logsumexp(-1) - log_p.logsumexp(-1))
