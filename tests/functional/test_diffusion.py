"""Schedules and steps against hand-computed numbers, chains of Gaussians against exact answers, and recorded values."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from brpo.functional import diffusion, ensembles
from brpo.functional.diffusion import ReverseStep, Schedule
from tests.helpers import ROOT

RECORDED = np.load(ROOT / "tests" / "oracles" / "bdpo" / "clip.npz")


def recorded(name: str) -> Tensor:
    return torch.from_numpy(RECORDED[name])


@pytest.mark.parametrize("steps", [1, 2, 5, 50, 1000])
def test_vp_ends_at_the_same_noise_for_every_number_of_steps(steps: int) -> None:
    assert Schedule.of("vp", steps).alpha_bars[-1] == pytest.approx(math.exp(-5.05), rel=1e-9)


@pytest.mark.parametrize("name", sorted(diffusion.BETAS))
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_schedules_only_add_noise(name: str, steps: int) -> None:
    schedule = Schedule.of(name, steps)
    assert (schedule.steps, schedule.betas[0], schedule.alpha_bars[0]) == (steps, 0.0, 1.0)
    assert all(0 < beta <= diffusion.MAX_BETA for beta in schedule.betas[1:])
    assert sorted(schedule.alpha_bars, reverse=True) == list(schedule.alpha_bars)


def test_linear_and_cosine_by_hand() -> None:
    """1000 steps are DDPM's own, of 50 each is 20 times as large; half way along the cosine, cos^2((0.5 + 0.008) / 1.008
    pi/2) over its start is left.
    """
    linear = Schedule.of("linear", 1000)
    assert linear.betas[1] == pytest.approx(1e-4)
    assert linear.betas[1000] == pytest.approx(0.02)
    assert Schedule.of("linear", 50).betas[1] == pytest.approx(2e-3)
    start, half = (math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0.0, 0.5))
    assert Schedule.of("cosine", 10).alpha_bars[5] == pytest.approx(half / start)


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_vp_toy_is_vp_of_points_that_are_larger(steps: int) -> None:
    """Signal over noise at every n is that of 4.5 times the point under vp."""
    toy, vp = (Schedule.of(name, steps).alpha_bars[1:] for name in ("vp_toy", "vp"))
    for ours, theirs in zip(toy, vp, strict=True):
        assert math.sqrt(ours / (1 - ours)) == pytest.approx(4.5 * math.sqrt(theirs / (1 - theirs)), rel=1e-9)


@pytest.mark.parametrize("steps", [2, 5, 50])
def test_geometric_goes_by_equal_factors_from_the_finest_level_to_the_end_of_vp(steps: int) -> None:
    bars = Schedule.of("geometric", steps).alpha_bars[1:]
    levels = [math.sqrt((1 - bar) / bar) for bar in bars]
    assert levels[0] == pytest.approx(0.05)
    assert bars[-1] == pytest.approx(math.exp(-5.05), rel=1e-9)
    factors = [after / before for before, after in zip(levels[:-1], levels[1:], strict=True)]
    assert factors == pytest.approx([factors[0]] * (steps - 1))


def test_one_step_of_geometric_is_that_of_vp() -> None:
    one, vp = (Schedule.of(name, 1).alpha_bars for name in ("geometric", "vp"))
    assert one == pytest.approx(vp)


def test_recorded_schedule_embedding_and_aggregation() -> None:
    schedule = Schedule.of("vp", 5)
    assert torch.allclose(torch.tensor(schedule.betas), recorded("schedule/betas"), rtol=1e-5)
    assert torch.allclose(torch.tensor(schedule.alpha_bars), recorded("schedule/alpha_hats"), rtol=1e-5)
    assert torch.allclose(schedule.table()[1:, 5], recorded("schedule/penalty_weight"), rtol=1e-5)
    assert torch.allclose(diffusion.positional(5, 8), recorded("embedding/positional"), atol=1e-6)
    values = recorded("aggregate/values").squeeze(-1).unsqueeze(0)  # (seeds, critics, batch, samples)
    for samples in ("mean", "max"):
        for critics in ("min", "lcb"):
            value = ensembles.over_critics(ensembles.OVER_SAMPLES[samples](values), critics, 0.5)
            assert torch.allclose(value[0], recorded(f"aggregate/{samples}_{critics}")[:, 0], atol=1e-6)


def test_an_ensemble_of_one_has_a_gradient() -> None:
    values = torch.ones(1, 1, 3, requires_grad=True)
    ensembles.over_critics(values, "lcb", 2.0).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.ones(1, 1, 3))


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
@pytest.mark.parametrize(("n", "m"), [(1, 0), (3, 2), (5, 2), (4, 0)])
def test_a_step_keeps_the_distribution_of_noised_actions(sampler: str, n: int, m: int) -> None:
    """With the true x_0, x_m has the mean sqrt(abar_m) x_0 and, with the posterior's variance, the variance 1 - abar_m.

    The posterior's variance is beta (1 - abar_m) / (1 - abar_n); the step takes the larger beta, as the authors do.
    """
    schedule = Schedule.of("vp", 5)
    step, bar, bar_m = schedule.step(n, m, sampler), schedule.alpha_bars[n], schedule.alpha_bars[m]
    clean, noise = torch.tensor([[[0.7]]]), torch.tensor([[[-1.3]]])
    noisy = diffusion.noised(clean, noise, step)
    assert diffusion.clean_estimate(noisy, noise, step, None).item() == pytest.approx(0.7, rel=1e-5)
    mean = diffusion.reverse_mean(noisy, noise, step, None)
    assert mean.item() - step.from_noisy * step.noise * -1.3 == pytest.approx(math.sqrt(bar_m) * 0.7, rel=1e-5)
    passed_on = (step.from_noisy * step.noise) ** 2
    if sampler == "ddim":
        assert passed_on == pytest.approx(1 - bar_m)
    else:
        assert passed_on + (1 - bar / bar_m) * (1 - bar_m) / (1 - bar) == pytest.approx(1 - bar_m)
        assert step.std == pytest.approx(math.sqrt(1 - bar / bar_m) if m else 0.0)


def test_the_clip_holds_the_clean_estimate() -> None:
    step = Schedule.of("vp", 5).step(3)
    noisy = torch.tensor([[[30.0, -30.0, 0.01]]])
    estimate = diffusion.clean_estimate(noisy, torch.zeros(1, 1, 3), step, 1.0)
    assert estimate[0, 0, :2].tolist() == [1.0, -1.0]
    assert estimate[0, 0, 2].item() == pytest.approx(0.01 / step.signal)


def test_rows_with_steps_of_their_own_equal_plain_ones() -> None:
    schedule = Schedule.of("vp", 5)
    rows = ReverseStep(*schedule.table()[torch.tensor([[2, 5, 1]])].unsqueeze(-2).unbind(-1))
    noisy, predicted = torch.randn(1, 3, 2), torch.randn(1, 3, 2)
    means = diffusion.reverse_mean(noisy, predicted, rows, 1.0)
    penalties = diffusion.step_kl(noisy, predicted, rows)
    for row, n in enumerate((2, 5, 1)):
        own = (noisy[:, row : row + 1], predicted[:, row : row + 1], schedule.step(n))
        assert torch.allclose(means[:, row : row + 1], diffusion.reverse_mean(*own, 1.0), atol=1e-6)
        assert torch.allclose(penalties[:, row : row + 1], diffusion.step_kl(*own), rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "pairs"),
    [
        (1, [(5, 0)]),
        (2, [(5, 2), (2, 0)]),
        (3, [(5, 3), (3, 2), (2, 0)]),
        (5, [(5, 4), (4, 3), (3, 2), (2, 1), (1, 0)]),
    ],
)
def test_fewer_steps(count: int, pairs: list[tuple[int, int]]) -> None:
    assert diffusion.visited(5, count) == pairs
    path = diffusion.reverse_path(Schedule.of("vp", 5), "ddpm", count)
    assert diffusion.noises_needed(path) == count  # none in the last step, one at the start
    assert diffusion.noises_needed(diffusion.reverse_path(Schedule.of("vp", 5), "ddim", count)) == 1


@pytest.mark.parametrize("run", [
    lambda: Schedule.of("vq", 5), lambda: Schedule.of("vp", 0), lambda: Schedule.of("vp", 5, 1.5),
    lambda: diffusion.positional(5, 7),
    lambda: diffusion.visited(5, 6), lambda: diffusion.visited(5, 0),
    lambda: diffusion.reverse_path(Schedule.of("vp", 5), "dpm", None),
])  # fmt: skip
def test_refusals(run: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"Known|must be|1 to 5 steps"):
        run()


# --- Chains ---------------------------------------------------------------------------------------------------------------


def noisy_path(steps: int, interpolation: float = 1.0) -> list[tuple[int, ReverseStep]]:
    """With noise at n = 1: without it the last step of two chains has no common density."""
    schedule = Schedule.of("vp", steps, interpolation)
    path = diffusion.reverse_path(schedule, "ddpm", None)
    return [(n, step if n > 1 else step._replace(std=math.sqrt(schedule.betas[n]))) for n, step in path]


Predictor = Callable[[Tensor, int], Tensor]


def curved(shift: float) -> Predictor:
    return lambda x, n: torch.tanh(x.flip(-1) * 0.7 + 0.1 * n + shift) - 0.2 * x


def walk(first: Predictor, second: Predictor, path: list[tuple[int, ReverseStep]], chains: int) -> tuple[Tensor, Tensor]:
    """Chains of the first: sums of l_n, and log-ratios of the densities of both chains, (chains,)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, chains, 2, generator=generator, dtype=torch.float64)
    total, log_ratio = torch.zeros(1, chains, dtype=torch.float64), torch.zeros(1, chains, dtype=torch.float64)
    for n, step in path:
        ours, theirs = first(x, n), second(x, n)
        means = [diffusion.reverse_mean(x, predicted, step, None) for predicted in (ours, theirs)]
        total += diffusion.step_kl(ours, theirs, step)
        x = means[0] + step.std * torch.randn(1, chains, 2, generator=generator, dtype=torch.float64)
        ratios = [-(x - mean).square().sum(-1) / (2 * step.std**2) for mean in means]
        log_ratio += ratios[0] - ratios[1]
    return total[0], log_ratio[0]


