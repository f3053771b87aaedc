"""Log-densities of policies over actions in [-1, 1]. Summed over action dimensions, in the input's precision."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def gaussian_log_prob(
    actions: Float[Tensor, "seeds batch a"],
    mean: Float[Tensor, "seeds batch a"],
    log_std: Float[Tensor, "seeds #batch a"],
) -> Float[Tensor, "seeds batch"]:
    """Log-density of a diagonal Gaussian. It has mass outside [-1, 1]: sampled actions are clipped, densities are not."""
    standardized = (actions - mean) * torch.exp(-log_std)
    return -0.5 * standardized.square().sum(-1) - (log_std + _HALF_LOG_TWO_PI).sum(-1)


def squashed_gaussian_log_prob(
    actions: Float[Tensor, "seeds batch a"],
    mean: Float[Tensor, "seeds batch a"],
    log_std: Float[Tensor, "seeds #batch a"],
    margin: float = 1e-5,
) -> Float[Tensor, "seeds batch"]:
    """Log-density of `tanh(x)`, x a diagonal Gaussian; actions are first clipped to +-(1 - margin).

    `log pi(a) = log N(atanh a) - sum log(1 - a^2)`, and `log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2x))` is stable.
    """
    latent = torch.atanh(actions.clamp(-1.0 + margin, 1.0 - margin))
    log_jacobian = 2.0 * (math.log(2.0) - latent - F.softplus(-2.0 * latent)).sum(-1)
    return gaussian_log_prob(latent, mean, log_std) - log_jacobian
