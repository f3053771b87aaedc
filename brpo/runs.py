"""The run folder: where its files are, how a run is found again, and what its result file says."""

import contextlib
import csv
import fcntl
import importlib.metadata
import io
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from brpo.config import differing_keys
from brpo.engine import checkpoint_io
from brpo.errors import UserError
from brpo.files import write_atomically, write_json
from brpo.types import DataSpec

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
    def videos(self) -> Path:
        """Folder of the videos."""
        return self.path / "videos"

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists()

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

        Raises:
            UserError: another process is training here, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            opened = (self.path / ".lock").open("w")
        except OSError as error:
            raise self._unwritable(error) from error
        with opened as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"Another process is training in {self.path}. Wait for it, or stop it first.") from error
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
        UserError: `run_dir` holds a run.
    """
    if config["run_dir"]:
        folder = RunFolder(Path(config["run_dir"]).expanduser())
        refuse_second_run(folder)
        return folder
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return RunFolder(runs_root() / algorithm / config["dataset"].replace("/", "-") / stamp)


def runs_root() -> Path:
    """Where run folders are made: `runs/` in the working folder."""
    return Path("runs")


@dataclass(frozen=True)
class Resumption:
    """Where a run continues."""

    folder: RunFolder
    checkpoint: Path | None  # None: it was killed before its first checkpoint
    updates: int
    notice: str
    config: dict[str, Any] | None = None  # the configuration that the checkpoint holds
    evaluated: int = -1  # the update that was evaluated last

    @classmethod
    def at(cls, folder: RunFolder, path: Path, checkpoint: dict[str, Any], notice: str = "") -> "Resumption":
        """Continue from a checkpoint that has been read."""
        ours = checkpoint["brpo"]
        updates = int(ours["updates"])
        states = checkpoint.get("callbacks", {}).values()
        evaluated = next((int(state["evaluated"]) for state in states if "evaluated" in state), -1)
        notice = f"{notice} Continuing {path} from update {updates}.".strip()
        return cls(folder, path, updates, notice, ours.get("config"), evaluated)


def newest_checkpoint(folder: RunFolder) -> tuple[Path | None, dict[str, Any] | None, str]:
    """The newest whole checkpoint of a run, what it holds, and a notice where an older one had to be taken."""
    notices = []
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder.checkpoints / name
        if not path.exists():
            continue
        try:
            return path, checkpoint_io.read(path), " ".join(notices)
        except checkpoint_io.DamagedCheckpoint as error:
            notices.append(f"{error} Trying the one before it.")
    return None, None, " ".join(notices)


def resume_in(folder: RunFolder) -> Resumption:
    """Continue a run from its newest whole checkpoint.

    Raises:
        UserError: the folder holds no run.
    """
    if not folder.holds_run():
        raise UserError(f"{folder.path} holds no run to resume. A run folder has a config.yaml and checkpoints/.")
    path, checkpoint, notice = newest_checkpoint(folder)
    if path is None or checkpoint is None:
        return Resumption(folder, None, -1, f"{notice} {folder.path} has no whole checkpoint: it starts anew.".strip())
    return Resumption.at(folder, path, checkpoint, notice)


def resume_from(path: Path) -> Resumption:
    """Continue a run folder, or a checkpoint file inside one.

    Raises:
        UserError: there is nothing of the kind, or the checkpoint is damaged.
    """
    if path.is_dir():
        return resume_in(RunFolder(path))
    if not path.exists():
        raise UserError(f"resume={path} does not exist. Give a run folder or a checkpoint, or use resume=auto.")
    checkpoint = checkpoint_io.read(path)
    folder = RunFolder(path.parent.parent)
    if not folder.holds_run():
        raise UserError(f"resume={path} is not inside a run folder (no {folder.config}).")
    return Resumption.at(folder, path, checkpoint)


def refuse_second_run(folder: RunFolder) -> None:
    """Asked under the lock, since another process may have started a run here in the meantime.

    Raises:
        UserError: the folder holds a run.
    """
    if folder.holds_run():
        raise UserError(
            f"run_dir={folder.path} already holds a run. Continue it with resume=auto, or choose another folder."
        )


def take_up(resumption: Resumption, spec: DataSpec, config: dict[str, Any], overrides: list[str]) -> Resumption:
    """Under the lock, bring the folder back to the checkpoint that is continued; read it anew, it may have moved on.

    Raises:
        UserError: the data set is not the one that the checkpoint was trained on.
    """
    folder = resumption.folder
    automatic = resumption.checkpoint is None or resumption.checkpoint.name in ("last.ckpt", "previous.ckpt")
    if automatic:
        resumption = resume_in(folder)
    if resumption.checkpoint is not None:
        stored = checkpoint_io.read(resumption.checkpoint)["brpo"]["spec"]
        if stored["digest"] != spec.digest:
            raise UserError(
                f"The data set {spec.dataset_id} has changed since {resumption.checkpoint} was written "
                f"(digest {spec.digest[:12]}, then {stored['digest'][:12]}). Restore it, or start a new run."
            )
    if resumption.checkpoint is not None and resumption.checkpoint.name == "previous.ckpt":
        # Out of the way: the next save keeps what stands as last.ckpt, and must not keep a damaged one.
        with contextlib.suppress(FileNotFoundError):
            (folder.checkpoints / "last.ckpt").rename(folder.checkpoints / "damaged.ckpt")
    folder.create(config, overrides)
    cut_events(folder.path, resumption.updates, resumption.evaluated)
    folder.result.unlink(missing_ok=True)  # it is no longer the result of this run
    return resumption


def find_unfinished(config: dict[str, Any], algorithm: str) -> RunFolder | None:
    """The newest unfinished run of the same algorithm, data set and configuration; else the newest finished one."""
    parent = runs_root() / algorithm / config["dataset"].replace("/", "-")
    finished: RunFolder | None = None
    for path in sorted(parent.glob("*/config.yaml"), key=lambda p: (p.parent.name, p.stat().st_mtime), reverse=True):
        folder = RunFolder(path.parent)
        try:
            stored, _ = folder.read_config()
        except UserError:
            continue
        if differing_keys(stored, config):
            continue
        if not folder.result.exists():
            return folder
        finished = finished or folder
    return finished


# --- Files of a run ---------------------------------------------------------------------------------------------------


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows of `metrics.csv`, atomically."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def cut_events(folder: Path, update: int, evaluated: int | None = None) -> None:
    """Drop from TensorBoard's event files what comes after an update, and a torn end.

    Of evaluations, what comes after the one that was `evaluated` last: a resumed run makes the next one again.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.record_writer import RecordWriter

    for path in sorted(folder.glob("events.out.tfevents.*")):
        kept = io.BytesIO()
        writer = RecordWriter(kept)
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            evaluation = any(value.tag.startswith(("evaluation", "heldout")) for value in event.summary.value)
            if event.step <= (evaluated if evaluation and evaluated is not None else update):
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
    """Commit of the clone that runs, `-dirty` where the code or its configuration differ; None outside a clone."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        options = {"cwd": root, "capture_output": True, "text": True, "timeout": 10, "env": environment, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "brpo", "conf", "train.py"], **options
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write `result.json`."""
    write_json(path, result)
