"""Losses on numbers that networks gave: no network, no state."""

import torch
from jaxtyping import Float
from torch import Tensor


def expectile(error: Float[Tensor, "*n"], level: float) -> Float[Tensor, "*n"]:
    """Asymmetric squared error `|level - 1[error < 0]| error^2`, elementwise.

    Source: IQL (arXiv:2110.06169), Eq. 5. `level` is in (0, 1); 0.5 gives half the squared error.
    """
    return torch.where(error < 0, 1.0 - level, level) * error.square()


def gumbel(
    error: Float[Tensor, "seeds batch"], temperature: float, max_exponent: float, subtract_max: bool = True
) -> Float[Tensor, "seeds batch"]:
    """Gumbel regression `exp(-m) (exp(z) - z - 1)` with `z = min(error / temperature, max_exponent)`.

    With `error = Q - V` its minimum over V is `temperature * log E[exp(Q / temperature)]`, the in-sample soft maximum.
    `m = max(max_batch z, -1)` is detached and multiplies the whole bracket, so it scales the gradient and leaves the
    minimum where it is; 0 without `subtract_max`. A clipped z has no gradient. Source: XQL (arXiv:2301.02328), Eq. 11;
    m and the clip are its authors' code.
    """
    exponent = (error / temperature).clamp(max=max_exponent)
    if not subtract_max:
        return exponent.exp() - exponent - 1.0
    offset = _largest(exponent)
    return torch.exp(exponent - offset) - torch.exp(-offset) * (exponent + 1.0)


@torch.no_grad()
def clipped_share(error: Float[Tensor, "seeds batch"], temperature: float, max_exponent: float) -> Float[Tensor, " seeds"]:
    """Share of the errors that `gumbel` or `exponential_value` takes for `temperature * max_exponent`."""
    return (error > temperature * max_exponent).to(error.dtype).mean(-1)


def exponential_value(
    error: Float[Tensor, "seeds batch"], value: Float[Tensor, "seeds batch"], temperature: float, max_exponent: float
) -> Float[Tensor, "seeds batch"]:
    """`exp(-m) (exp(z) + V / temperature)` with `z = min(error / temperature, max_exponent)` and `error = Q - V`.

    Its minimum over V is where `E[exp((Q - V) / temperature)] = 1`: the in-sample soft maximum. m is that of `gumbel`. A
    clipped z pushes its V down. Source: EQL (arXiv:2303.15810); m and the clip are its authors' code.
    """
    exponent = (error / temperature).clamp(max=max_exponent)
    offset = _largest(exponent)
    return torch.exp(exponent - offset) + torch.exp(-offset) * (value / temperature)


def _largest(exponent: Float[Tensor, "seeds batch"]) -> Float[Tensor, "seeds 1"]:
    """`max(max_batch z, -1)`, without gradient: no exponential of the batch overflows once it is subtracted."""
    return exponent.detach().amax(-1, keepdim=True).clamp(min=-1.0)


def sparse_value(
    error: Float[Tensor, "seeds batch"], value: Float[Tensor, "seeds batch"], temperature: float
) -> Float[Tensor, "seeds batch"]:
    """`max(1 + error / (2 temperature), 0)^2 + V / temperature` with `error = Q - V`.

    Its minimum over V is where `E[max(1 + (Q - V) / (2 temperature), 0)] = 1`, so the weights of SQL's policy are
    normalized. Source: SQL (arXiv:2303.15810); temperature is its alpha.
    """
    return (1.0 + error / (2.0 * temperature)).clamp(min=0.0).square() + value / temperature


def td_target(
    rewards: Float[Tensor, "seeds batch"],
    terminated: Float[Tensor, "seeds batch"],
    next_values: Float[Tensor, "seeds batch"],
    discount: float,
) -> Float[Tensor, "seeds batch"]:
    """`r + discount (1 - terminated) V(s')`; a truncated transition still bootstraps."""
    return rewards + discount * (1.0 - terminated) * next_values


def ensemble_squared_error(
    q: Float[Tensor, "seeds critics batch"], target: Float[Tensor, "seeds batch"]
) -> Float[Tensor, " seeds"]:
    """Squared error to a common target: mean over the batch, sum over the critics."""
    return (q - target.unsqueeze(1)).square().mean(-1).sum(-1)


def ensemble_huber(
    q: Float[Tensor, "seeds critics batch"], target: Float[Tensor, "seeds batch"], delta: float
) -> Float[Tensor, " seeds"]:
    """Huber's loss to a common target: mean over the batch, sum over the critics.

    Half the squared error up to `delta`, from there on linear, so that an outlier's gradient is at most `delta`. Source:
    Huber (1964), "Robust estimation of a location parameter".
    """
    error = (q - target.unsqueeze(1)).abs()
    inside = error.clamp(max=delta)
    return (inside * (error - 0.5 * inside)).mean(-1).sum(-1)


def weighted_regression(
    log_prob: Float[Tensor, "seeds batch"], weight: Float[Tensor, "seeds batch"]
) -> Float[Tensor, " seeds"]:
    """`-E_D[weight log pi(a|s)]`: behaviour cloning where the weight is 1. No gradient flows into the weight.

    Source: advantage-weighted regression, e.g. IQL (arXiv:2110.06169), Eq. 7.
    """
    return -(weight.detach() * log_prob).mean(-1)


def value_scale(q: Float[Tensor, "seeds batch"], coefficient: float) -> Float[Tensor, " seeds"]:
    """`coefficient / E_D|Q|`, without gradient: times Q it no longer depends on the scale of the rewards.

    Source: TD3+BC (arXiv:2106.06860), section 5, its lambda. Where every Q is 0 there is nothing to scale.
    """
    return coefficient / q.detach().abs().mean(-1).clamp(min=1e-8)


def action_error(
    actions: Float[Tensor, "seeds batch a"], data_actions: Float[Tensor, "seeds batch a"]
) -> Float[Tensor, "seeds batch"]:
    """`(pi(s) - a)^2`, the mean over the action's dimensions.

    Source: TD3+BC (arXiv:2106.06860), section 5; the mean is its authors' code.
    """
    return (actions - data_actions).square().mean(-1)