def test_identical_chains_have_no_divergence() -> None:
    total, log_ratio = walk(curved(0.3), curved(0.3), noisy_path(4), 10)
    assert torch.equal(total, torch.zeros_like(total))
    assert torch.equal(log_ratio, torch.zeros_like(log_ratio))


@pytest.mark.parametrize("interpolation", [1.0, 0.5, 0.0])
def test_pathwise_kl_is_the_mean_log_ratio_of_the_chains(interpolation: float) -> None:
    """Theorem 4.2 by Monte Carlo: within four standard errors of the difference, which is 1 % here."""
    total, log_ratio = walk(curved(0.3), curved(-0.1), noisy_path(4, interpolation), 200_000)
    difference = total - log_ratio
    error = difference.std() / math.sqrt(len(difference))
    assert error < 0.01 * total.mean()
    assert difference.mean().abs() < 4 * error


def gaussian(mean: float, std: float, schedule: Schedule) -> Predictor:
    """The noise in x_n of x_0 ~ N(mean, std^2), given x_n: what a perfect model of such actions predicts."""

    def predict(x: Tensor, n: int) -> Tensor:
        bar = schedule.alpha_bars[n]
        return math.sqrt(1 - bar) * (x - math.sqrt(bar) * mean) / (bar * std**2 + 1 - bar)

    return predict


