"""A data set's rows in a file, for `data.storage=memmap`: converted once, checked at each start.

The file holds the rows, then a description in JSON, then a trailer with the description's length and SHA-256. The
description has the SHA-256 of the rows, and size and times of the data set's own files as they were at the conversion.
"""

import contextlib
import hashlib
import json
import os
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import minari
import numpy as np

from brpo.console import say
from brpo.datasets import episodes, minari_io
from brpo.datasets.catalog import data_roots, find_dataset, folders
from brpo.errors import UserError
from brpo.files import one_writer, sync_folder, user_cache

_MAGIC = b"brpo rows, 2    "  # another number wherever rows or description change their meaning
_TRAILER = struct.Struct("<Q32s16s")  # bytes of the description, its SHA-256, the magic
_BESIDE = ".brpo-cache"  # folder beside a data set's
_BLOCK = 1 << 22  # bytes read at a time while a checksum is made

Sources = dict[str, list[int]]


class UnusableCache(Exception):
    """A cache is torn, altered, or of a data set that has changed since."""


class RowFile:
    """Rows in a file, read where they are asked for.

    Rows are read, not mapped: a kernel may map megabytes around each row, and these count as the process's own memory.

    Args:
        file: open for reading; it begins with the rows.
        count: number of rows.
        width: float32 numbers of a row.
    """

    def __init__(self, file: BinaryIO, count: int, width: int) -> None:
        self.file, self.count, self.width = file, count, width

    def take(self, positions: np.ndarray) -> np.ndarray:
        """The rows at some positions, float32 (positions, width): a copy.

        Raises:
            UserError: the file has become shorter.
        """
        size, descriptor = 4 * self.width, self.file.fileno()
        data = bytearray().join([os.pread(descriptor, size, start) for start in (positions * size).tolist()])
        if len(data) != size * len(positions):
            raise UserError(
                f"{self.file.name} has become shorter while it was read. Start again: it is then converted anew."
            )
        return np.frombuffer(data, np.float32).reshape(-1, self.width)

    def mapped(self) -> np.ndarray:
        """All rows as a read-only memory map, (count, width); what is looked at counts as the process's memory."""
        return np.memmap(self.file, np.float32, mode="r", shape=(self.count, self.width))


def load(dataset_id: str) -> tuple[minari_io.Flat, RowFile]:
    """The data set, its rows a memory map, and the file of the rows; it is written where there is no good one yet.

    Raises:
        UserError: there is no such data set, it cannot be trained on, or no folder takes the file.
    """
    folder = find_dataset(dataset_id)
    sources = _sources(folder)  # before anything is read: a later change is then seen
    dataset = episodes.open_dataset(folder, dataset_id)
    summary, file = _find(folder, sources) or _make(folder, sources, dataset, dataset_id)
    flat = minari_io.Flat(
        **vars(summary), dataset_id=dataset_id, rows=file.mapped(), metadata=dict(dataset.storage.metadata)
    )
    return flat, file


def places(folder: Path) -> tuple[Path, Path]:
    """Where the cache of a data set's folder may lie: beside the folder, else in the user's cache folder."""
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:12]  # data sets of one name may lie in several folders
    return folder.parent / _BESIDE / f"{folder.name}.rows", user_cache() / f"{folder.name}-{mark}.rows"


def caches() -> set[Path]:
    """All that lie where `places` would have them, also of data sets that are gone."""
    beside = (path for root in data_roots() for folder in folders(root) for path in (folder / _BESIDE).glob("*.rows"))
    return {path.resolve() for path in (*beside, *user_cache().glob("*.rows"))}


def _sources(folder: Path) -> Sources:
    """Size and times of each of the data set's files. The change time also tells of a file whose other times were set."""
    files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
    status = {path.relative_to(folder).as_posix(): path.stat() for path in files}
    return {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in status.items()}


def _find(folder: Path, sources: Sources) -> tuple[minari_io.DatasetSummary, RowFile] | None:
    for path in places(folder):
        try:
            return _read(path, sources)
        except FileNotFoundError:
            continue
        except (OSError, UnusableCache) as error:
            say(f"{path} is not used: {error}")
    return None


