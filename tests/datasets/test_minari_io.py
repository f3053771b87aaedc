import dataclasses
import errno
import os
import shutil
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest

from brpo.datasets import catalog, episodes, minari_io
from brpo.datasets.statistics import describe, discounted
from brpo.errors import UserError
from tests.conftest import random_episode, write_dataset

ID = "tests/made/data-v0"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def hand_made() -> list[dict]:
    """Two episodes: three steps that terminate, and a single step that is truncated. Pendulum's actions reach +-2."""
    return [
        {
            "observations": np.array([[0.0] * 3, [1.0] * 3, [2.0] * 3, [3.0] * 3]),
            "actions": np.array([[1.0], [-2.0], [0.0]], np.float32),
            "rewards": np.array([1.0, 2.0, 3.0]),
            "terminations": np.array([False, False, True]),
            "truncations": np.array([False, False, False]),
        },
        {
            "observations": np.array([[10.0] * 3, [11.0] * 3]),
            "actions": np.array([[2.5]], np.float32),
            "rewards": np.array([-4.0]),
            "terminations": np.array([False]),
            "truncations": np.array([True]),
        },
    ]


def test_hand_made_episodes(root: Path) -> None:
    write_dataset(root, ID, hand_made())
    flat = minari_io.load(ID)
    observation, action, reward, terminated, next_observation, next_action = (flat.rows[:, s] for s in flat.columns.slices)
    assert observation[:, 0].tolist() == [0, 1, 2, 10]
    assert next_observation[:, 0].tolist() == [1, 2, 3, 11]  # the last observation is the last next observation
    assert action[:, 0].tolist() == [0.5, -1.0, 0.0, 1.0]  # scaled by the bounds, 2.5 clipped to 2
    assert next_action[:, 0].tolist() == [-1.0, 0.0, 0.0, 1.0]
    assert reward[:, 0].tolist() == [1, 2, 3, -4]
    assert terminated[:, 0].tolist() == [0, 0, 1, 0]  # truncated is not terminated
    assert flat.ended.tolist() == [2, 1]
    assert flat.returns.tolist() == [6.0, -4.0]
    assert flat.lengths.tolist() == [3, 1]
    assert flat.clipped == 1
    assert flat.boundary_share == pytest.approx(0.5)
    assert flat.rows.dtype == np.float32


def test_what_the_metadata_say_of_evaluation(root: Path) -> None:
    write_dataset(root, ID, hand_made())
    flat = minari_io.load(ID)
    assert flat.references == (-1500.0, 0.0)
    for metadata, environment, references in (
        ({}, None, (None, None)),
        ({"env_spec": "a", "ref_min_score": 1, "ref_max_score": float("nan")}, "a", (None, None)),
        ({"env_spec": "a", "eval_env_spec": "b", "ref_min_score": 1, "ref_max_score": 2}, "b", (1.0, 2.0)),
    ):
        other = dataclasses.replace(flat, metadata=metadata)
        assert (other.environment, other.references) == (environment, references)


def test_actions_that_are_all_the_same_have_no_bounds(root: Path) -> None:
    spaces = [gymnasium.spaces.Box(-np.inf, np.inf, (size,)) for size in (3, 1)]
    write_dataset(root, ID, hand_made()[1:], env=None, observation_space=spaces[0], action_space=spaces[1], references=None)
    with pytest.raises(UserError, match=r"bounds have no width: low \[2.5\], high \[2.5\]"):
        minari_io.load(ID)


def test_digest_depends_on_every_field_and_on_nothing_else(root: Path) -> None:
    write_dataset(root, ID, hand_made())
    digest = minari_io.load(ID).digest
    write_dataset(root, "tests/made/copy-v0", hand_made(), references=None)
    assert minari_io.load("tests/made/copy-v0").digest == digest
    for number, field in enumerate(("observations", "actions", "rewards", "terminations", "truncations")):
        changed = hand_made()
        value = changed[1][field].copy()
        value[-1] = not value[-1] if value.dtype == bool else value[-1] + 1e-3
        changed[1][field] = value
        name = f"tests/made/changed{number}-v0"
        write_dataset(root, name, changed)
        assert minari_io.load(name).digest != digest, field


