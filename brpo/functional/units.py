"""From the networks' units to those of an environment."""

from jaxtyping import Float
from torch import Tensor


def to_bounds(
    actions: Float[Tensor, "*n action"], low: Float[Tensor, " action"], high: Float[Tensor, " action"]
) -> Float[Tensor, "*n action"]:
    """Actions from [-1, 1] to [low, high]; rounding leads none out of its bounds: environments may check."""
    return (low + (actions + 1.0) * 0.5 * (high - low)).clamp(low, high)
