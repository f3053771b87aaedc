"""The divergence submodule: which divergence, how many terms, how the ratio is clipped."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brpo.functional import series
from brpo.functional.divergences import get_divergence
from brpo.options import require_flag, require_positive, require_whole

LARGEST = 1e30  # term of the series: a batch of them is added up in float32


class SeriesDivergence(nn.Module):
    """The conditional symmetry term of Sf-AC's policy loss, `h(clip(t, 1 - epsilon, 1 + epsilon))`.

    `h(t) = sum_{n=2}^{loss_order} g_n (t-1)^n`, or the exact `g(t) - g(1) - g'(1)(t-1)` with `exact=True`.
    Source: Sf-AC (arXiv:2508.04225), section 4.

    Args:
        divergence: as `get_divergence` takes it: a key of `DIVERGENCES`, or `alpha:0.5`.
        loss_order: >= 2, the highest order N_loss of the series.
        epsilon: > 0, half the width of the clip range of the ratio. Above the radius the series is a penalty, not an
            approximation.
        exact: use g itself, under the same clip.

    Raises:
        ValueError: unknown divergence, no series, a value out of range, or a series that rewards ratios without bound or
            overflows.
    """

    def __init__(self, divergence: str, *, loss_order: int, epsilon: float, exact: bool = False) -> None:
        super().__init__()
        self.divergence = get_divergence(divergence)
        require_whole(2, loss_order=loss_order)
        require_positive(epsilon=epsilon)
        require_flag(exact=exact)
        self.coefficients = self.divergence.conditional_symmetry_taylor(loss_order)
        self.converges = epsilon <= self.divergence.series_radius
        if not exact and not self.converges and self.coefficients[-1] < 0:
            raise ValueError(
                f"epsilon={epsilon:g} is above the series' radius {self.divergence.series_radius:g} and its last "
                f"coefficient g_{loss_order} = {self.coefficients[-1]:.3g} is negative: unbounded ratios would be "
                f"rewarded. Lower algo.regularizer.epsilon, or change algo.regularizer.loss_order by one."
            )
        top = series.evaluate(self.coefficients, torch.tensor(1.0 + epsilon, dtype=torch.float64)).item()
        if not exact and not abs(top) < LARGEST:
            raise ValueError(
                f"epsilon={epsilon:g} and loss_order={loss_order} make terms of {top:.0e}, and float32 ends at 3e38. Lower "
                f"algo.regularizer.epsilon or algo.regularizer.loss_order."
            )
        self.epsilon, self.exact = epsilon, exact
        self.remainder = 0.0 if exact else series.remainder(self.divergence, loss_order, epsilon)
        # The clip acts on the logarithm: clamping after exp gives NaN gradients once exp overflows.
        self.log_low, self.log_high = math.log(series.clip_range(epsilon)[0]), math.log1p(epsilon)
        self.at_low = self(torch.tensor([[-math.inf]], dtype=torch.float64)).item()  # what a weight of 0 gives

    def forward(
        self, log_ratio: Float[Tensor, "seeds batch"], shrink: Float[Tensor, "seeds batch"] | None = None
    ) -> Float[Tensor, "seeds batch"]:
        """The term h of the clipped ratio, no gradient where it is clipped; `shrink` in (0, 1] narrows epsilon."""
        low, high = self.bounds(shrink)
        ratio = log_ratio.clamp(low, high).exp()  # pyright: ignore[reportCallIssue, reportArgumentType]
        if self.exact:
            return series.tail(self.divergence, self.coefficients, ratio)
        return series.evaluate(self.coefficients, ratio)

    def bounds(self, shrink: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """The clip range of the logarithm of the ratio."""
        if shrink is None:
            return self.log_low, self.log_high
        epsilon = self.epsilon * shrink
        return (1.0 - epsilon).clamp(min=series.LOWEST).log(), epsilon.log1p()

    def clipped_share(
        self, log_ratio: Float[Tensor, "seeds batch"], shrink: Float[Tensor, "seeds batch"] | None = None
    ) -> Float[Tensor, " seeds"]:
        """Share of ratios outside the clip range."""
        low, high = self.bounds(shrink)
        outside = (log_ratio < low) | (log_ratio > high)
        return outside.to(torch.float32).mean(-1)
