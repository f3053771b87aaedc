"""Which Minari data sets there are: on this machine, on the hub, and how one comes here."""

import contextlib
import difflib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import minari

from brpo.datasets import toy
from brpo.datasets.ids import is_toy
from brpo.errors import UserError
from brpo.files import one_writer

_ID = re.compile(r"(?:[\w-]+/)*[\w-]+-v\d+")


def data_roots() -> list[Path]:
    """Folders that are searched for data sets: `MINARI_DATASETS_PATH`, else the clone's `data/` and Minari's own folder.

    The clone's `data/` is searched in either case. What is downloaded comes into the first.
    """
    configured = os.environ.get("MINARI_DATASETS_PATH")
    bundled = Path(__file__).resolve().parents[2] / "data"
    if configured:
        return [Path(configured).expanduser().resolve(), bundled]
    return [bundled, Path.home() / ".minari" / "datasets"]


def local_ids() -> dict[str, Path]:
    """Ids of the data sets that are on this machine, with their folders. The first root wins."""
    found: dict[str, Path] = {}
    for root in data_roots():
        for folder in sorted(_below(root)):
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


def _below(root: Path) -> Iterator[Path]:
    """Folders of data sets, also behind symbolic links, which `Path.glob` does not follow."""
    for name, children, _ in os.walk(root, followlinks=True):
        folder = Path(name)
        circle = folder.is_symlink() and folder.resolve() in [parent.resolve() for parent in folder.parents]
        children[:] = [child for child in children if not child.startswith(".")]  # what is being made
        if (folder / "data" / "metadata.json").exists() and not circle:
            yield folder
            children.clear()
        elif circle:
            children.clear()


def check_id(dataset_id: str) -> None:
    """Refuse what is no Minari id.

    Raises:
        UserError: the id lacks its version, or has characters that no id has.
    """
    if _ID.fullmatch(dataset_id):
        return
    versions = [known for known in local_ids() if known.rpartition("-v")[0] == dataset_id]
    hint = f" Did you mean {versions[-1]}?" if versions else ""
    raise UserError(
        f"dataset={dataset_id} is not a Minari id. An id looks like brpo/halfcheetah/medium-replay-v0, "
        f"with its version at the end.{hint} List the local ones with: brpo data list"
    )


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
    return _download(dataset_id, data_roots()[0])


def _download(dataset_id: str, root: Path) -> Path:
    """Download a data set to a place of its own, and move it to `root` when it is whole.

    Else another process, or a later start after this one was killed, would take half of it for the data set.
    """
    previous = os.environ.get("MINARI_DATASETS_PATH")
    place = root / ".downloads" / dataset_id.replace("/", "-")
    try:
        with one_writer(place), _quiet_client():
            if (root / dataset_id / "data").is_dir():
                return root / dataset_id  # another process has got it while this one waited
            print(f"{dataset_id} is not on this machine; downloading it to {root}", flush=True)
            shutil.rmtree(place, ignore_errors=True)  # of one that was killed
            place.mkdir()
            try:
                os.environ["MINARI_DATASETS_PATH"] = str(place)
                minari.download_dataset(dataset_id)
                _move(place, root)
            finally:
                shutil.rmtree(place)
    except Exception as error:  # the hub's client raises its network library's own types, which are no OSError
        known = ", ".join(local_ids()) or "none"
        near = difflib.get_close_matches(dataset_id, local_ids(), n=1, cutoff=0.9)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"dataset={dataset_id} is not on this machine and could not be downloaded "
            f"({type(error).__name__}: {one_line(error)}).{hint} Local ids: {known}. With a network, get it by: "
            f"MINARI_DATASETS_PATH={root} minari download {dataset_id}; or put it into {root / dataset_id}"
        ) from error
    finally:
        if previous is None:
            os.environ.pop("MINARI_DATASETS_PATH", None)
        else:
            os.environ["MINARI_DATASETS_PATH"] = previous
    return root / dataset_id


def _move(place: Path, root: Path) -> None:
    """Move the data sets below a folder to another one, and what Minari keeps about their namespaces."""
    for folder in list(_below(place)):
        target = root / folder.relative_to(place)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    for file in place.rglob("namespace_metadata.json"):
        target = root / file.relative_to(place)
        if target.parent.is_dir() and not target.exists():
            file.rename(target)


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
