"""Log-densities of policies over actions in [-1, 1], summed over action dimensions, and what their samples are made of."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def gaussian_log_prob(
    actions: Float[Tensor, "seeds batch a"],
    mean: Float[Tensor, "seeds batch a"],
    log_std: Float[Tensor, "seeds #batch a"],
) -> Float[Tensor, "seeds batch"]:
    """Log-density of a diagonal Gaussian. It has mass outside [-1, 1]: sampled actions are clipped, densities are not."""
    return _gaussian(actions, mean, log_std)


def _gaussian(actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
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


def student_t_log_prob(
    actions: Float[Tensor, "seeds batch a"],
    location: Float[Tensor, "seeds batch a"],
    log_scale: Float[Tensor, "seeds #batch a"],
    degrees: Float[Tensor, "seeds 1 a"],
) -> Float[Tensor, "seeds batch"]:
    """Log-density of independent Student t variables; like the Gaussian's, it has mass outside [-1, 1].

    `lgamma((v+1)/2) - lgamma(v/2) - log(pi v)/2 - log s - (v+1)/2 log(1 + x^2/v)`, x = (a - location) / s, v degrees of
    freedom. The constant is taken in float64: at v = 10^4 its two terms are 10^4 times their difference.
    """
    standardized = (actions - location) * torch.exp(-log_scale)
    kernel = -0.5 * (degrees + 1.0) * torch.log1p(standardized.square() / degrees)
    v = degrees.double()
    constant = torch.lgamma(0.5 * (v + 1.0)) - torch.lgamma(0.5 * v) - 0.5 * torch.log(math.pi * v)
    return (kernel + constant.to(kernel.dtype) - log_scale).sum(-1)


def student_t_noise(
    first: Float[Tensor, "seeds batch a"],
    second: Float[Tensor, "seeds batch a"],
    degrees: Float[Tensor, "seeds 1 a"],
) -> Float[Tensor, "seeds batch a"]:
    """Standard Student t numbers out of two sets of standard normal ones, differentiable, for any degrees of freedom v.

    `x sqrt((exp(r) - 1) / r)`, r = (x^2 + y^2) / v: 0 at x = 0, and x itself for v to infinity.
    Source: Bailey (1994), "Polar generation of random variates with the t-distribution", whose `cos(2 pi V)` and `U` are
    `x / sqrt(x^2 + y^2)` and `exp(-(x^2 + y^2) / 2)` of two normal numbers (Box and Muller 1958).
    """
    r = ((first.square() + second.square()) / degrees).clamp(1e-30, 80.0)  # beyond 80 lies a share of exp(-40 v)
    return first * torch.sqrt(torch.expm1(r) / r)


def mixture_log_prob(
    actions: Float[Tensor, "seeds batch a"],
    logits: Float[Tensor, "seeds batch k"],
    mean: Float[Tensor, "seeds batch k a"],
    log_std: Float[Tensor, "seeds #batch k a"],
) -> Float[Tensor, "seeds batch"]:
    """Log-density of a mixture of k diagonal Gaussians with weights `softmax(logits)`."""
    components = _gaussian(actions.unsqueeze(-2), mean, log_std)  # (seeds, batch, k)
    return (logits.log_softmax(-1) + components).logsumexp(-1)


def component(logits: Float[Tensor, "seeds batch k"], noise: Float[Tensor, "seeds batch"]) -> Int[Tensor, "seeds batch"]:
    """A component drawn with probabilities `softmax(logits)` out of standard normal noise, by inversion of the CDF."""
    cumulative = logits.softmax(-1).cumsum(-1)[..., :-1]  # the last one is 1 but for rounding
    return (torch.special.ndtr(noise).unsqueeze(-1) > cumulative).sum(-1)
