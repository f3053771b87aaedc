"""From advantages to regression weights, and what describes a set of weights."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_exp(exponent: Float[Tensor, "*n"], max_weight: float) -> Float[Tensor, "*n"]:
    """`min(exp(exponent), max_weight)`, clipped before the exponential so that nothing overflows.

    Source: IQL (arXiv:2110.06169), Eq. 7, whose code clips at 100.
    """
    return exponent.clamp(max=math.log(max_weight)).exp()


def sparse(exponent: Float[Tensor, "*n"], max_weight: float) -> Float[Tensor, "*n"]:
    """`min(max(1 + exponent, 0), max_weight)`: zero, not small, for what is bad enough.

    Source: SQL (arXiv:2303.15810) with `exponent = (Q - V) / (2 temperature)`; the clip is IQL's.
    """
    return (1.0 + exponent).clamp(0.0, max_weight)


def softmax_over_batch(exponent: Float[Tensor, "seeds batch"]) -> Float[Tensor, "seeds batch"]:
    """`exp(exponent)` over its batch mean: a softmax over the batch times its size.

    Source: the authors' code of AWAC (arXiv:2006.09359), which so estimates the normalizer that Eq. 13 leaves out.
    """
    return torch.softmax(exponent, -1) * exponent.shape[-1]


def normalize(weight: Float[Tensor, "seeds batch"]) -> Float[Tensor, "seeds batch"]:
    """Divide by the batch mean, so that `E_{pi_D}[w] = 1` holds on the batch. All zeros become all ones."""
    mean = weight.mean(-1, keepdim=True)
    return torch.where(mean == 0, 1.0, weight / torch.where(mean == 0, 1.0, mean))


def effective_sample_share(weight: Float[Tensor, "seeds batch"]) -> Float[Tensor, " seeds"]:
    """Kish's effective sample size over the batch size, `(sum w)^2 / (B sum w^2)`, in [0, 1]; 0 where all weights are 0."""
    weight = weight / weight.amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)  # squares of 1e20 overflow
    return weight.mean(-1).square() / weight.square().mean(-1).clamp(min=1e-30)


def clipped_share(weight: Float[Tensor, "seeds batch"], max_weight: float) -> Float[Tensor, " seeds"]:
    """Share of the weights that are at their upper clip; the exponential of its logarithm may miss it by a rounding."""
    return (weight >= max_weight * (1.0 - 1e-5)).to(weight.dtype).mean(-1)


def capped_ratio(log_ratio: Float[Tensor, "*n"], max_ratio: float) -> Float[Tensor, "*n"]:
    """`exp(log_ratio)`, continued by its tangent in log_ratio beyond `max_ratio`: `max_ratio (1 + log(rho/max_ratio))`.

    The value and the gradient stay continuous and grow at most linearly in the log-density. Source: ours.
    """
    bound = math.log(max_ratio)
    return log_ratio.clamp(max=bound).exp() * (1.0 + (log_ratio - bound).clamp(min=0.0))
