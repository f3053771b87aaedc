"""Writing files so that a reader sees the old or the new content, never a part of it."""

import contextlib
import csv
import errno
import fcntl
import io
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brpo.console import say
from brpo.errors import UserError

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without hard links say


def write_atomically(path: Path, content: bytes | str, keep: Path | None = None) -> None:
    """Write to a temporary name beside `path`, flush to the disk, then rename.

    Args:
        path: the file.
        content: its new content.
        keep: a name for the old content, which takes it only when the new one is safe on the disk.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = _beside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _keep(path, keep)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table, as `write_atomically` does; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a table of records with the columns of the first one, as `write_csv` does.

    Raises:
        ValueError: a record has other columns.
    """
    header = list(records[0])
    if other := next((record for record in records if set(record) != set(header)), None):
        raise ValueError(f"{path} cannot hold records of different columns: {header} and {list(other)}.")
    write_csv(path, header, ([record[name] for name in header] for record in records))


def _beside(path: Path) -> Path:
    """A name for what becomes `path`: processes of several machines, too, have different ones."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")


@contextlib.contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """One process at a time makes `path`; the lock beside it goes with the process, however it ends.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is writing {path}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            reason = f"the file system has no locks ({error.strerror})"
            say(f"note: {reason}; see that no other process writes {path}")
        yield


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that are gone were writing into a folder when they were killed."""
    for path in folder.glob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            path.unlink(missing_ok=True)


def _keep(path: Path, keep: Path) -> None:
    """Give a file a second name; where there are no hard links its only one, until `path` is written anew."""
    link = _beside(keep)
    try:
        os.link(path, link)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        link = path
    try:
        os.replace(link, keep)
    finally:
        if link != path:  # where both names are of one file already, the rename leaves both
            link.unlink(missing_ok=True)


def typed_path(name: str, typed: str | Path) -> Path:
    """A path that was typed, with `~` in it for a home folder.

    Raises:
        UserError: no such home folder is known; names what was typed.
    """
    try:
        return Path(typed).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name}={typed} names a home folder that is not known here. Write it without ~.") from error


def home() -> Path | None:
    """The user's home folder; None where none is known, as of a user without an entry in the system's list."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def user_cache() -> Path:
    """Our folder among the user's caches, or among temporary files; it may not be there yet."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "brpo"
    return folder / ".cache" / "brpo" if (folder := home()) else Path(tempfile.gettempdir()) / f"brpo-{os.getuid()}"


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder durable (a no-op where folders cannot be opened)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")
