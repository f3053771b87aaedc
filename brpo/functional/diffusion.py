"""Diffusion over actions: noise schedules, noising, reverse steps and their divergences. Noise is always given, never drawn.

Step n = N is noise alone, n = 0 the clean action: `x_n = sqrt(abar_n) x_0 + sqrt(1 - abar_n) eps`, `abar_n` the product of
`1 - beta` up to n. Sources: DDPM (Ho, Jain, Abbeel 2020, arXiv:2006.11239), DDIM (Song, Meng, Ermon 2021, arXiv:2010.02502),
BDPO (arXiv:2502.04778).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MAX_BETA = 0.999  # as in Nichol, Dhariwal (2021): a larger one leaves nothing of x_{n-1} in x_n
B_MIN, B_MAX = 0.1, 10.0  # of the VP schedule, BDPO's authors' code
FINEST = 0.05  # noise over signal at n = 1 of the geometric schedule: below the spread of actions that agents leave
TOY_SIZE = 4.5  # of the toy tasks' points in the units of their source; ours lie in [-1, 1]
SAMPLERS = ("ddpm", "ddim")


def linear_betas(steps: int) -> list[float]:
    """`beta` from 1e-4 to 0.02 in equal steps, times 1000 / N so that the whole noise is that of N = 1000.

    Source: DDPM (arXiv:2006.11239), section 4; the factor is ours. For N of 50 and more: below, the first steps do it all.
    """
    share = [(n - 1) / max(steps - 1, 1) for n in range(1, steps + 1)]
    return [min((1e-4 + (0.02 - 1e-4) * s) * 1000 / steps, MAX_BETA) for s in share]


def cosine_betas(steps: int) -> list[float]:
    """`abar_n` proportional to `cos^2((n/N + 0.008) / 1.008 pi/2)`.

    Source: Nichol, Dhariwal (2021), arXiv:2102.09672, Eq. 17.
    """
    left = [math.cos((n / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(steps + 1)]
    return [min(1.0 - left[n] / left[n - 1], MAX_BETA) for n in range(1, steps + 1)]


def vp_betas(steps: int) -> list[float]:
    """`beta_n = 1 - exp(-b_min/N - (b_max - b_min) (2n - 1) / (2 N^2))`, so that `abar_N = exp(-5.05)` for every N.

    Source: Xiao, Kreis, Vahdat (2022), arXiv:2112.07804, the variance-preserving process in N steps; b_min and b_max are
    those of BDPO's authors' code.
    """
    slope = (B_MAX - B_MIN) / (2 * steps**2)
    return [-math.expm1(-B_MIN / steps - slope * (2 * n - 1)) for n in range(1, steps + 1)]


def geometric_betas(steps: int) -> list[float]:
    """Noise over signal, `sqrt((1 - abar_n) / abar_n)`, from 0.05 at n = 1 by equal factors to that of `vp` at N.

    Five steps of `vp` begin at 0.49, far above the spread of what a nearly deterministic agent does: the last steps then say
    nothing of how narrow the data are. Levels in equal factors: Song, Ermon (2019), arXiv:1907.05600; in this form ours.
    """
    last = math.sqrt(math.expm1((B_MIN + B_MAX) / 2))
    ratios = [FINEST * (last / FINEST) ** (n / (steps - 1)) for n in range(steps)] if steps > 1 else [last]
    bars = [1.0, *(1.0 / (1.0 + ratio**2) for ratio in ratios)]
    return [1.0 - after / before for before, after in zip(bars[:-1], bars[1:], strict=True)]


def vp_toy_betas(steps: int) -> list[float]:
    """`vp` as points 4.5 times as large would meet it, written for points in [-1, 1].

    `4.5 x_0 sqrt(abar) + sqrt(1 - abar) eps` has, divided by its size `sqrt(4.5^2 abar + 1 - abar)`, the form of Eq. 4 with
    `abar' = 4.5^2 abar / (4.5^2 abar + 1 - abar)`. So the last steps are as fine against the data as with the toy tasks of
    arXiv:2304.12824 in their own units (datasets/toy.py), and a ninth of the variance at N is the data's. Ours.
    """
    share, bars = TOY_SIZE**2, [1.0]
    for beta in vp_betas(steps):
        bars.append(bars[-1] * (1.0 - beta))
    bars = [share * bar / (share * bar + 1.0 - bar) for bar in bars]
    return [1.0 - after / before for before, after in zip(bars[:-1], bars[1:], strict=True)]


BETAS: dict[str, Callable[[int], list[float]]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "vp": vp_betas,
    "geometric": geometric_betas,
    "vp_toy": vp_toy_betas,
}


class ReverseStep(NamedTuple):
    """What a step n -> m does: plain numbers, or tensors (seeds, batch, 1) where each row has a step of its own.

    Attributes:
        signal: `sqrt(abar_n)`.
        noise: `sqrt(1 - abar_n)`.
        from_clean: factor of the clean estimate in the mean of x_m.
        from_noisy: factor of x_n in it.
        std: standard deviation of x_m.
        penalty: factor on `(eps_p - eps_q)^2` in the divergence of two such steps (of DDPM's, n -> n-1).
    """

    signal: float | Tensor
    noise: float | Tensor
    from_clean: float | Tensor
    from_noisy: float | Tensor
    std: float | Tensor
    penalty: float | Tensor


@dataclass(frozen=True)
class Schedule:
    """Noise of N steps, by n = 0..N (entry 0 is the clean action).

    Attributes:
        betas: variance that each step adds, `beta_0 = 0`.
        alpha_bars: share of the signal's variance left at n, from 1 downwards.
        interpolation: in [0, 1], of the reverse step's variance on a logarithmic scale: 1 for beta_n, right where actions
            spread as N(0, 1); 0 for the posterior's, right where they are one point.
    """

    betas: tuple[float, ...]
    alpha_bars: tuple[float, ...]
    interpolation: float = 1.0

    @classmethod
    def of(cls, name: str, steps: int, interpolation: float = 1.0) -> "Schedule":
        """A schedule of `steps` steps; `name` is a key of `BETAS`.

        Raises:
            ValueError: the name is unknown, there is not one step at least, or `interpolation` is not in [0, 1].
        """
        if name not in BETAS:
            raise ValueError(f"Unknown noise schedule {name!r}. Known: {', '.join(sorted(BETAS))}.")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"The number of diffusion steps must be a whole number of at least 1, got {steps}.")
        if not 0.0 <= interpolation <= 1.0:
            raise ValueError(f"The interpolation of the reverse variance must be in [0, 1], got {interpolation}.")
        betas = [0.0, *BETAS[name](steps)]
        bars = [math.prod(1.0 - beta for beta in betas[: n + 1]) for n in range(steps + 1)]
        return cls(tuple(betas), tuple(bars), interpolation)

    @property
    def steps(self) -> int:
        """N."""
        return len(self.betas) - 1

    def step(self, n: int, m: int | None = None, sampler: str = "ddpm") -> ReverseStep:
        """The reverse step from n to m < n (n - 1 unless given).

        `ddpm`: the mean of `q(x_m | x_n, x_0)` and a variance between `1 - abar_n / abar_m`, beta_n for neighbours, and
        that of `q` (Nichol, Dhariwal 2021, arXiv:2102.09672, Eq. 15 with a fixed v, the `interpolation`); **no noise where
        m = 0**, as BDPO's authors' code. `ddim`: the deterministic step, Eq. 12 of its paper with eta = 0.

        The penalty is that of the variance; where m = 0 that of beta_n, since q has none there.

        Raises:
            ValueError: no such sampler.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"Unknown sampler {sampler!r}. Known: {', '.join(SAMPLERS)}.")
        m = n - 1 if m is None else m
        bar, bar_m = self.alpha_bars[n], self.alpha_bars[m]
        if sampler == "ddim":
            from_noisy, std = math.sqrt((1.0 - bar_m) / (1.0 - bar)), 0.0
            from_clean = math.sqrt(bar_m) - from_noisy * math.sqrt(bar)
        else:
            alpha = bar / bar_m  # of the steps between taken together
            from_noisy = math.sqrt(alpha) * (1.0 - bar_m) / (1.0 - bar)
            from_clean = math.sqrt(bar_m) * (1.0 - alpha) / (1.0 - bar)
            std = math.sqrt((1.0 - alpha) * self.narrowing(n, m)) if m > 0 else 0.0
        beta = self.betas[n]
        penalty = beta / (2.0 * (1.0 - beta) * (1.0 - bar) * self.narrowing(n, n - 1))
        return ReverseStep(math.sqrt(bar), math.sqrt(1.0 - bar), from_clean, from_noisy, std, penalty)

    def narrowing(self, n: int, m: int) -> float:
        """Variance of the reverse step from n to m over the largest one; 1 where m = 0."""
        posterior = (1.0 - self.alpha_bars[m]) / (1.0 - self.alpha_bars[n])
        return posterior ** (1.0 - self.interpolation) if m > 0 else 1.0

    def table(self) -> Float[Tensor, "n 6"]:
        """DDPM's steps n -> n - 1 by n = 0..N, for rows that each have an n of their own; entry 0 changes nothing."""
        clean = ReverseStep(1.0, 0.0, 1.0, 0.0, 0.0, 0.0)
        return torch.tensor([clean, *(self.step(n) for n in range(1, self.steps + 1))])