def _make(
    folder: Path, sources: Sources, dataset: minari.MinariDataset, dataset_id: str
) -> tuple[minari_io.DatasetSummary, RowFile]:
    failures = []
    for path in places(folder):
        try:
            with one_writer(path):
                with contextlib.suppress(FileNotFoundError, UnusableCache):
                    return _read(path, sources)  # another process has made it while this one waited
                say(f"{dataset_id}: writing its rows to {path} (once)")
                _convert(path, folder, sources, dataset, dataset_id)
                return _read(path, sources)
        except (OSError, UnusableCache) as error:
            failures.append(f"{path} ({error})")
    raise UserError(
        f"data.storage=memmap needs a folder for the rows of {dataset_id}, and could write none of {', '.join(failures)}. "
        f"Make room or one of them writable, set XDG_CACHE_HOME to a folder that is, or use data.storage=device."
    )


class _Checksummed:
    """A file that is being written, with the SHA-256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any, /) -> None:
        self.digest.update(data)
        self.file.write(data)


def _convert(path: Path, folder: Path, sources: Sources, dataset: minari.MinariDataset, dataset_id: str) -> None:
    """Write the cache under another name, flush it, rename it. The caller holds the lock."""
    temporary = path.with_suffix(".tmp")  # one name for all: what a killed process leaves is overwritten
    try:
        with temporary.open("wb") as file:
            rows = _Checksummed(file)
            summary = minari_io.stream(dataset, dataset_id, rows)
            if _sources(folder) != sources:
                raise UserError(f"{dataset_id} has changed while it was read. Start again when nothing writes to {folder}.")
            file.write(_ending(summary, sources, rows.digest.hexdigest()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _ending(summary: minari_io.DatasetSummary, sources: Sources, checksum: str) -> bytes:
    """What stands behind the rows: description and trailer."""
    values = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(summary).items()}
    description = json.dumps({"sources": sources, "rows": checksum, "summary": values}).encode()
    return description + _TRAILER.pack(len(description), hashlib.sha256(description).digest(), _MAGIC)


def _read(path: Path, sources: Sources) -> tuple[minari_io.DatasetSummary, RowFile]:
    """Open a cache after every check.

    Raises:
        FileNotFoundError: there is none.
        UnusableCache: it is torn, altered or stale.
    """
    file = path.open("rb")
    try:
        description, size = _read_description(file)
        changed = [name for name in {**sources, **description["sources"]}
                   if sources.get(name) != description["sources"].get(name)]  # fmt: skip
        if changed:
            raise UnusableCache(f"the data set has changed since it was written ({', '.join(sorted(changed)[:3])})")
        summary = _summary({"gross": 0.0, **description["summary"]})
        width = sum(summary.columns.widths)
        if size != 4 * width * summary.lengths.sum() or _checksum(file, size) != description["rows"]:
            raise UnusableCache("its rows are not those that were written, the file is altered")
    except BaseException:
        file.close()
        raise
    rows = RowFile(file, size // (4 * width), width)
    if summary.gross == 0.0:  # the file was written before it was kept there
        rewards = np.abs(rows.mapped()[:, summary.columns.slices[2]][:, 0], dtype=np.float64)
        begins = np.cumsum(summary.lengths) - summary.lengths
        summary = replace(summary, gross=float(np.add.reduceat(rewards, begins).max()))
    return summary, rows


def _read_description(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The description, and the number of bytes before it."""
    whole = os.fstat(file.fileno()).st_size
    ending = os.pread(file.fileno(), _TRAILER.size, max(whole - _TRAILER.size, 0))
    length, checksum, magic = _TRAILER.unpack(ending) if len(ending) == _TRAILER.size else (0, b"", b"")
    size = whole - _TRAILER.size - length
    if magic != _MAGIC or size < 0:
        raise UnusableCache("it is torn, or another version of brpo wrote it")
    description = os.pread(file.fileno(), length, size)
    if hashlib.sha256(description).digest() != checksum:
        raise UnusableCache("its description is altered")
    return json.loads(description), size


def _summary(values: dict[str, Any]) -> minari_io.DatasetSummary:
    """The inverse of what `_ending` does to a summary."""
    arrays = {key: np.array(value) for key, value in values.items() if isinstance(value, list)}
    return minari_io.DatasetSummary(**{**values, **arrays, "columns": minari_io.Columns(**values["columns"])})


def _checksum(file: BinaryIO, size: int) -> str:
    """SHA-256 of the first `size` bytes."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    file.seek(0)
    while size > 0 and (count := file.readinto(block[: min(size, _BLOCK)])):  # type: ignore[attr-defined]
        digest.update(block[:count])
        size -= count
    return digest.hexdigest()
