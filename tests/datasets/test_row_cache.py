"""`data.storage=memmap`: the batches of `device`, and a cache that is never used where it should not be."""

import contextlib
import dataclasses
import errno
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
import torch

from brpo import files, training
from brpo.datasets import minari_io, row_cache
from brpo.datasets.datamodule import OfflineDataModule, batch_indices
from brpo.datasets.transitions import MappedTransitions
from brpo.engine import checkpoint_io
from brpo.errors import UserError
from brpo.types import Batch
from tests.conftest import random_episode, write_dataset
from tests.datasets.test_datamodule import make
from tests.helpers import compose_config, shrink

ID = "tests/pendulum/mapped-v0"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `ID`: eleven episodes of different lengths; a user cache folder that holds nothing."""
    folder = tmp_path / "minari"
    folder.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    rng = np.random.default_rng(1)
    ends = ("terminated", "truncated", "neither")
    write_dataset(folder, ID, [random_episode(rng, 5 + 3 * k, end=ends[k % 3]) for k in range(11)])
    return folder


def cache(root: Path) -> Path:
    return row_cache.places(root / ID)[0]


def mapped(**changes: Any) -> OfflineDataModule:
    return make(ID, storage="memmap", **changes)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: minari.MinariDataset, *_: Any) -> None:
        raise AssertionError("the episodes were read")

    monkeypatch.setattr(minari.MinariDataset, "iterate_episodes", read)


def same(left: Batch, right: Batch) -> bool:
    pairs = [(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(Batch)]
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("heldout", [0.0, 0.25])
@pytest.mark.parametrize(("normalize", "temperature"), [(False, None), (True, None), (True, 0.5)])
def test_the_batches_of_device_bit_for_bit(root: Path, heldout: float, normalize: bool, temperature: float | None) -> None:
    options = {"heldout": heldout, "normalize_observations": normalize, "reward_scale": "return_range", "reward_shift": -1.0,
               "return_temperature": temperature}  # fmt: skip
    device, file = make(ID, **options), mapped(**options)
    assert device.spec == file.spec
    assert isinstance(file.train_transitions, MappedTransitions)
    assert len(device.train_transitions) == len(file.train_transitions)
    whole = torch.arange(len(device.train_transitions)).unsqueeze(0)
    assert same(device.train_transitions.gather(whole), file.train_transitions.gather(whole))
    drawn = [batch_indices(torch.tensor([3, 7]), torch.arange(5), 16, data.train_transitions) for data in (device, file)]
    assert torch.equal(*drawn)
    for indices in drawn[0]:
        assert same(device.train_transitions.gather(indices), file.train_transitions.gather(indices))
    assert same(device.diagnostic_batch(2), file.diagnostic_batch(2))
    doubled = torch.device("cpu"), torch.float64
    assert same(device.train_transitions.to(*doubled).gather(whole), file.train_transitions.to(*doubled).gather(whole))


def test_the_same_is_known_of_the_data(root: Path) -> None:
    """Beside the rows, which `device` has in training's units and with the held-out episodes last."""
    read, (file, _) = minari_io.load(ID), row_cache.load(ID)
    for field in dataclasses.fields(minari_io.Flat):
        left, right = getattr(read, field.name), getattr(file, field.name)
        assert np.array_equal(left, right), field.name
        assert not isinstance(left, np.ndarray) or left.dtype == right.dtype, field.name


