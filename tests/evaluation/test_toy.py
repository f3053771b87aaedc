import math
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from brpo.datasets import toy
from brpo.errors import Interrupted
from brpo.evaluation import toy_pictures
from brpo.evaluation.distances import directions, resample, sliced_wasserstein, tilted_weights
from brpo.evaluation.kinds import ROLLOUTS, SAMPLES, kind_of
from brpo.evaluation.toy import Target, ToyEvaluator

# --- Distances --------------------------------------------------------------------------------------------------------


def test_sliced_wasserstein_is_scipys_distance_of_the_projections() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(300, 2)), rng.uniform(-1, 2, size=(300, 2))
    expected = np.mean([wasserstein_distance(left @ way, right @ way) for way in directions(7)])
    assert sliced_wasserstein(left, right, 7) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_in_closed_form() -> None:
    """A shift by v: mean |cos| |v| = 2/pi |v|. A sample to itself in another order: 0. Symmetric."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(100, 2))
    assert sliced_wasserstein(points, points + np.array([0.3, -0.4])) == pytest.approx(0.5 * 2 / math.pi, rel=1e-3)
    assert sliced_wasserstein(points, rng.permutation(points)) == pytest.approx(0, abs=1e-12)
    other = rng.normal(size=(100, 2))
    assert sliced_wasserstein(points, other) == pytest.approx(sliced_wasserstein(other, points))
    with pytest.raises(ValueError, match="the shape"):
        sliced_wasserstein(points, other[:50])


def test_resampling_keeps_the_weights() -> None:
    assert resample(np.array([0.25, 0.5, 0.25]), np.array([0.1, 0.26, 0.7, 0.76, 1 - 1e-12])).tolist() == [0, 1, 1, 2, 2]
    weights = tilted_weights(np.array([0.0, 1.0]), 0.5)
    assert weights == pytest.approx([1 / (1 + math.e**2), math.e**2 / (1 + math.e**2)])
    assert tilted_weights(np.array([0.0, 1.0]), 1e-6) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("eta", [0.06, 0.5])
def test_the_target_of_8gaussians_has_its_analytic_mode_shares(eta: float) -> None:
    """Energy k/7 is constant in a mode, and each of eight has an eighth of the data: shares `~ exp(k / (7 eta))`."""
    target = Target.of("toy/8gaussians", eta)
    weights = np.exp(np.arange(8) / (7 * eta))
    exact = weights / weights.sum()
    assert target.mode_shares == pytest.approx(exact, abs=0.005)
    assert target.energy_mean == pytest.approx(exact @ np.arange(8) / 7, abs=0.003)
    drawn = target.draw(10_000, "test")
    assert toy.mode_shares("toy/8gaussians", drawn) == pytest.approx(exact, abs=0.02)
    assert np.array_equal(drawn, target.draw(10_000, "test"))
    assert not np.array_equal(drawn, target.draw(10_000, "other"))


# --- Evaluation -------------------------------------------------------------------------------------------------------


class Policy:
    """Acts as it is told, for each seed."""

    device = "cpu"

    def __init__(self, *members: np.ndarray, paths: Any = None, value: Any = None) -> None:
        self.actions, self.paths, self.value = torch.from_numpy(np.stack(members)), paths, value

    def act(self, observations: torch.Tensor, deterministic: bool, step: int) -> torch.Tensor:
        assert observations.shape == (*self.actions.shape[:2], 1)
        assert not observations.any()
        assert not deterministic
        return self.actions

    def generation_paths(self, observations: torch.Tensor) -> Any:
        return self.paths

    def generation_value(self, observations: torch.Tensor, points: torch.Tensor, position: int) -> Any:
        assert observations.shape == (*points.shape[:2], 1)
        return None if self.value is None else self.value(points, position)


def test_the_target_itself_is_at_the_noise_floor_and_the_data_are_not() -> None:
    evaluator = ToyEvaluator("toy/8gaussians", 4000, 0.06)
    target, data = evaluator.target.draw(4000, "mine"), evaluator.target.points[:4000]
    good, plain = evaluator.evaluate(Policy(target, data), [3, 7], 50)
    assert (good.seed, plain.seed, good.update) == (3, 7, 50)
    assert good.sliced_wasserstein < 2 * good.noise_floor
    assert plain.sliced_wasserstein > 50 * plain.noise_floor
    assert (good.energy_mean, plain.energy_mean) == pytest.approx((good.energy_target, 0.5), abs=0.01)
    assert good.mode_error is not None
    assert plain.mode_error is not None
    assert good.mode_error < 0.02
    assert plain.mode_error == pytest.approx(0.908 - 1 / 8, abs=0.02)  # one mode has too little by as much
    numbers = good.numbers()
    assert list(numbers)[:2] == ["sliced_wasserstein", "noise_floor"]
    assert sum(numbers[f"mode_share_{mode}"] or 0 for mode in range(8)) == pytest.approx(1)


def test_a_task_without_modes_has_no_shares() -> None:
    evaluator = ToyEvaluator("toy/swissroll", 100, 0.06)
    (summary,) = evaluator.evaluate(Policy(evaluator.target.points[:100]), [0], 1)
    assert (summary.mode_error, summary.mode_shares) == (None, ())
    assert not any(name.startswith("mode_share") for name in summary.numbers())


def test_an_evaluation_is_given_up_on_a_signal() -> None:
    evaluator = ToyEvaluator("toy/moons", 10, 0.06)
    with pytest.raises(Interrupted):
        evaluator.evaluate(Policy(np.zeros((10, 2), np.float32)), [0], 1, lambda: True)
    assert evaluator.pictures() == {}


def test_the_best_has_the_smallest_distance_but_the_largest_return() -> None:
    assert kind_of("toy/moons") is SAMPLES
    assert kind_of("mujoco/hopper/medium-v0") is ROLLOUTS
    rows = [{"update": u, "sliced_wasserstein": d, "return_mean": d} for u, d in ((5, 2.0), (10, 1.0), (15, 1.0), (20, 3.0))]
    assert (SAMPLES.best(rows), ROLLOUTS.best(rows), SAMPLES.best([])) == (10, 20, None)
    broken = [{"update": u, "sliced_wasserstein": math.nan, "return_mean": math.nan} for u in (1, 3)]
    assert (SAMPLES.best(broken + rows), ROLLOUTS.best(rows + broken), ROLLOUTS.best(broken)) == (10, 20, 1)
    assert "smallest mean sliced Wasserstein distance" in SAMPLES.rule
    assert "largest mean return" in ROLLOUTS.rule


# --- Pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_show_samples_and_paths() -> None:
    """The generation of two steps, given in the units of a policy of two seeds."""
    evaluator = ToyEvaluator("toy/circles", 50, 0.06)
    actions = evaluator.target.points[:50]
    paths = torch.stack([torch.linspace(2, 0, 3).view(3, 1, 1).expand(3, 5, 2)] * 2), torch.tensor([0.01, 0.5, 1.0])
    evaluator.evaluate(Policy(actions, actions, paths=paths), [0, 1], 1)
    found = evaluator.pictures()
    assert set(found) == {"samples", "paths"}
    for content in found.values():
        assert imageio.imread(content, extension=".png")[..., :3].std() > 10


def test_learned_values_are_compared_with_the_exact_one_and_drawn() -> None:
    """A value that is exact at the start for one seed, and off by 0.1 for the other; the picture gets a row more."""
    evaluator = ToyEvaluator("toy/circles", 50, 0.06)
    exact = 0.06 * math.log(0.5 * (math.exp(1 / 0.06) + 1))  # half of the points have energy 1
    assert evaluator.target.value == pytest.approx(exact, abs=1e-3)
    actions, asked = evaluator.target.points[:50], []

    def value(points: torch.Tensor, position: int) -> torch.Tensor:
        asked.append(position)
        return exact + torch.tensor([[0.0], [0.1]]) + 0.0 * points[..., 0]

    paths = torch.zeros(2, 3, 5, 2), torch.tensor([0.01, 0.5, 1.0])
    first, second = evaluator.evaluate(Policy(actions, actions, paths=paths, value=value), [0, 1], 1)
    assert (first.start_value, second.start_value) == pytest.approx((exact, exact + 0.1), abs=1e-6)
    assert first.start_exact == evaluator.target.value
    with_value = imageio.imread(evaluator.pictures()["paths"], extension=".png")
    assert set(asked) == {0, 1, 2}
    evaluator.evaluate(Policy(actions, actions, paths=paths), [0, 1], 1)
    plain = imageio.imread(evaluator.pictures()["paths"], extension=".png")
    assert with_value.shape[0] > 1.5 * plain.shape[0]


def test_a_row_for_each_task_and_a_column_for_each_method() -> None:
    rows = [
        toy_pictures.Row("toy/moons", {"data": np.zeros((4, 2)), "bc": np.full((5, 2), 0.5)}),
        toy_pictures.Row("toy/rings", {"data": np.zeros((4, 2)), "sfac": np.full((6, 2), 0.5)}),
    ]
    axes = toy_pictures.draw_samples(rows).axes[:6]
    assert [panel.get_title() for panel in axes] == ["data", "bc", "sfac", "", "", ""]
    assert [panel.get_visible() for panel in axes] == [True, True, False, True, False, True]
    assert [panel.get_ylabel() for panel in axes[::3]] == ["toy/moons", "toy/rings"]
    assert axes[1].collections[0].get_offsets().shape == (5, 2)
    across = toy_pictures.draw_samples(rows, across=True).axes[:6]
    assert [panel.get_title() for panel in across[:2]] == ["toy/moons", "toy/rings"]
    assert [panel.get_ylabel() for panel in across[::2]] == ["data", "bc", "sfac"]


def test_a_field_has_x_along_its_rows_and_begins_below() -> None:
    """Two points, right above and left below; with little noise each corner has the value of the nearer one."""
    points, energies = np.array([[0.9, 0.5], [-0.9, -0.5]]), np.array([1.0, 0.0])
    field = toy_pictures.value_field(points, energies, 1.0, 0.06, side=9)
    assert field.shape == (9, 9)
    assert (field[0, 0], field[-1, -1], field[0, -1]) == pytest.approx((0.0, 1.0, 1.0), abs=1e-6)
    flat = toy_pictures.value_field(points, energies, 0.0, 0.06, side=3)
    assert flat == pytest.approx(0.06 * math.log((math.exp(1 / 0.06) + 1) / 2))


def test_paths_are_drawn_from_panel_to_panel() -> None:
    paths = np.arange(2 * 3 * 4, dtype=float).reshape(4, 3, 2) / 24
    fields = {"exact": [np.zeros((5, 5))] * 2, "learned": [np.ones((5, 5))] * 2}
    figure = toy_pictures.draw_paths(paths, fields, [1, 3], [2.0, 1.0])
    first, second, below = figure.axes[:3]
    assert (first.get_ylabel(), below.get_ylabel()) == ("exact", "learned")
    assert np.asarray(below.images[0].get_array()).min() == 1.0
    assert [panel.get_title() for panel in (first, second)] == ["2 steps left", "0 steps left"]
    assert [len(line.get_xdata()) for line in first.lines] == [2, 2, 2]
    assert np.asarray(second.lines[1].get_ydata()).tolist() == paths[1:, 1, 1].tolist()
    assert np.asarray(second.collections[0].get_offsets()) == pytest.approx(paths[3])
    assert [list(panel.images[0].get_extent()) for panel in (first, second)] == [[-2, 2, -2, 2], [-1, 1, -1, 1]]
    wide = toy_pictures.draw_paths(paths, {"exact": [np.zeros((5, 5))]}, [1], [3.7]).axes[0]
    assert (wide.get_xlim(), wide.get_xticks().tolist()) == ((-3.7, 3.7), [-3, 0, 3])  # no white border round the field
