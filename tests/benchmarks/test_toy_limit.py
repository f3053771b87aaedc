"""The best chain of `benchmarks/toy_limit.py` where a pencil finds it too: Gaussian data, an energy that rises evenly."""

import math
from pathlib import Path

import numpy as np
import pytest
import toy_limit
import typer

from brpo.datasets import toy
from brpo.evaluation.distances import sliced_wasserstein
from brpo.evaluation.toy import Target
from brpo.functional.diffusion import Schedule
from tests.helpers import SMALL
from tests.test_diagnosis import saved_run

STD, SLOPE, ETA = 0.2, 0.5, 0.3


def linear_values(schedule: Schedule) -> tuple[float, float]:
    """`V_N(x) = slope x + height` along the axis of the energy.

    The behaviour's mean is linear there, `m_D(x) = k x` for data around 0; a slope a is worth a mean that is
    `a beta_n / eta` further, and `a^2 beta_n / (2 eta)` after its penalty.
    """
    slope, height = SLOPE, 0.0
    for n in range(1, schedule.steps + 1):
        bar, plan = schedule.alpha_bars[n], schedule.step(n)
        height += slope**2 * schedule.betas[n] / (2.0 * ETA)
        clean = math.sqrt(bar) * STD**2 / (bar * STD**2 + 1.0 - bar)  # E[x_0 | x_n] over x_n
        slope *= float(plan.from_clean) * clean + float(plan.from_noisy)
    return slope, height


@pytest.fixture(scope="module")
def solved() -> tuple[list, object, Schedule]:
    schedule = Schedule.of("vp", 10)
    points = STD * np.random.default_rng(0).standard_normal((200_000, 2))
    return *toy_limit.solve(points, lambda at: SLOPE * at[:, 0], ETA, schedule, 129), schedule


def test_values_of_a_linear_energy(solved: tuple) -> None:
    _, last, schedule = solved
    slope, height = linear_values(schedule)
    at = np.array([[-1.0, 0.3], [0.0, 0.0], [1.0, -1.0]])
    np.testing.assert_allclose(last.at(at), slope * at[:, 0] + height, atol=2e-3)


def test_the_actor_goes_uphill_by_as_much_as_the_penalty_allows(solved: tuple) -> None:
    steps, _, schedule = solved
    noisy = np.zeros((1, 2))
    moved = steps[0].actor(noisy) - steps[0].behavior(noisy)
    np.testing.assert_allclose(moved, [[SLOPE * schedule.betas[1] / ETA, 0.0]], atol=1e-4)


def test_the_behaviour_chain_draws_the_data(solved: tuple) -> None:
    steps, _, _ = solved
    noise = np.random.default_rng(1)
    drawn = toy_limit.samples(steps, noise.standard_normal((20_000, 2)), noise, behavior=True)
    np.testing.assert_allclose(drawn.mean(0), 0.0, atol=0.01)
    assert (np.abs(drawn.std(0) - STD) < 0.15 * STD).all()  # ten steps of fixed variance are not the exact ones


def test_penalties_of_the_best_chain(solved: tuple) -> None:
    """Each step goes `slope_n beta_n / eta` further, which costs `slope_n^2 beta_n / (2 eta^2)` nats wherever it begins."""
    steps, _, schedule = solved
    slope, expected = SLOPE, []
    for n in range(1, schedule.steps + 1):
        bar, plan = schedule.alpha_bars[n], schedule.step(n)
        expected.append(slope**2 * schedule.betas[n] / (2.0 * ETA**2))
        clean = math.sqrt(bar) * STD**2 / (bar * STD**2 + 1.0 - bar)
        slope *= float(plan.from_clean) * clean + float(plan.from_noisy)
    found = toy_limit.penalties(steps, np.random.default_rng(2), schedule)
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=1e-3)


def test_parts_of_a_run_in_the_best_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was not trained moves nothing: with its moves the best chain is the behaviour's."""
    for name, value in {"DENSITY": 20_000, "SAMPLES": 500, "EXCHANGES": 1}.items():
        monkeypatch.setattr(toy_limit, name, value)
    run = saved_run(tmp_path / "run", "bdpo", "dataset=toy/moons")
    best, with_behavior, with_moves, with_both = toy_limit.exchanged(run, 65)
    points = toy.sample("toy/moons", 20_000, seed=toy.SEED + 1).astype(np.float64)
    steps, _ = toy_limit.solve(
        points, lambda at: toy.energy("toy/moons", at), 0.06, Schedule.of("vp_toy", SMALL["steps"]), 65
    )
    reference, found = Target.of("toy/moons", 0.06).draw(500, "reference"), []
    for behavior in (False, True):
        noise = np.random.default_rng(0)
        drawn = toy_limit.samples(steps, noise.standard_normal((500, 2)), noise, behavior=behavior)
        found.append(sliced_wasserstein(drawn, reference))
    assert [best, with_moves] == pytest.approx(found, rel=1e-5)
    assert min(with_behavior, with_both) > 2 * with_moves  # the behaviour model was not trained either


def test_an_exchange_needs_a_run() -> None:
    with pytest.raises(typer.BadParameter, match="name one with --run"):
        toy_limit.main(exchange=True)