@pytest.mark.parametrize("names", [("observation", "achieved_goal", "desired_goal"), ("observation", "desired_goal")])
def test_goal_observations_are_joined(names: tuple[str, ...], root: Path) -> None:
    """What has been reached too, where it is: AntMaze has the place of the ant nowhere else."""
    box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    space = gymnasium.spaces.Dict(dict.fromkeys(sorted(names), box))
    episode = hand_made()[1]
    values = {
        "observation": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "achieved_goal": np.array([[5.0, 6.0], [5.0, 6.0]]),
        "desired_goal": np.array([[7.0, 8.0], [7.0, 8.0]]),
    }
    episode["observations"] = {name: values[name] for name in sorted(names)}
    actions = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    write_dataset(root, ID, [episode], env=None, observation_space=space, action_space=actions, references=None)
    flat = minari_io.load(ID)
    first, second = ([number for name in names for number in values[name][row]] for row in (0, 1))
    assert flat.rows[0, : len(first)].tolist() == first
    assert flat.rows[0, -1 - len(second) : -1].tolist() == second


@pytest.mark.parametrize(
    ("space", "actions", "name"),
    [
        (gymnasium.spaces.Discrete(2), np.array([0, 1, 0]), r"Discrete\(2\)"),
        (gymnasium.spaces.Box(0, 4, (1,), np.int64), np.array([[0], [4], [3]]), r"Box\(0, 4, \(1,\), int64\)"),
        (gymnasium.spaces.Box(0, 4, (0,)), np.zeros((3, 0)), r"Box\(\[\], \[\], \(0,\), float32\)"),
    ],
    ids=["discrete", "whole numbers", "none"],
)
def test_discrete_actions_are_refused(root: Path, space: gymnasium.Space, actions: np.ndarray, name: str) -> None:
    episode = {**random_episode(np.random.default_rng(0), 3), "actions": actions}
    box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    write_dataset(root, ID, [episode], env=None, observation_space=box, action_space=space, references=None)
    with pytest.raises(UserError, match=f"{name}; only continuous actions"):
        minari_io.load(ID)


def corrupt(root: Path, field: str, value: np.ndarray | None) -> None:
    """Replace (or remove) a field of episode 1 in the file."""
    with h5py.File(root / ID / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_1"][field]
        if value is not None:
            file["episode_1"][field] = value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("observations", np.array([[np.nan] * 3] * 2), "field observations holds NaN, infinity"),
        ("actions", np.array([[np.inf]]), "field actions holds NaN, infinity"),
        ("rewards", np.array([np.nan]), "field rewards holds NaN, infinity"),
        ("rewards", np.array([1.0, 2.0]), "field observations has 2 rows, expected 3 for 2 rewards"),
        ("rewards", np.array([[1.0]]), "field rewards has the shape"),
        ("rewards", np.array([]), "it is empty"),
        ("actions", np.array([[1.0], [2.0]]), "field actions has 2 rows, expected 1"),
        ("actions", np.array([[1.0, 2.0]]), "observation and action have sizes"),
        ("observations", np.zeros((2, 4)), r"have sizes \(4, 1\), expected \(3, 1\)"),
        ("observations", np.zeros((1, 3)), "field observations has 1 rows, expected 2"),
        ("terminations", np.array([False, False]), "field terminations has 2 rows, expected 1"),
        ("terminations", np.array([[False]]), r"field terminations has the shape \(1, 1\), expected 1 axes"),
        ("truncations", np.array([np.nan]), "field truncations holds NaN"),
        ("terminations", np.array([2]), r"field terminations holds \[2\], expected 0 and 1"),
        ("rewards", np.array([1e300]), "field rewards holds NaN, infinity or a number beyond float32 at step 0"),
        ("rewards", None, "cannot be read, the file is truncated, damaged or lacks a field"),
        ("truncations", None, "cannot be read, the file is truncated, damaged or lacks a field"),
    ],
)
def test_bad_fields_are_named_with_their_episode(root: Path, field: str, value: np.ndarray | None, message: str) -> None:
    write_dataset(root, ID, hand_made())
    corrupt(root, field, value)
    with pytest.raises(UserError, match=f"episode 1: .*{message}"):
        minari_io.load(ID)


