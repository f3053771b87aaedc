"""`brpo cache`: what is kept in caches, behaviour models and rows of data sets. All of it can be made again."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from brpo.errors import UserError
from brpo.files import user_cache

DAY = 24 * 60 * 60


@dataclass(frozen=True)
class CachedFile:
    """A file of a cache.

    Attributes:
        kind: `behaviour models` or `rows`.
        path: where it lies.
        size: bytes.
        written: when, seconds since 1970.
    """

    kind: str
    path: Path
    size: int
    written: float


def cached_files() -> list[CachedFile]:
    """All there are, by kind and folder, the latest last."""
    found = []
    for kind, path in _paths():
        try:
            status = path.stat()
        except FileNotFoundError:  # removed meanwhile
            continue
        found.append(CachedFile(kind, path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda file: (file.kind, file.path.parent, file.written, file.path))


def _paths() -> Iterator[tuple[str, Path]]:
    from brpo.datasets.row_cache import caches

    for path in (user_cache() / "behavior").glob("*.ckpt"):
        yield "behaviour models", path
    for path in caches():
        yield "rows", path


def cache(
    remove: Annotated[bool, typer.Option("--remove", help="Delete what is listed.")] = False,
    older: Annotated[float | None, typer.Option(metavar="DAYS", min=0, help="Only what was written before.")] = None,
) -> None:
    """List what is kept of behaviour models and of the rows of data sets (data.storage=memmap), or delete it.

    Runs do not need it any more; the next that asks for the same makes it again.
    """
    from brpo.reports.seed_result import plural

    files = [file for file in cached_files() if older is None or time.time() - file.written > older * DAY]
    if not files:
        print("nothing is cached" if older is None else f"nothing in the caches is older than {older:g} days")
        return
    for place, held in itertools.groupby(files, lambda file: f"{file.kind} in {file.path.parent}:"):
        print(place)
        for file in held:
            written = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.written))
            print(f"  {written}  {file.size / 1e6:8.1f} MB  {file.path.name}")
    total = f"{plural(len(files), 'file')}, {sum(file.size for file in files) / 1e6:.1f} MB"
    if not remove:
        print(f"{total}; --remove deletes them")
        return
    for file in files:
        try:
            file.path.unlink(missing_ok=True)  # a process that reads it goes on: it goes when it is closed
        except OSError as error:
            raise UserError(f"{file.path} cannot be deleted ({error.strerror}).") from error
    print(f"{total}: deleted")