def test_a_cache_of_before_the_size_of_rewards_was_kept_is_good(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_gross(summary: minari_io.DatasetSummary) -> dict[str, Any]:
        values = dataclasses.asdict(summary)
        del values["gross"]
        return values

    with monkeypatch.context() as before:
        before.setattr(row_cache, "asdict", without_gross)
        row_cache.load(ID)
    written = cache(root).read_bytes()
    assert b"gross" not in written
    forbid_reading(monkeypatch)
    assert row_cache.load(ID)[0].gross == pytest.approx(minari_gross(root), rel=1e-6)
    assert cache(root).read_bytes() == written


def minari_gross(root: Path) -> float:
    """From the episodes' own rewards, in the file of the data set."""
    with h5py.File(root / ID / "data" / "main_data.hdf5") as file:
        return max(float(np.abs(file[name]["rewards"][()]).sum()) for name in file)  # type: ignore[index]


@pytest.mark.filterwarnings("ignore")
def test_a_short_training_gives_the_same_weights(root: Path, tmp_path: Path) -> None:
    weights = []
    for storage in ("device", "memmap"):
        folder = tmp_path / storage
        options = [
            "max_updates=20",
            "data.return_temperature=0.5",
            "eval.every=10",
            "eval.episodes=1",
            "batch_size=16",
            "trainer=cpu",
            "seeds=2",
        ]
        config = compose_config("algo=iql", f"dataset={ID}", f"data.storage={storage}", f"run_dir={folder}", *options)
        shrink(config["algo"])
        training.train(config, [])
        weights.append(checkpoint_io.read(folder / "checkpoints" / "last.ckpt")["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_second_start_reads_no_episode(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mapped()
    forbid_reading(monkeypatch)
    second = mapped(heldout=0.5, normalize_observations=True)  # options of training are none of the cache's
    assert second.spec.digest == first.spec.digest
    assert {path.name for path in cache(root).parent.iterdir()} == {"mapped-v0.rows", "mapped-v0.lock"}


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def with_another_row(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def with_another_description(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"lengths": [5', b'"lengths": [6'))


def of_a_later_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"brpo rows, ", b"brpo rows: "))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (torn, "it is torn, or another version of brpo wrote it"),
        (emptied, "it is torn, or another version of brpo wrote it"),
        (of_a_later_version, "it is torn, or another version of brpo wrote it"),
        (with_another_row, "its rows are not those that were written, the file is altered"),
        (with_another_description, "its description is altered"),
    ],
)
def test_a_damaged_cache_is_made_again(root: Path, damage: Any, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    mapped()
    good = cache(root).read_bytes()
    damage(cache(root))
    capsys.readouterr()
    datamodule = mapped()
    output = capsys.readouterr().out
    assert f"{cache(root)} is not used: {reason}" in output
    assert f"writing its rows to {cache(root)}" in output
    assert cache(root).read_bytes() == good
    assert datamodule.spec == make(ID).spec


@pytest.mark.parametrize("restored", [False, True])
def test_changed_data_are_never_trained_on_under_the_old_digest(
    root: Path, restored: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where a file has its old size and its old modification time."""
    before = mapped().spec
    path = root / ID / "data" / "main_data.hdf5"
    status = path.stat()
    time.sleep(0.02)  # a coarse clock stamps nothing between its ticks
    with h5py.File(path, "r+") as file:
        file["episode_3"]["rewards"][2] += 1.0
    if restored:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = mapped().spec
    assert "the data set has changed since it was written (data/main_data.hdf5)" in capsys.readouterr().out
    assert after.digest != before.digest
    assert after == make(ID).spec


def test_data_that_change_while_they_are_converted_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = minari_io.stream

    def meddled(*arguments: Any) -> minari_io.DatasetSummary:
        path = root / ID / "data" / "metadata.json"
        later = path.stat().st_mtime_ns + 10**9  # not the present, which a coarse clock may have stamped already
        os.utime(path, ns=(later, later))
        return stream(*arguments)

    monkeypatch.setattr(minari_io, "stream", meddled)
    with pytest.raises(UserError, match="has changed while it was read"):
        mapped()
    assert not list(cache(root).parent.glob("*.rows")) + list(cache(root).parent.glob("*.tmp"))


def test_a_file_system_without_locks_is_no_obstacle(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    assert mapped().spec.dataset_id == ID
    assert cache(root).exists()
    assert "has no locks (No locks available); see that no other process writes" in capsys.readouterr().out


def test_bad_data_leave_no_cache(root: Path) -> None:
    with h5py.File(root / ID / "data" / "main_data.hdf5", "r+") as file:
        file["episode_10"]["rewards"][0] = np.nan
    with pytest.raises(UserError, match="episode 10: the field rewards holds NaN"):
        mapped()
    assert [path.name for path in cache(root).parent.iterdir()] == ["mapped-v0.lock"]


def block(folder: Path) -> None:
    """A file where a folder should be: nothing can be written below it, by nobody."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("")


def test_the_users_cache_folder_stands_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block(cache(root).parent)
    spec = mapped().spec
    other = row_cache.places(root / ID)[1]
    assert other.exists()
    assert other.parent == root.parent / "user" / "brpo"
    forbid_reading(monkeypatch)
    assert mapped().spec == spec


def test_no_folder_at_all_is_said(root: Path) -> None:
    block(cache(root).parent)
    block(root.parent / "user")
    with pytest.raises(UserError, match="needs a folder for the rows .* or use data.storage=device") as caught:
        mapped()
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(row_cache.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        mapped()
    assert not list(root.parent.rglob("*.rows")) + list(root.parent.rglob("*.tmp"))


def test_processes_that_convert_at_once(root: Path, tmp_path: Path) -> None:
    """Both succeed, one converts; what a killed process left in the way is overwritten."""
    cache(root).parent.mkdir()
    cache(root).with_suffix(".tmp").write_bytes(b"left over" * 10_000)
    context = multiprocessing.get_context("fork")
    meet = context.Barrier(2)

    def convert(file: Path) -> None:
        with file.open("w") as out, contextlib.redirect_stdout(out):
            meet.wait(timeout=120)
            flat, _ = row_cache.load(ID)
            print(flat.digest, float(flat.rows.sum()))

    files = [tmp_path / name for name in ("first", "second")]
    processes = [context.Process(target=convert, args=(file,)) for file in files]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    outputs = [file.read_text().splitlines() for file in files]
    flat = minari_io.load(ID)
    assert {lines[-1] for lines in outputs} == {f"{flat.digest} {float(flat.rows.sum())}"}
    assert sum("writing its rows" in line for lines in outputs for line in lines) == 1
    assert {path.name for path in cache(root).parent.iterdir()} == {"mapped-v0.rows", "mapped-v0.lock"}


def test_a_file_that_became_shorter_is_named(root: Path) -> None:
    datamodule = mapped()
    os.truncate(cache(root), 100)
    with pytest.raises(UserError, match="has become shorter while it was read"):
        datamodule.train_transitions.gather(torch.tensor([[50]]))


def test_unknown_storage(root: Path) -> None:
    with pytest.raises(UserError, match="data.storage=disk is not allowed; it must be device or memmap"):
        make(ID, storage="disk")