def test_termination_in_the_middle_is_refused(root: Path) -> None:
    episodes = hand_made()
    episodes[0]["terminations"][0] = True
    write_dataset(root, ID, episodes)
    with pytest.raises(UserError, match="episode 0: it is terminated or truncated before its last step"):
        minari_io.load(ID)


def test_truncated_file_is_refused(root: Path) -> None:
    write_dataset(root, ID, hand_made())
    path = root / ID / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated, damaged"):
        minari_io.load(ID)


def test_broken_metadata_is_refused(root: Path) -> None:
    write_dataset(root, ID, hand_made())
    (root / ID / "data" / "metadata.json").write_text("{")
    with pytest.raises(UserError, match="cannot be opened"):
        minari_io.load(ID)


@pytest.mark.parametrize("dataset_id", ["brpo/halfcheetah/medium-replay", "../secret-v0", "a b-v0", ""])
def test_malformed_ids(root: Path, dataset_id: str) -> None:
    with pytest.raises(UserError, match="is not a Minari id"):
        minari_io.load(dataset_id)


def test_an_id_without_version_is_completed_in_the_message(root: Path) -> None:
    with pytest.raises(UserError, match="Did you mean brpo/halfcheetah/medium-replay-v0"):
        minari_io.load("brpo/halfcheetah/medium-replay")


def test_minaris_own_folder_is_searched_where_no_other_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / ".minari" / "datasets", "own/x-v0", hand_made())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    own = tmp_path / ".minari" / "datasets" / "own"
    assert catalog.local_ids()["own/x-v0"] == own / "x-v0"
    (tmp_path / ".minari" / "datasets" / "linked").symlink_to(own)
    (own / "circle").symlink_to(own)
    assert {"own/x-v0", "linked/x-v0"} == {known for known in catalog.local_ids() if "x-v0" in known}
    (own / "circle").unlink()
    (tmp_path / ".minari" / "datasets" / "linked").unlink()
    assert catalog.find_dataset("own/x-v0").name == "x-v0"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    assert "own/x-v0" not in catalog.local_ids()


def test_unknown_id_without_network_says_what_is_local(root: Path) -> None:
    with pytest.raises(
        UserError, match=r"could not be downloaded .*Local ids: .*brpo/halfcheetah/medium-replay-v0"
    ) as caught:
        minari_io.load("mujoco/hopper/medium-v0")
    assert "\n" not in str(caught.value)
    assert f"get it by: MINARI_DATASETS_PATH={root} minari download mujoco/hopper/medium-v0" in str(caught.value)
    assert not list(root.glob("mujoco/**/*.hdf5"))  # nothing half-written