def joint(predictor: Predictor, path: list[tuple[int, ReverseStep]]) -> torch.distributions.MultivariateNormal:
    """The Gaussian of the whole chain x_N, ..., x_0 in one dimension: x_{n-1} = a x_n + b + std noise."""
    offset, mixing = torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for n, step in path:
        zero, one = (torch.full((1, 1, 1), v, dtype=torch.float64) for v in (0.0, 1.0))
        at_zero, at_one = (diffusion.reverse_mean(x, predictor(x, n), step, None).squeeze() for x in (zero, one))
        slope = at_one - at_zero
        offset = torch.cat([offset, (slope * offset[-1] + at_zero).view(1)])
        row = torch.cat([slope * mixing[-1], torch.tensor([step.std], dtype=torch.float64)])
        mixing = torch.cat([torch.nn.functional.pad(mixing, (0, 1)), row.unsqueeze(0)])
    return torch.distributions.MultivariateNormal(offset, scale_tril=mixing)


@pytest.mark.parametrize("interpolation", [1.0, 0.5, 0.0])
def test_linear_gaussian_chains_by_their_exact_divergence(interpolation: float) -> None:
    """KL of the joint Gaussians of both chains; E[l_n] from the marginals: l_n is the square of an affine function."""
    schedule, path = Schedule.of("vp", 5), noisy_path(5, interpolation)
    first, second = gaussian(0.4, 0.3, schedule), gaussian(-0.2, 0.5, schedule)
    chain = joint(first, path)
    exact = torch.distributions.kl_divergence(chain, joint(second, path))
    total = torch.zeros(())
    for k, (n, step) in enumerate(path):
        mean, std = chain.mean[k], chain.variance[k].sqrt()
        points = torch.stack([mean - std, mean, mean + std]).view(1, 3, 1)
        low, middle, high = diffusion.step_kl(first(points, n), second(points, n), step)[0]
        total = total + middle + (low + high - 2 * middle) / 2  # E f(x) for a parabola f
    assert total.item() == pytest.approx(exact.item(), rel=1e-9)


