"""Which Minari data sets there are: on this machine, on the hub, and how one comes here."""

import contextlib
import difflib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import minari

from brpo import installation
from brpo.console import say
from brpo.datasets import toy
from brpo.datasets.ids import is_toy
from brpo.errors import UserError
from brpo.files import home, one_writer, typed_path

_ID = re.compile(r"(?:[\w-]+/)*[\w-]+-v\d+")
_D4RL = re.compile(  # the ids of D4RL's own files; what Minari's hub has of it stands in a namespace
    r"(halfcheetah|hopper|walker2d|ant)-(random|medium|expert|medium-replay|medium-expert|full-replay)-v[0-2]"
    r"|antmaze-(umaze|medium|large)(-play|-diverse)?-v[0-2]|maze2d-(open|umaze|medium|large)(-dense)?-v[01]"
    r"|(pen|hammer|door|relocate)-(human|cloned|expert)-v[01]|kitchen-(complete|partial|mixed)-v0"
)
_FLAT = (".hdf5", ".h5", ".npz")


def data_roots() -> list[Path]:
    """Folders that are searched for data sets: `MINARI_DATASETS_PATH`, else the clone's `data/` and Minari's own folder.

    The clone's `data/` is searched in either case. What is downloaded comes into the first. An installed brpo has no clone,
    and its `data/`, the bundled data set alone, comes last.

    Raises:
        UserError: the variable names a file, or no path.
    """
    configured = os.environ.get("MINARI_DATASETS_PATH")
    bundled = installation.ROOT / "data"
    if configured:
        folder = typed_path("MINARI_DATASETS_PATH", configured)
        if folder.is_file():
            raise UserError(f"MINARI_DATASETS_PATH={configured} is a file; it must name a folder of data sets.")
        return [folder.resolve(), bundled]
    own = [folder / ".minari" / "datasets"] if (folder := home()) else []
    return [bundled, *own] if installation.IN_CLONE else [*own, bundled]


