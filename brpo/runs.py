"""The run folder: where its files are, and what is written into them."""

import contextlib
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from brpo.console import say
from brpo.errors import UserError
from brpo.files import remove_leftovers, typed_path, write_atomically, write_records
from brpo.installation import COMMIT, ROOT

DIRTY = "-dirty"  # behind a commit: the code or its configuration differ from it
_PACKAGES = ("brpo", "torch", "lightning", "numpy", "gymnasium", "mujoco", "minari", "hydra-core")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of last.ckpt, previous.ckpt and best.ckpt."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One row per evaluation and seed."""
        return self.path / "metrics.csv"

    @property
    def result(self) -> Path:
        """The result, once the run is finished."""
        return self.path / "result.json"

    @property
    def pictures(self) -> Path:
        """Folder of the pictures of evaluations."""
        return self.path / "pictures"

    @property
    def videos(self) -> Path:
        """Folder of the videos."""
        return self.path / "videos"

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists()

    def read_result(self) -> dict[str, Any]:
        """The result of the finished run.

        Raises:
            UserError: there is none, or it is not one of ours.
        """
        try:
            result = json.loads(self.result.read_text())
        except OSError as error:
            raise UserError(
                f"{self.path} is not the folder of a finished run: {error.strerror}: {error.filename}."
            ) from error
        except ValueError as error:
            raise self._no_result(f"{type(error).__name__} {error}") from error
        needed = {"algo": str, "dataset": dict, "config": dict, "updates": int, "final": dict}
        for key, kind in needed.items():
            if not isinstance(result, dict) or not isinstance(result.get(key), kind):
                raise self._no_result(f"it has no {key}, or none that can be")
        return result

    def _no_result(self, reason: str) -> UserError:
        return UserError(f"{self.result} is not a result file of ours: {reason}. Delete {self.path} to start anew.")

    def create(self, config: dict[str, Any], overrides: list[str]) -> None:
        """Make the folder with its configuration.

        Raises:
            UserError: it cannot be made or written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump({**config, "overrides": overrides}, sort_keys=False)
            write_atomically(self.config, text)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"The run folder {self.path} cannot be written ({error.strerror}). Choose another with run_dir=PATH."
        )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock goes with the process, however it ends.

        Where the file system has no locks, a note says so.

        Raises:
            UserError: another process is training here, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            opened = (self.path / ".lock").open("w")
        except OSError as error:
            raise self._unwritable(error) from error
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"Another process is training in {self.path}. Wait for it, or stop it first.") from error
            except OSError as error:
                reason = f"the file system has no locks ({error.strerror})"
                say(f"note: {reason}; see that no other process trains in {self.path}")
            else:
                remove_leftovers(self.path)
                remove_leftovers(self.checkpoints)
            yield

    def read_config(self) -> tuple[dict[str, Any], list[str]]:
        """Configuration and the overrides that were typed.

        Raises:
            UserError: there is none, or it is not one of ours.
        """
        try:
            stored = yaml.safe_load(self.config.read_text())
            overrides = stored.pop("overrides")
        except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path} is no run folder: its config.yaml cannot be read.") from error
        return stored, overrides


def new_run_folder(config: dict[str, Any], algorithm: str) -> RunFolder:
    """A folder nobody else has: runs/<algo>/<data set>/<time>-<id>; or `run_dir`, which must not hold a run.

    Raises:
        UserError: `run_dir` holds a run, or is no path.
    """
    if config["run_dir"]:
        folder = RunFolder(typed_path("run_dir", config["run_dir"]))
        refuse_second_run(folder)
        return folder
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return RunFolder(runs_root() / algorithm / config["dataset"].replace("/", "-") / stamp)


def runs_root() -> Path:
    """Where run folders are made: `runs/` in the working folder."""
    return Path("runs")


def refuse_second_run(folder: RunFolder) -> None:
    """Asked under the lock, since another process may have started a run here in the meantime.

    Raises:
        UserError: the folder holds a run.
    """
    if folder.holds_run():
        raise UserError(
            f"run_dir={folder.path} already holds a run. Continue it with resume=auto, or choose another folder."
        )


# --- Files of a run ---------------------------------------------------------------------------------------------------


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows of `metrics.csv`, atomically."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    write_records(path, rows)


def comparable(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the rows of `metrics.csv` that were evaluated as the last one: a resumed run may have changed how."""
    found = list(rows)
    last = found[-1] if found else {}
    return [row for row in found if all(row.get(key) == last.get(key) for key in ("mode", "episodes"))]


def cut_events(folder: Path, update: int, ends: Mapping[str, int]) -> None:
    """Drop from TensorBoard's event files what comes after an update, and a torn end.

    Args:
        folder: of the event files.
        update: the last one that is kept.
        ends: the same for tags of their own: by a tag's first two parts, or its first.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.record_writer import RecordWriter

    for path in sorted(folder.glob("events.out.tfevents.*")):
        kept = io.BytesIO()
        writer = RecordWriter(kept)
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            tags = [value.tag.split("/") for value in event.summary.value]
            groups = [group for tag in tags for group in ("/".join(tag[:2]), tag[0]) if group in ends]
            if event.step <= (ends[groups[0]] if groups else update):
                writer.write(raw)
        write_atomically(path, kept.getvalue())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the code that runs, `-dirty` where it or its configuration differ; None where nothing tells."""
    if COMMIT.is_file():
        return COMMIT.read_text().strip()
    if not (ROOT / ".git").exists():  # a repository around it is another one
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 10, "env": environment, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "brpo", "conf", "train.py"], **options
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}{DIRTY}" if changed else commit
