import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from brpo import cli
from brpo.datasets import catalog, minari_io, sources, toy
from brpo.datasets.datamodule import OfflineDataModule
from brpo.errors import UserError
from brpo.evaluation.toy import Target
from tests.helpers import ROOT

every_task = pytest.mark.parametrize("dataset_id", toy.ids())
DIGESTS = {  # another one is another data set: runs on it cannot be resumed, nor compared
    "toy/8gaussians": "4cd586c17696",
    "toy/2spirals": "fdb74012e0fd",
    "toy/moons": "1e2d2f098ab3",
    "toy/swissroll": "61f21cbe90f5",
    "toy/rings": "1911dec49390",
    "toy/circles": "b34428fa7c9d",
    "toy/checkerboard": "4bceb6903a47",
}


@every_task
def test_the_same_transitions_at_each_call(dataset_id: str) -> None:
    """One state, points in the square, energies in [0, 1] as rewards, episodes of one terminated step."""
    flat, again = sources.load(dataset_id), sources.check(dataset_id)
    assert flat.digest == again.digest
    assert flat.digest.startswith(DIGESTS[dataset_id])
    observations, actions, rewards, terminated, following, _ = (flat.rows[:, place] for place in flat.columns.slices)
    assert actions.shape == (toy.POINTS, 2)
    assert np.abs(actions).max() < 1.0  # so none was clipped
    assert rewards.min() >= 0.0
    assert rewards.max() <= 1.0
    assert not observations.any()
    assert not following.any()
    assert (terminated == 1.0).all()
    assert (flat.lengths == 1).all()
    assert (flat.ended == 2).all()
    assert np.array_equal(rewards[:, 0], toy.energy(dataset_id, actions))
    assert flat.returns == pytest.approx(rewards[:, 0])


def test_another_seed_draws_other_points_of_the_same_distribution() -> None:
    first, second = toy.sample("toy/moons", 20_000), toy.sample("toy/moons", 20_000, seed=1)
    assert not np.array_equal(first, second)
    assert first.mean(0) == pytest.approx(second.mean(0), abs=0.02)
    assert first.std(0) == pytest.approx(second.std(0), abs=0.02)


def at(*points: tuple[float, float]) -> np.ndarray:
    """Points of the source's units in ours."""
    return np.array(points, np.float32) / toy.FRAME


@pytest.mark.parametrize(
    ("name", "points", "energies"),
    [
        ("8gaussians", at((0, 2.8), (-2, 2), (-2.8, 0), (0, -2.8), (2.8, 0), (2, 2)), [0, 1 / 7, 2 / 7, 4 / 7, 6 / 7, 1]),
        ("2spirals", at((0, 0), (1, 0), (0, -2), (4, 0)), [1, 0.7, 0.4, 0]),
        ("moons", at((-1, 1.8), (-3, -0.2), (1, -1.2), (3, 0.8)), [0, 0, 1, 1]),
        ("swissroll", at((0, 0), (0, 1.5), (3, 0), (4, 0)), [0, 0.25, 1, 1]),
        ("rings", at((0.75, 0), (0, 1.5), (-2.25, 0), (0, -3)), [0, 1, 1 / 3, 2 / 3]),
        ("circles", at((1.5, 0), (0, -3)), [1, 0]),
        ("checkerboard", at((-3, -3), (-1, 3), (1, 1), (3, -1)), [1, 0, 1, 0]),
    ],
)
def test_energies_by_hand(name: str, points: np.ndarray, energies: list[float]) -> None:
    assert toy.energy(f"toy/{name}", points) == pytest.approx(energies, abs=1e-6)


@pytest.mark.parametrize("name", ["8gaussians", "rings", "circles", "checkerboard"])
def test_modes_have_equal_shares(name: str) -> None:
    shares = toy.mode_shares(f"toy/{name}", toy.sample(f"toy/{name}"))
    assert shares is not None
    assert shares == pytest.approx(np.full(len(shares), 1 / len(shares)), abs=0.005)
    assert toy.mode_shares("toy/swissroll", at((0, 0))) is None


