import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brpo import files
from brpo.engine.checkpoint_io import DamagedCheckpoint, DigestCheckpointIO, encode, read
from brpo.errors import UserError

CONTENT: dict[str, Any] = {"state_dict": {"w": torch.arange(3.0)}, "brpo": {"updates": 7}}


def test_round_trip_and_plain_torch_reads_it_too(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(encode(CONTENT))
    assert torch.equal(read(path)["state_dict"]["w"], torch.arange(3.0))
    assert torch.load(path, weights_only=True)["brpo"] == {"updates": 7}


@pytest.mark.parametrize("keep", [0, 10, 200, -1, -70])
def test_torn_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(encode(CONTENT)[:keep])
    with pytest.raises(DamagedCheckpoint, match="is torn"):
        read(path)


def test_altered_byte_is_refused(tmp_path: Path) -> None:
    data = bytearray(encode(CONTENT))
    data[len(data) // 2] ^= 1
    path = tmp_path / "a.ckpt"
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedCheckpoint, match="was altered: its digest does not match"):
        read(path)


class Hostile:
    """What a malicious pickle does: run something when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


def test_hostile_pickle_with_a_good_digest_runs_nothing(tmp_path: Path) -> None:
    path, marker = tmp_path / "a.ckpt", tmp_path / "executed"
    path.write_bytes(encode({**CONTENT, "evil": Hostile(marker)}))
    with pytest.raises(DamagedCheckpoint, match="holds more than tensors and plain containers"):
        read(path)
    assert not marker.exists()


def test_a_callback_whose_state_could_not_be_read_again_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(UserError, match=r"The state of the callback Mine cannot be kept.*with float"):
        DigestCheckpointIO().save_checkpoint({**CONTENT, "callbacks": {"Mine": {"best": np.float64(1.5)}}}, path)
    assert not path.exists()
    DigestCheckpointIO().save_checkpoint({**CONTENT, "callbacks": {"Mine": {"best": 1.5}}}, path)
    assert read(path)["callbacks"] == {"Mine": {"best": 1.5}}


def test_other_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(encode({"something": 1}))
    with pytest.raises(DamagedCheckpoint, match="is not one of brpo"):
        read(path)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "absent.ckpt")


def test_last_keeps_its_predecessor(tmp_path: Path) -> None:
    io, last = DigestCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    for updates in (1, 2, 3):
        io.save_checkpoint({**CONTENT, "brpo": {"updates": updates}}, last)
    assert read(last)["brpo"]["updates"] == 3
    assert read(last.with_name("previous.ckpt"))["brpo"]["updates"] == 2
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    last.unlink()  # as a kill between the two renames leaves them: one file of two names
    last.hardlink_to(last.with_name("previous.ckpt"))
    files.write_atomically(last, b"new", keep=last.with_name("previous.ckpt"))
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    io.remove_checkpoint(last)
    assert not last.exists()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_last_keeps_its_predecessor_without_hard_links(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    last = tmp_path / "last.ckpt"
    for updates in (1, 2, 3):
        DigestCheckpointIO().save_checkpoint({**CONTENT, "brpo": {"updates": updates}}, last)
    assert [read(tmp_path / name)["brpo"]["updates"] for name in ("last.ckpt", "previous.ckpt")] == [3, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_full_disk_leaves_the_previous_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, last = DigestCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(CONTENT, last)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*last.ckpt"):
        io.save_checkpoint({**CONTENT, "brpo": {"updates": 8}}, last)
    assert read(last)["brpo"]["updates"] == 7
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_kill_between_the_renames_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    io = DigestCheckpointIO()
    for updates in (1, 2):
        io.save_checkpoint({**CONTENT, "brpo": {"updates": updates}}, last)
    replace, calls = os.replace, []

    def killed_at_the_second(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({**CONTENT, "brpo": {"updates": 3}}, last)
    assert [Path(target).name for target in calls] == ["previous.ckpt", "last.ckpt"]
    assert read(last)["brpo"]["updates"] == 2
    assert read(previous)["brpo"]["updates"] == 2


def test_a_write_that_fails_does_not_touch_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged `last` must not take the place of a good `previous` before the new file is safe."""
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    previous.write_bytes(encode(CONTENT))
    last.write_bytes(b"torn")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        DigestCheckpointIO().save_checkpoint(CONTENT, last)
    assert read(previous)["brpo"]["updates"] == 7