def visited(steps: int, count: int | None) -> list[tuple[int, int]]:
    """The pairs (n, m) of a reverse pass from N to 0 in `count` steps, evenly spaced; None takes every step.

    Raises:
        ValueError: `count` is not in 1..N.
    """
    count = steps if count is None else count
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= steps:
        raise ValueError(f"A reverse pass has 1 to {steps} steps (the number of diffusion steps), got {count}.")
    stops = [round(steps * k / count) for k in range(count, -1, -1)]
    return list(zip(stops[:-1], stops[1:], strict=True))


def noised(
    clean: Float[Tensor, "seeds batch a"], noise: Float[Tensor, "seeds batch a"], step: ReverseStep
) -> Float[Tensor, "seeds batch a"]:
    """`x_n = sqrt(abar_n) x_0 + sqrt(1 - abar_n) eps`. Source: DDPM, Eq. 4."""
    return step.signal * clean + step.noise * noise


def clean_estimate(
    noisy: Float[Tensor, "seeds batch a"],
    predicted_noise: Float[Tensor, "seeds batch a"],
    step: ReverseStep,
    clip: float | None,
) -> Float[Tensor, "seeds batch a"]:
    """`x0_hat = (x_n - sqrt(1 - abar_n) eps) / sqrt(abar_n)`, in [-clip, clip] unless that is None."""
    estimate = (noisy - step.noise * predicted_noise) / step.signal
    return estimate if clip is None else estimate.clamp(-clip, clip)