def test_points_lie_where_the_source_has_them() -> None:
    """Circles of one radius and noise, filled squares, moons at their place."""
    radius = toy.FRAME * np.linalg.norm(toy.sample("toy/rings"), axis=-1)
    inner = radius[radius < 1.1]
    assert (inner.mean(), inner.std()) == pytest.approx((0.75, 0.08), abs=0.01)
    board = toy.FRAME * toy.sample("toy/checkerboard")
    assert (np.floor(board / 2).sum(-1) % 2 == 0).all()
    moons = toy.FRAME * toy.sample("toy/moons")
    upper = moons[toy.energy("toy/moons", moons / toy.FRAME) == 0]
    assert upper.mean(0) == pytest.approx((-1.0, -0.2 + 4 / np.pi), abs=0.05)  # a half circle of radius 2 about (-1, -0.2)


def test_an_unknown_task_is_refused_with_the_list() -> None:
    message = r"dataset=toy/9gaussians is not a toy task. Known: toy/8gaussians, toy/2spirals, .*toy/checkerboard"
    for refuse in (sources.load, sources.check, catalog.find_dataset):
        with pytest.raises(UserError, match=message):
            refuse("toy/9gaussians")


def test_a_task_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of docs/toy.md; and what is refused of others."""
    monkeypatch.setattr(toy, "TASKS", dict(toy.TASKS))
    (snippet,) = re.findall(r"```python\n(def _draw_cross.*?)```", (ROOT / "docs" / "toy.md").read_text(), re.DOTALL)
    exec(snippet, vars(toy).copy())
    assert "toy/cross" in toy.ids()
    target = Target.of("toy/cross", 0.06)
    assert target.points.shape == (toy.POINTS, 2)
    assert target.energies.mean() == pytest.approx(0.5, abs=0.01)
    assert target.energy_mean > 0.99999
    cross = toy.TASKS["cross"]
    toy.TASKS["far"] = replace(cross, energy=lambda points: points[:, 0])
    with pytest.raises(UserError, match=r"energies of toy/far must be one number in \[0, 1\] .*\(100000,\) from -2.99"):
        Target.of("toy/far", 0.06)
    toy.TASKS["line"] = replace(cross, draw=lambda draws: cross.draw(draws)[:, :1])
    with pytest.raises(UserError, match=r"toy/line must draw finite points \(100000, 2\), got \(100000, 1\)"):
        toy.sample("toy/line")


def test_files_are_asked_for_in_vain() -> None:
    with pytest.raises(UserError, match="toy/moons is generated and has no files. Use data.storage=device"):
        catalog.find_dataset("toy/moons")


def datamodule(dataset_id: str) -> OfflineDataModule:
    module = OfflineDataModule(
        dataset_id, storage="device", normalize_observations=False, reward_scale=1.0, reward_shift=0.0, heldout=0.05,
        evaluate_every=10, max_updates=10, chunk=10,
    )  # fmt: skip
    module.setup()
    return module


def test_a_spec_says_that_every_transition_is_terminated(datasets: object) -> None:
    spec = datamodule("toy/rings").spec
    assert spec.one_step
    assert not datamodule("tests/pendulum/tiny-v0").spec.one_step
    values = spec.to_dict()
    assert type(spec).from_dict(values) == spec
    del values["one_step"]  # a checkpoint from before
    assert not type(spec).from_dict(values).one_step
    with pytest.raises(ValueError, match="DataSpec has the keys"):
        type(spec).from_dict({**values, "unknown": 1})
    del values["digest"]
    with pytest.raises(ValueError, match="DataSpec has the keys"):
        type(spec).from_dict(values)


def test_minari_ids_go_to_minari(datasets: object) -> None:
    assert sources.load("tests/pendulum/tiny-v0").digest == minari_io.load("tests/pendulum/tiny-v0").digest


def test_the_command_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "console", Console(width=200))
    shown = CliRunner()
    listed = shown.invoke(cli.app, ["data", "list", "--no-remote"]).stdout
    assert "Generated: toy/8gaussians, toy/2spirals" in listed
    info = shown.invoke(cli.app, ["data", "info", "toy/circles"]).stdout
    assert "100000: 100000 terminated" in info
    assert "1 nearer to the inner circle" in info
    checked = shown.invoke(cli.app, ["data", "check", "toy/circles"]).stdout
    assert f"toy/circles: good. 100000 transitions in 100000 episodes, digest {DIGESTS['toy/circles']}" in checked
    assert "constant" not in checked  # the one state is meant to be