def make_root(root: Path) -> None:
    """Make the folder that takes a new data set, where there is none.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        (root / ".unfinished").mkdir(parents=True, exist_ok=True)  # see `made_apart`
        if not os.access(root / ".unfinished", os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"Set MINARI_DATASETS_PATH to a folder that can be made and written; {root} cannot ({error.strerror})."
        ) from error


def local_ids() -> dict[str, Path]:
    """Ids of the data sets that are on this machine, with their folders. The first root wins."""
    found: dict[str, Path] = {}
    for root in data_roots():
        for folder in sorted(_below(root)):
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


def folders(root: Path) -> Iterator[Path]:
    """Folders of data sets and those above, also behind symbolic links, which `Path.glob` does not follow."""
    for name, children, _ in os.walk(root, followlinks=True):
        folder = Path(name)
        children[:] = [child for child in children if not child.startswith(".")]  # no id; an import that is under way
        circle = folder.is_symlink() and folder.resolve() in [parent.resolve() for parent in folder.parents]
        if circle or _is_dataset(folder):
            children.clear()
        if not circle:
            yield folder


def _is_dataset(folder: Path) -> bool:
    return (folder / "data" / "metadata.json").exists()


def _below(root: Path) -> Iterator[Path]:
    return filter(_is_dataset, folders(root))


def check_id(dataset_id: str) -> None:
    """Refuse what is no Minari id.

    Raises:
        UserError: the id lacks its version, or has characters that no id has; or it is the name of a file.
    """
    if _ID.fullmatch(dataset_id):
        return
    if dataset_id.lower().endswith(_FLAT) or dataset_id.lower().endswith(".csv") or Path(dataset_id).is_file():
        flat = dataset_id.lower().endswith(_FLAT)
        become = f"One with D4RL's arrays becomes a data set by: brpo data import {dataset_id} ID"
        table = "A table becomes one by way of NPZ: docs/use.md, Training on your own data."
        raise UserError(
            f"dataset={dataset_id} is a file, and the id of a Minari data set is needed. {become if flat else table}"
        )
    versions = [known for known in local_ids() if known.rpartition("-v")[0] == dataset_id]
    hint = f" Did you mean {versions[-1]}?" if versions else ""
    raise UserError(
        f"dataset={dataset_id} is not a Minari id. An id looks like brpo/halfcheetah/medium-replay-v0, "
        f"with its version at the end.{hint} List the local ones with: brpo data list"
    )


def check_new_id(dataset_id: str) -> None:
    """Refuse an id under which no data set can be written.

    Raises:
        UserError: it is no Minari id, a toy task's, or taken.
    """
    check_id(dataset_id)
    if is_toy(dataset_id):
        raise UserError(f"{dataset_id} would be a toy task, which is generated. Name another id.")
    for root in data_roots():
        if (root / dataset_id).exists():
            raise UserError(f"{dataset_id} exists already, in {root / dataset_id}. Name another id, or remove that folder.")
        for parent in Path(dataset_id).parents:
            if (root / parent / "data" / "metadata.json").exists():
                raise UserError(f"{dataset_id} would lie in the data set {parent}, where no one looks. Name another id.")


def find_dataset(dataset_id: str) -> Path:
    """The folder of a data set; downloads it where it is not on this machine.

    Raises:
        UserError: the id is malformed, unknown, or cannot be downloaded; or it is a toy task, which has no files.
    """
    if is_toy(dataset_id):
        toy.task_of(dataset_id)
        raise UserError(f"dataset={dataset_id} is generated and has no files. Use data.storage=device.")
    check_id(dataset_id)
    for root in data_roots():
        if (root / dataset_id / "data").is_dir():
            return root / dataset_id
    if _D4RL.fullmatch(dataset_id):
        raise UserError(
            f"dataset={dataset_id} is not on this machine, and D4RL's own files are not on Minari's hub."
            f"{_similar(dataset_id)} A file that you have becomes a data set by: "
            f"brpo data import FILE {dataset_id}; docs/use.md has the rest."
        )
    return _download(dataset_id, data_roots()[0])


def _similar(dataset_id: str) -> str:
    near = difflib.get_close_matches(dataset_id, local_ids(), n=1, cutoff=0.9)
    return f" Did you mean {near[0]}?" if near else ""


@contextlib.contextmanager
def minari_root(root: Path) -> Iterator[None]:
    """Minari reads and writes below this folder."""
    previous = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if previous is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = previous


def _download(dataset_id: str, root: Path) -> Path:
    try:
        make_root(root)
        with made_apart(dataset_id, root) as place:
            if place is not None:
                say(f"{dataset_id} is not on this machine; downloading it to {root}")
                with minari_root(place), _quiet_client():
                    minari.download_dataset(dataset_id)
    except Exception as error:  # the hub's client raises its network library's own types, which are no OSError
        known = ", ".join(local_ids()) or "none"
        raise UserError(
            f"dataset={dataset_id} is not on this machine and could not be downloaded "
            f"({type(error).__name__}: {one_line(error)}).{_similar(dataset_id)} Local ids: {known}. With a network, "
            f"get it by: MINARI_DATASETS_PATH={root} minari download {dataset_id}; or put it into {root / dataset_id}"
            f"{offline_hint()}"
        ) from error
    return root / dataset_id


@contextlib.contextmanager
def made_apart(dataset_id: str, root: Path) -> Iterator[Path | None]:
    """A folder to make a data set in, whose data sets are moved to `root` at the end; None where it is there by now.

    Else another process, or a later start after this one was killed, would take half of it for the data set.

    Raises:
        OSError: a folder cannot be written.
    """
    place = root / ".unfinished" / dataset_id.replace("/", "-")
    with one_writer(place):
        if (root / dataset_id / "data").is_dir():
            yield None
            return
        shutil.rmtree(place, ignore_errors=True)  # of one that was killed
        place.mkdir()
        try:
            yield place
            for folder in list(_below(place)):
                target = root / folder.relative_to(place)
                if not (target / "data").is_dir():  # parts of a combined data set may be there
                    _move(folder, target)
            for file in place.rglob("namespace_metadata.json"):
                target = root / file.relative_to(place)
                if target.parent.is_dir() and not target.exists():
                    shutil.copyfile(file, target)
        finally:
            shutil.rmtree(place)


def _move(folder: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f".{target.name}.{os.getpid()}")  # a namespace may be a link to another disk
        shutil.copytree(folder, beside)
        beside.rename(target)


def offline_hint() -> str:
    """How a machine without a network spares the wait for the hub, where it does not yet."""
    return "" if os.environ.get("HF_HUB_OFFLINE") else " (without a network HF_HUB_OFFLINE=1 spares the wait)"


def remote_ids(prefix: str = "") -> list[str] | None:
    """Ids on the hub, or None where it cannot be reached, which its client finds out within half a minute."""
    try:
        with _quiet_client():
            return sorted(minari.list_remote_datasets(prefix=prefix or None))
    except Exception:  # the hub's client raises its network library's own types; every one of them means "no"
        return None


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    """The hub's client tells of every attempt; one line at the end says as much."""
    from huggingface_hub.utils import logging  # Minari's dependency, read when it is needed: it takes a second

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def one_line(error: BaseException) -> str:
    """The beginning of an error's message without its line breaks."""
    return " ".join(str(error).split())[:200]