def test_a_long_chain_of_a_perfect_model_ends_in_the_data_distribution() -> None:
    schedule = Schedule.of("vp", 200)
    chain = joint(gaussian(0.4, 0.3, schedule), diffusion.reverse_path(schedule, "ddpm", None)[:-1])
    assert chain.mean[-1].item() == pytest.approx(0.4, abs=0.01)
    assert chain.variance[-1].sqrt().item() == pytest.approx(0.3, abs=0.01)


def share_of_the_spread(spread: float, schedule: Schedule) -> float:
    """Of what a perfect model of N(0.4, spread^2) samples, over the spread itself."""
    *path, (n, last) = diffusion.reverse_path(schedule, "ddpm", None)
    assert last.std == 0
    chain = joint(gaussian(0.4, spread, schedule), [*path, (n, last._replace(std=1e-9))])
    return chain.variance[-1].sqrt().item() / spread


@pytest.mark.parametrize(("spread", "vp"), [(0.05, 0.16), (0.1, 0.32), (0.2, 0.57), (0.3, 0.74)])
def test_five_geometric_steps_of_a_perfect_model_spread_as_the_data_do(spread: float, vp: float) -> None:
    """With variances half way between beta and the posterior's: with beta they spread too far, with the other too little."""
    beta, middle, posterior = (share_of_the_spread(spread, Schedule.of("geometric", 5, v)) for v in (1.0, 0.5, 0.0))
    assert middle == pytest.approx(1.0, abs=0.06)
    assert posterior < 0.65 < 1.6 < beta
    assert share_of_the_spread(spread, Schedule.of("vp", 5)) == pytest.approx(vp, abs=0.01)


def test_the_reverse_variance_lies_between_the_posteriors_and_beta() -> None:
    beta, middle, posterior = (Schedule.of("geometric", 5, v) for v in (1.0, 0.5, 0.0))
    for n, m in ((5, 4), (2, 1), (5, 2)):
        largest, between, smallest = (schedule.step(n, m).std for schedule in (beta, middle, posterior))
        assert between**2 == pytest.approx(largest * smallest)
        bar, bar_m = beta.alpha_bars[n], beta.alpha_bars[m]
        assert smallest**2 == pytest.approx((1 - bar / bar_m) * (1 - bar_m) / (1 - bar))
    assert middle.step(2).penalty * middle.step(2).std ** 2 == pytest.approx(beta.step(2).penalty * beta.step(2).std ** 2)
    assert middle.step(1) == beta.step(1) == posterior.step(1)


@pytest.mark.parametrize(("name", "width"), [("vp", 0.0631), ("vp_toy", 0.0140)])
def test_the_first_step_is_as_wide_as_its_schedule_says(name: str, width: float) -> None:
    """Structure of the data that is finer is lost on the way: a toy task's is 0.02 wide."""
    assert math.sqrt(Schedule.of(name, 50).betas[1]) == pytest.approx(width, rel=0.01)