def test_a_misspelt_id_is_completed_before_what_is_local(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(dataset_id: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(catalog.minari, "download_dataset", fake)
    with pytest.raises(UserError, match=r"no network\). Did you mean brpo/halfcheetah/medium-replay-v0\? Local ids"):
        minari_io.load("brpo/halfcheetah/medium-reply-v0")


def test_download_goes_into_the_first_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(dataset_id: str) -> None:
        write_dataset(Path(os.environ["MINARI_DATASETS_PATH"]), dataset_id, hand_made())

    monkeypatch.setattr(catalog.minari, "download_dataset", fake)
    assert len(minari_io.load("far/away-v0").rows) == 4
    assert (root / "far" / "away-v0" / "data").is_dir()


def test_a_download_is_seen_when_it_is_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one that was killed is no data set; nor is what another process is downloading."""
    torn = root / ".unfinished" / "far-away-v0" / "far" / "away-v0" / "data"
    torn.mkdir(parents=True)
    (torn / "metadata.json").write_text("{")

    def fake(dataset_id: str) -> None:
        write_dataset(Path(os.environ["MINARI_DATASETS_PATH"]), dataset_id, hand_made())
        assert list(catalog._below(root)) == []  # what another process sees meanwhile

    monkeypatch.setattr(catalog.minari, "download_dataset", fake)
    (root / "far" / "away-v0").mkdir(parents=True)  # empty: no data set either
    assert len(minari_io.load("far/away-v0").rows) == 4
    assert [path.name for path in (root / ".unfinished").iterdir()] == ["far-away-v0.lock"]


def test_a_namespace_may_be_a_link_to_another_disk(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(dataset_id: str) -> None:
        write_dataset(Path(os.environ["MINARI_DATASETS_PATH"]), dataset_id, hand_made())

    def rename(self: Path, target: Path) -> Path:
        if self.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return Path(shutil.move(self, target))

    monkeypatch.setattr(catalog.minari, "download_dataset", fake)
    monkeypatch.setattr(Path, "rename", rename)
    (disk := tmp_path / "disk").mkdir()
    root.mkdir(exist_ok=True)
    (root / "far").symlink_to(disk)
    assert len(minari_io.load("far/away-v0").rows) == 4
    assert sorted(path.name for path in disk.iterdir()) == ["away-v0", "namespace_metadata.json"]


def test_bundled_data_set() -> None:
    """The figures that its README and ours state."""
    flat = minari_io.load("brpo/halfcheetah/medium-replay-v0")
    assert (len(flat.rows), len(flat.lengths)) == (60_000, 60)
    assert flat.ended.tolist() == [1] * 60
    assert (flat.returns.mean(), flat.returns.min(), flat.returns.max()) == pytest.approx((2606, -306, 4519), abs=0.5)
    lines = describe(flat)
    assert lines["normalized score"].startswith("23.2")
    assert lines["episodes"] == "60: 0 terminated, 60 truncated, 0 neither"
    stds = [float(number) for number in lines["observation std, by dimension"].split()]
    assert stds == pytest.approx(flat.rows[:, :17].astype(np.float64).std(0), rel=5e-3)


def test_discounted_returns_by_hand(root: Path) -> None:
    """Each from the start of its episode: Horner's rule over its rewards."""
    rng = np.random.default_rng(4)
    write_dataset(root, ID, [random_episode(rng, length) for length in (5, 2, 9)])
    flat, expected = minari_io.load(ID), []
    for rewards in np.split(flat.rows[:, flat.columns.slices[2]][:, 0], np.cumsum(flat.lengths)[:-1]):
        total = 0.0
        for reward in rewards[::-1]:
            total = reward + 0.9 * total
        expected.append(total)
    np.testing.assert_allclose(discounted(flat, 0.9), expected, rtol=1e-5)
    np.testing.assert_allclose(discounted(flat, 1.0), flat.returns, rtol=1e-5)
    assert describe(flat)["return at a discount, mean and std"].startswith(f"0.99: {discounted(flat, 0.99).mean():.1f} +- ")


def test_checking_finds_what_loading_finds(root: Path) -> None:
    write_dataset(root, ID, hand_made())
    checked, flat = minari_io.check(ID), minari_io.load(ID)
    assert (checked.digest, checked.lengths.tolist(), checked.clipped) == (flat.digest, [3, 1], 1)
    corrupt(root, "rewards", np.array([np.nan]))
    with pytest.raises(UserError, match="episode 1: the field rewards holds NaN"):
        minari_io.check(ID)


def test_many_episodes_are_read_in_their_order(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    write_dataset(root, ID, [random_episode(rng, 2 + k) for k in range(7)])
    whole = minari_io.load(ID)
    monkeypatch.setattr(episodes, "_AT_ONCE", 3)
    parts = minari_io.load(ID)
    assert parts.lengths.tolist() == list(range(2, 9))
    assert parts.digest == whole.digest
    assert np.array_equal(parts.rows, whole.rows)


@pytest.mark.parametrize("bound", [np.inf, np.finfo(np.float32).max])
def test_moments_and_extremes_of_all_episodes(root: Path, bound: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Over blocks as over the whole; an unbounded action space takes the extremes of the data, not of one episode."""
    rng = np.random.default_rng(3)
    episodes = [random_episode(rng, 4 + k) for k in range(5)]
    box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    actions = gymnasium.spaces.Box(-bound, bound, (1,), np.float32)
    write_dataset(root, ID, episodes, env=None, observation_space=box, action_space=actions, references=None)
    flat = minari_io.load(ID)
    assert "note: the action space is unbounded" in capsys.readouterr().out
    everything = np.concatenate([episode["actions"] for episode in episodes])
    assert (flat.action_low[0], flat.action_high[0]) == (everything.min(), everything.max())
    observations = flat.rows[:, :3].astype(np.float64)
    assert np.allclose(flat.observation_mean, observations.mean(0), rtol=0, atol=1e-12)
    assert np.allclose(flat.observation_std, observations.std(0), rtol=0, atol=1e-12)