def reverse_mean(
    noisy: Float[Tensor, "seeds batch a"],
    predicted_noise: Float[Tensor, "seeds batch a"],
    step: ReverseStep,
    clip: float | None,
) -> Float[Tensor, "seeds batch a"]:
    """Mean of x_m given x_n and the predicted noise. Source: DDPM, Eq. 7, at the clean estimate."""
    return step.from_clean * clean_estimate(noisy, predicted_noise, step, clip) + step.from_noisy * noisy


def step_kl(
    predicted: Float[Tensor, "seeds batch a"], reference: Float[Tensor, "seeds batch a"], step: ReverseStep
) -> Float[Tensor, "seeds batch"]:
    """KL `l_n` of two Gaussian reverse steps from the same x_n, out of their predicted noises; summed over the action.

    `||mu_p - mu_q||^2 / (2 beta_n) = beta_n / (2 (1 - beta_n) (1 - abar_n)) ||eps_p - eps_q||^2`, without clipped estimates;
    with a smaller variance than beta_n larger by as much.
    Source: BDPO (arXiv:2502.04778), Theorem 4.2; kept at n = 1 too, as in its authors' code.
    """
    return (step.penalty * (predicted - reference).square()).sum(-1)


def positional(steps: int, size: int) -> Float[Tensor, "n size"]:
    """`[cos(n f), sin(n f)]`, `f_i = exp(-i log(10000) / (size/2 - 1))`, for n = 0..N.

    Source: Vaswani et al. (2017), arXiv:1706.03762, section 3.5; in this order in BDPO's authors' code.

    Raises:
        ValueError: `size` is odd or below 4.
    """
    if not isinstance(size, int) or size < 4 or size % 2:
        raise ValueError(f"The time embedding's size must be an even number of at least 4, got {size}.")
    half = size // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10_000.0) / (half - 1)))
    angles = torch.arange(steps + 1, dtype=torch.float64).unsqueeze(1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def reverse_path(schedule: Schedule, sampler: str, count: int | None) -> list[tuple[int, ReverseStep]]:
    """The steps of a reverse pass with the n that each starts from.

    Raises:
        ValueError: the sampler is unknown, or `count` is not in 1..N.
    """
    return [(n, schedule.step(n, m, sampler)) for n, m in visited(schedule.steps, count)]


def noises_needed(path: Sequence[tuple[int, ReverseStep]]) -> int:
    """Standard normal numbers for each action dimension: the start, and one for each step that has noise."""
    return 1 + len([n for n, step in path if step.std != 0.0])
