"""Flat files as D4RL's: which transitions become of their rows, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from minari.namespace import list_local_namespaces
from typer.testing import CliRunner, Result

from brpo import cli_data
from brpo.datasets import catalog, d4rl, minari_io, statistics
from brpo.datasets.datamodule import OfflineDataModule
from brpo.errors import UserError
from tests.conftest import Run

ID = "hopper-made-v2"
WIDE = np.stack([np.linspace(16, 28, 8), np.linspace(0, 1, 8)], 1)  # actions of two units
KEEP, STOP, CUT = (0, 0), (1, 0), (0, 1)  # flags of a row: terminal, timeout


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "sets"


def rows(following: bool = True, **changes: Any) -> dict[str, np.ndarray]:
    """Three rows that terminate, three that time out, two that trail; row k observes k, a next observation is k + 0.5
    where an episode ends.
    """
    flags = np.array([KEEP, KEEP, STOP, KEEP, KEEP, CUT, KEEP, KEEP], bool)
    seen = np.arange(8, dtype=np.float32)
    after = np.where(flags.any(1) | (seen == 7), seen + 0.5, seen + 1)
    arrays = {
        "observations": np.stack([seen, -seen], 1),
        "actions": np.linspace(-1, 1, 8, dtype=np.float32)[:, None],
        "rewards": np.array([1, 2, 3, 10, 20, 30, 100, 200], np.float32),
        "terminals": flags[:, 0],
        "timeouts": flags[:, 1],
    }
    if following:
        arrays["next_observations"] = np.stack([after, -after], 1).astype(np.float32)
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def write(folder: Path, arrays: dict[str, np.ndarray], name: str = "flat.hdf5") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".npz"):
        np.savez(folder / name, **arrays)  # type: ignore[arg-type]
    else:
        with h5py.File(folder / name, "w") as file:
            for key, value in arrays.items():
                file[key] = value
            file["infos/qpos"] = np.zeros(3)  # D4RL has more, of other lengths too
            file["metadata/algorithm"] = "SAC"
    return folder / name


def transitions(dataset_id: str = ID) -> list[tuple[float, ...]]:
    """Observation, action, reward, terminated, next observation of every row, and of the vectors the first entry."""
    flat = minari_io.load(dataset_id)
    columns = [flat.rows[:, place][:, 0].tolist() for place in flat.columns.slices[:5]]
    return list(zip(*columns, strict=True))


def expected(next_observation: dict[int, float]) -> list[tuple[float, ...]]:
    """The rows with these numbers, and what each of them leads to."""
    made = rows()
    return [
        (float(k), float(made["actions"][k, 0]), float(made["rewards"][k]), float(k == 2), after)
        for k, after in next_observation.items()
    ]


@pytest.mark.parametrize("name", ["flat.hdf5", "flat.npz"])
def test_every_row_where_next_observations_are_known(root: Path, tmp_path: Path, name: str) -> None:
    made = d4rl.import_file(write(tmp_path, rows(), name), ID, references=(-20.0, 3234.0))
    assert transitions() == expected({0: 1, 1: 2, 2: 2.5, 3: 4, 4: 5, 5: 5.5, 6: 7, 7: 7.5})
    flat = minari_io.load(ID)
    assert flat.ended.tolist() == [2, 1, 1]
    assert flat.lengths.tolist() == made.lengths.tolist() == [3, 3, 2]
    assert flat.returns.tolist() == made.returns.tolist() == [6, 60, 300]
    assert (made.rows, made.jumps, made.clipped, made.terminated.tolist()) == (8, 0, 0, [True, False, False])
    assert (flat.references, flat.environment) == ((-20.0, 3234.0), None)
    assert (flat.action_low.tolist(), flat.action_high.tolist()) == ([-1], [1])
    assert made.folder == root / ID == catalog.find_dataset(ID)
    assert [child.name for child in root.iterdir() if child.name != ".unfinished"] == [ID]
    read = minari.load_dataset(ID)
    assert (read.total_episodes, read.total_steps, read.id) == (3, 8, ID)


def test_without_next_observations_a_truncated_episode_loses_its_last_row(root: Path, tmp_path: Path) -> None:
    made = d4rl.import_file(write(tmp_path, rows(following=False)), ID)
    assert transitions() == expected({0: 1, 1: 2, 2: 2, 3: 4, 4: 5, 6: 7})  # 2 terminated, and repeats itself
    flat = minari_io.load(ID)
    assert flat.ended.tolist() == [2, 1, 1]
    assert flat.returns.tolist() == made.returns.tolist() == [6, 30, 100]
    assert flat.references == (None, None)


def test_an_episode_that_was_cut_after_a_row_is_left_out(root: Path, tmp_path: Path) -> None:
    flags = np.zeros(8, bool)
    flags[[0, 5]] = True
    made = d4rl.import_file(write(tmp_path, rows(following=False, timeouts=flags)), ID)
    assert transitions() == expected({1: 2, 2: 2, 3: 4, 4: 5, 6: 7})
    assert made.lengths.tolist() == [2, 2, 1]
    nothing = rows(following=False, timeouts=np.ones(8, bool), terminals=np.zeros(8, bool))
    with pytest.raises(UserError, match="has 8 rows and no transition with a known next observation"):
        d4rl.import_file(write(tmp_path, nothing), "hopper-other-v2")


def test_a_terminal_row_that_also_times_out_is_terminated(root: Path, tmp_path: Path) -> None:
    both = rows()["terminals"] | rows()["timeouts"]
    d4rl.import_file(write(tmp_path, rows(timeouts=both.astype(np.uint8))), ID)
    assert transitions() == expected({0: 1, 1: 2, 2: 2.5, 3: 4, 4: 5, 5: 5.5, 6: 7, 7: 7.5})
    episode = next(iter(minari.load_dataset(ID).iterate_episodes()))
    assert (episode.terminations.tolist(), episode.truncations.any()) == ([False, False, True], False)


def test_without_timeouts_an_episode_ends_after_so_many_steps(root: Path, tmp_path: Path) -> None:
    def limited(name: str, timeouts: np.ndarray | None) -> list[tuple[float, ...]]:
        d4rl.import_file(write(tmp_path, rows(following=False, timeouts=timeouts)), f"lab/{name}", max_steps=3)
        return transitions(f"lab/{name}")

    file = write(tmp_path, rows(following=False, timeouts=None))
    with pytest.raises(UserError, match=r"has no timeouts, as D4RL's -v0 files; name the longest episode: --max-steps N"):
        d4rl.import_file(file, ID)
    made = d4rl.import_file(file, ID, max_steps=2)  # counted anew after row 2, which terminated
    assert transitions() == expected({0: 1, 2: 2, 3: 4, 5: 6})
    assert made.lengths.tolist() == [1, 1, 1, 1]
    cut = [limited("none-v0", None), limited("zeros-v0", np.zeros((8, 1)))]  # timeouts without a true one say nothing
    assert cut[0] == cut[1] == expected({0: 1, 1: 2, 2: 2, 3: 4, 4: 5, 6: 7})
    with pytest.raises(UserError, match="has timeouts, which say where episodes end; leave out --max-steps"):
        d4rl.import_file(write(tmp_path, rows()), "hopper-other-v2", max_steps=3)


def test_an_end_without_a_flag_shows_in_next_observations(root: Path, tmp_path: Path) -> None:
    """AntMaze's files have such rows; taking the next row's observation would make up a transition."""
    made = d4rl.import_file(write(tmp_path, rows(timeouts=np.zeros(8, bool))), ID)
    assert transitions() == expected({0: 1, 1: 2, 2: 2.5, 3: 4, 4: 5, 5: 5.5, 6: 7, 7: 7.5})
    assert (made.jumps, minari_io.load(ID).ended.tolist()) == (1, [2, 1, 1])
    limited = rows(timeouts=None)
    assert d4rl.import_file(write(tmp_path, limited), "hopper-limited-v0", max_steps=3).jumps == 0
    assert transitions("hopper-limited-v0") == transitions()
    shuffled = {name: value[::-1] for name, value in rows(timeouts=np.zeros(8, bool)).items()}
    with pytest.raises(UserError, match="has no trajectories: in 6 of 8 rows next_observations is not what the next row"):
        d4rl.import_file(write(tmp_path, shuffled), "hopper-other-v2")


def test_bounds_of_actions(root: Path, tmp_path: Path) -> None:
    wide = write(tmp_path, rows(actions=2 * rows()["actions"]))
    with pytest.raises(UserError, match=r"actions from -2 to 2, outside \[-1, 1\].*--env ENV_ID.*--action-low X"):
        d4rl.import_file(wide, ID)
    made = d4rl.import_file(wide, ID, bounds=(-1.5, 4.0))
    assert (made.clipped, minari_io.load(ID).clipped) == (1, 1)
    assert minari_io.load(ID).action_high.tolist() == [4.0]
    cut = write(tmp_path, rows(following=False, actions=2 * rows()["actions"]))  # its last row, 2, is left out
    assert d4rl.import_file(cut, "hopper-cut-v0", bounds=(-1.5, 1.9)).clipped == minari_io.load("hopper-cut-v0").clipped == 1
    made = d4rl.import_file(write(tmp_path, rows(actions=WIDE)), "lab/heat-v0", bounds=([15, 0], [30, 0.9]))
    assert (made.clipped, made.extremes.tolist()) == (1, [[16, 0], [28, 1]])
    heat = minari_io.load("lab/heat-v0")
    assert (heat.action_low.tolist(), heat.action_high.tolist()) == ([15, 0], [30, 0.9])
    observations = np.repeat(rows()["observations"][:, :1], 3, 1)
    pendulum = write(tmp_path, rows(following=False, actions=2 * rows()["actions"], observations=observations))
    made = d4rl.import_file(pendulum, "mine/pendulum-v0", env="Pendulum-v1")
    assert (made.space.low.tolist(), made.space.high.tolist()) == ([-2.0], [2.0])
    assert '"Pendulum-v1"' in (minari_io.load("mine/pendulum-v0").environment or "")
    assert minari.load_dataset("mine/pendulum-v0").recover_environment(eval_env=True).spec.id == "Pendulum-v1"
    assert "mine" in list_local_namespaces()


def nan(name: str) -> dict[str, np.ndarray]:
    value = rows()[name].copy()
    value[[4, 6]] = np.nan
    return {name: value}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"actions": None, "rewards": None}, {}, "lacks actions, rewards; at its root it needs the arrays observations"),
        ({"terminals": np.zeros(7, bool)}, {}, "array terminals has 7 rows, expected 8, as many as there are rewards"),
        ({"next_observations": np.zeros((9, 2))}, {}, "array next_observations has 9 rows, expected 8"),
        ({"next_observations": np.zeros((8, 3))}, {}, "next_observations has 3 entries in a row, observations 2"),
        ({"rewards": np.zeros((8, 2))}, {}, r"array rewards has the shape \(8, 2\), expected 1 axes"),
        ({"observations": np.zeros((8, 4, 4, 3))}, {}, "array observations has the shape"),
        ({"rewards": np.zeros(0)}, {}, r"array observations has 8 rows, expected 0"),
        ({"rewards": np.float32(1)}, {}, "array observations has 8 rows, expected 1"),
        (
            nan("observations"),
            {},
            "array observations holds NaN, infinity or a number beyond float32 in 2 of 8 rows, .* row 4 ",
        ),
        (nan("actions"), {}, "array actions holds NaN"),
        (nan("rewards"), {}, r"rewards holds NaN.* in 2 of 8 rows, the first is row 4 \(of 0 to 7\). Leave such rows out"),
        (nan("next_observations"), {}, "array next_observations holds NaN"),
        ({"rewards": np.full(8, 1e300)}, {}, "a number beyond float32 in 8 of 8 rows, the first is row 0 "),
        ({"timeouts": np.full(8, 2)}, {}, r"array timeouts holds \[2\], expected 0 and 1"),
        ({"observations": np.full((8, 2), b"a")}, {}, "array observations holds .*, expected whole or floating-point"),
        (
            {"rewards": np.full(8, 1 + 2j)},
            {},
            "array rewards holds complex128, expected whole or floating-point numbers of 64",
        ),
        ({"observations": np.zeros((8, 2), np.complex64)}, {}, "array observations holds complex64, expected whole or"),
        ({"rewards": np.zeros(8, np.longdouble)}, {}, "array rewards holds float128, expected whole or floating-point"),
        ({"actions": np.float32(1)}, {}, r"array actions has the shape \(\), expected 2 axes"),
        ({"actions": np.zeros(8, np.int64)}, {}, "array actions holds int64; only continuous actions"),
        ({"actions": np.zeros((8, 1), np.int64)}, {}, "array actions holds int64; only continuous actions"),
        ({}, {"env": "Nope-v0"}, "--env Nope-v0: Nope-v0 is not registered here"),
        ({}, {"env": "Pendulum-v1"}, r"Pendulum-v1 has observations and actions of sizes \(3, 1\), the data \(2, 1\)"),
        ({}, {"env": "MountainCar-v0"}, r"--env MountainCar-v0: .* has the action space Discrete\(3\)"),
        ({}, {"env": "MountainCarContinuous-v0", "bounds": (-1.0, 1.0)}, "leave out --env or --action-low/-high"),
        ({}, {"bounds": (1.0, -1.0)}, "bounds of action dimension 0 are 1.0 and -1.0"),
        ({"actions": WIDE}, {"bounds": ([15, 0], [30, 0])}, "bounds of action dimension 1 are 0.0 and 0.0"),
        ({"actions": WIDE}, {"bounds": (15, [1, 2, 3])}, r"of 3 action dimensions are given .*, and the actions have 2"),
        (
            {"actions": WIDE},
            {"bounds": ([15, 2], [30, 3])},
            r"every entry of action dimension 1, from 0 to 1, lies outside its bounds 2 and 3",
        ),
        ({"actions": WIDE.round()}, {"bounds": ([15, 0.1], [30, 0.9])}, "entry of action dimension 1, from 0 to 1, lies"),
        ({}, {"references": (1.0, 1.0)}, r"reference returns are \(1.0, 1.0\)"),
        ({}, {"references": (0.0, float("nan"))}, "reference returns are"),
    ],
)
def test_refusals_write_nothing(
    root: Path, tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, rows(**changes))
    with pytest.raises(UserError, match=message) as caught:
        d4rl.import_file(file, ID, **options)
    assert "\n" not in str(caught.value)
    assert not root.exists()


@pytest.mark.parametrize(
    ("dataset_id", "message"),
    [
        ("hopper-medium", "is not a Minari id"),
        ("../secret-v0", "is not a Minari id"),
        ("a/hopper-v0", "no id for Minari"),
        ("toy/mine-v0", "would be a toy task"),
        ("brpo/halfcheetah/medium-replay-v0", "exists already, in .*Name another id, or remove that folder"),
    ],
)
def test_ids_that_cannot_be_new(root: Path, tmp_path: Path, dataset_id: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        d4rl.import_file(write(tmp_path, rows()), dataset_id)
    assert not root.exists()


def test_an_import_is_not_repeated(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, rows())
    d4rl.import_file(file, ID)
    digest = minari_io.load(ID).digest
    with pytest.raises(UserError, match=f"{ID} exists already"):
        d4rl.import_file(file, ID)
    assert minari_io.load(ID).digest == digest


def test_single_columns_with_and_without_their_axis(root: Path, tmp_path: Path) -> None:
    """As tables give them; the data set is the same."""
    digests = []
    for name, vector, scalar in (("plain-v0", (8, 1), (8,)), ("turned-v0", (8,), (8, 1))):
        shapes = dict.fromkeys(("observations", "actions", "next_observations"), vector)
        shapes |= dict.fromkeys(("rewards", "terminals", "timeouts"), scalar)
        arrays = {key: value[:, 0] if value.ndim == 2 else value for key, value in rows().items()}
        d4rl.import_file(write(tmp_path, {key: arrays[key].reshape(shapes[key]) for key in shapes}), name)
        digests.append(minari_io.load(name).digest)
        assert transitions(name) == expected({0: 1, 1: 2, 2: 2.5, 3: 4, 4: 5, 5: 5.5, 6: 7, 7: 7.5})
    assert digests[0] == digests[1]


def test_a_files_kind_is_not_in_its_name(root: Path, tmp_path: Path) -> None:
    d4rl.import_file(write(tmp_path, rows(), "log.npz").rename(tmp_path / "log"), ID)
    assert transitions() == expected({0: 1, 1: 2, 2: 2.5, 3: 4, 4: 5, 5: 5.5, 6: 7, 7: 7.5})
    whole = write(tmp_path, rows()).read_bytes()
    (tmp_path / "half.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half.hdf5 cannot be read as HDF5 \(OSError"):
        d4rl.import_file(tmp_path / "half.hdf5", "hopper-half-v0")


@pytest.mark.parametrize("name", ["flat.hdf5", "flat.npz", "log.csv"])
def test_files_of_another_kind(root: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("observation,action\n")
    for file in (tmp_path / name, tmp_path / f"none-{name}", tmp_path):
        with pytest.raises(
            UserError, match="is neither HDF5 nor NPZ.*docs/use.md" if file.is_file() else "is no file"
        ) as caught:
            d4rl.import_file(file, ID)
        assert "\n" not in str(caught.value)
    assert not root.exists()


def test_a_folder_of_data_sets_that_cannot_be(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, rows(), "flat.npz")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(file))
    with pytest.raises(UserError, match=f"^MINARI_DATASETS_PATH={file} is a file; it must name a folder"):
        catalog.local_ids()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(file / "sets"))
    says = f"Set MINARI_DATASETS_PATH to a folder that can be made and written; {file}/sets cannot"
    with pytest.raises(UserError, match=f"^{says} .Not a directory"):
        d4rl.import_file(file, ID)
    with pytest.raises(
        UserError, match=f"lab/none-v0 is not on this machine and could not be downloaded .UserError: {says}"
    ):
        minari_io.load("lab/none-v0")


def test_a_folder_that_is_not_there_is_listed_as_such(root: Path) -> None:
    listed = CliRunner().invoke(cli_data.app, ["list", "--no-remote"]).stdout
    assert f"There is no folder {root} (MINARI_DATASETS_PATH); the first download or import makes it.\n" in listed
    root.mkdir()
    assert "There is no folder" not in CliRunner().invoke(cli_data.app, ["list", "--no-remote"]).stdout


def test_a_group_is_no_array(root: Path, tmp_path: Path) -> None:
    file = write(tmp_path, rows(observations=None))
    with h5py.File(file, "r+") as opened:
        opened["observations/desired_goal"] = np.zeros((8, 2))
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        d4rl.import_file(file, ID)


def test_a_description_is_no_markup(root: Path, tmp_path: Path) -> None:
    d4rl.import_file(write(tmp_path, rows(), "log [bold].npz"), ID)
    assert "the flat file log [bold].npz by brpo" in CliRunner().invoke(cli_data.app, ["info", ID]).stdout


def test_an_id_below_a_data_set_is_refused(root: Path, tmp_path: Path) -> None:
    """A folder `data` where data sets lie, which may hold the flat files, makes it no data set."""
    flat = write(tmp_path, rows(), "flat.npz")
    (root / "data").mkdir(parents=True)
    d4rl.import_file(flat.rename(tmp_path / "FLAT.NPZ"), "lab/whole-v0")
    with pytest.raises(UserError, match="lab/whole-v0/part-v0 would lie in the data set lab/whole-v0"):
        d4rl.import_file(tmp_path / "FLAT.NPZ", "lab/whole-v0/part-v0")


@pytest.mark.parametrize("dataset_id", ["ant-mine-v0", "hopper-v0", "pen-human-v9", "lab/hopper-medium-v2"])
def test_names_like_those_of_d4rl_are_looked_for(root: Path, monkeypatch: pytest.MonkeyPatch, dataset_id: str) -> None:
    monkeypatch.setattr(catalog.minari, "download_dataset", lambda name: 1 / 0)
    with pytest.raises(UserError, match="could not be downloaded"):
        minari_io.load(dataset_id)


def test_what_fails_or_has_no_room_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, rows())

    def fail(*_: Any) -> None:
        assert list(root.rglob("*.hdf5"))
        assert list(catalog._below(root)) == []  # one under way is not listed
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(d4rl, "list_local_namespaces", fail)
        with pytest.raises(OSError, match="gone"):
            d4rl.import_file(file, f"mine/{ID}")
    assert list(root.rglob("*.hdf5")) == []
    monkeypatch.setattr(d4rl.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 0, 10))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"takes about 0 MB, and 0 MB are free below"):
        d4rl.import_file(file, ID)
    assert list(root.rglob("*.hdf5")) == []


@pytest.mark.parametrize(
    "dataset_id", ["hopper-medium-v2", "halfcheetah-medium-replay-v2", "antmaze-umaze-v0", "pen-human-v1", "maze2d-large-v1"]
)
def test_ids_of_d4rl_are_not_looked_for_on_the_hub(root: Path, monkeypatch: pytest.MonkeyPatch, dataset_id: str) -> None:
    monkeypatch.setattr(catalog.minari, "download_dataset", None)
    with pytest.raises(UserError, match=f"not on Minari's hub.*brpo data import FILE {dataset_id};"):
        minari_io.load(dataset_id)


@pytest.mark.parametrize("name", ["d4rl/hopper_medium-v2.hdf5", "flat.npz", "other.H5"])
def test_a_file_is_no_id(root: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"dataset={name} is a file.*brpo data import {name} ID"):
        minari_io.load(name)


@pytest.mark.parametrize("name", ["readme", "log.csv", "none/LOG.CSV"])
def test_a_table_is_not_imported_as_it_is(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "readme").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"dataset={name} is a file.*A table becomes one by way of NPZ: docs/use.md"):
        minari_io.load(name)


def test_the_wait_for_the_hub_can_be_spared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(catalog.minari, "download_dataset", fail)
    for value, said in (("1", False), (None, True)):
        monkeypatch.delenv("HF_HUB_OFFLINE") if value is None else monkeypatch.setenv("HF_HUB_OFFLINE", value)
        with pytest.raises(UserError, match="no network") as caught:
            minari_io.load("mujoco/hopper/medium-v0")
        assert ("HF_HUB_OFFLINE=1 spares the wait" in str(caught.value)) == said


def said_of_import(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli_data.app, ["import", str(tmp_path / "flat.hdf5"), *arguments])


def test_typed_bounds_stand_beside_the_data(root: Path, tmp_path: Path) -> None:
    write(tmp_path, rows(actions=WIDE))
    for wrong in ("warm", "15,", "15;0"):
        refused = said_of_import(tmp_path, ID, "--action-low", wrong, "--action-high", "30,1").exception
        assert str(refused).startswith(f"--action-low {wrong} is not allowed; give a number, or one for each"), refused
    made = said_of_import(tmp_path, ID, "--action-low", "-1.5,0", "--action-high", "30")
    lines = made.stdout.splitlines()
    at = lines.index("action bounds: [-1.5, 0.0] to [30.0, 30.0]")
    assert lines[at + 1 : at + 3] == [
        "  action dimension 0: data from 16 to 28, bounds -1.5 and 30",
        "  action dimension 1: data from 0 to 1, bounds 0 and 30",
    ]


def test_columns_without_digits_are_named(root: Path, tmp_path: Path) -> None:
    """Unix time stamps of an hour and of a minute, which float32 makes one number; ones; and a column that is good."""
    hour = np.linspace(0, 1, 8)
    columns = np.stack([1.7e9 + 3600 * hour, 1.7e9 + 40 * hour, np.ones(8), hour], 1)
    write(tmp_path, rows(following=False, observations=columns))
    lost = "note: observation columns {} lose their digits in float32: subtract an offset first\n"
    assert lost.format("[0, 1]") in said_of_import(tmp_path, ID).stdout
    checked = CliRunner().invoke(cli_data.app, ["check", ID]).stdout
    assert "Observation columns [1, 2] are constant in float32." in checked
    assert lost.format("[0]") in checked
    assert statistics.describe(minari_io.load(ID))["constant observation columns"] == "[1, 2]"
    data = OfflineDataModule(ID, storage="device", normalize_observations=True, reward_scale=1.0, reward_shift=0.0,
                             heldout=0.0, evaluate_every=1, max_updates=1, chunk=1)  # fmt: skip
    data.setup()
    constant, few = statistics.notices(data)
    assert constant.startswith("observations 1, 2 are constant")
    assert f"note: {few}\n" == lost.format("[0]")
    write(tmp_path, rows())
    assert "note" not in said_of_import(tmp_path, "hopper-good-v2").stdout
    assert "olumns" not in CliRunner().invoke(cli_data.app, ["check", "hopper-good-v2"]).stdout


def test_one_of_each_is_said_in_the_singular(root: Path, tmp_path: Path) -> None:
    write(tmp_path, {name: value[3:6] for name, value in rows(following=False).items()})
    said = said_of_import(tmp_path, ID).stdout
    assert f"{ID}: 2 transitions of 3 rows, in 1 episode: 0 terminated, 1 truncated\n" in said
    assert "1 row dropped: the last of the truncated episode, as the file has no next_observations\n" in said
    write(tmp_path, rows(timeouts=np.zeros(8, bool)))
    assert "1 episode ends without a flag, where" in said_of_import(tmp_path, "hopper-jump-v0").stdout


def test_the_commands(cli: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many = {
        "observations": rng.normal(size=(100, 3)).astype(np.float32),
        "actions": rng.uniform(-2, 2, size=(100, 1)).astype(np.float32),
        "rewards": rng.normal(size=100).astype(np.float32),
        "terminals": np.arange(100) % 20 == 9,
        "timeouts": np.arange(100) % 20 == 19,
    }
    write(tmp_path, many)
    sets = {"MINARI_DATASETS_PATH": str(tmp_path / "sets")}
    command = ["data", "import", "flat.hdf5", "pendulum-random-v0"]
    refused = cli(*command, program="brpo", **sets)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    half = cli(*command, "--reference-min", "-1500", program="brpo", **sets)
    assert (half.returncode, "--reference-min and --reference-max belong together" in half.stderr) == (2, True)
    made = cli(*command, "--env", "Pendulum-v1", "--reference-min", "-1500", "--reference-max", "0", program="brpo", **sets)
    assert made.returncode == 0, made.stderr
    assert not made.stderr
    assert "95 transitions of 100 rows, in 10 episodes: 5 terminated, 5 truncated" in made.stdout
    assert "5 rows dropped: the last of each truncated episode" in made.stdout
    assert "action bounds: [-2.0] to [2.0]\n" in made.stdout
    assert made.stdout.splitlines()[-2:] == [
        "brpo data check pendulum-random-v0",
        "python train.py dataset=pendulum-random-v0",
    ]
    checked = cli("data", "check", "pendulum-random-v0", program="brpo", **sets)
    assert "pendulum-random-v0: good. 95 transitions in 10 episodes" in checked.stdout
    trained = cli("algo=iql", "dataset=pendulum-random-v0", "trainer=smoke", **sets)
    assert trained.returncode == 0, trained.stderr
    assert "normalized score" in trained.stdout
