"""Finding the checkpoint that a run continues from, and bringing its folder back to it."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from brpo.config import against_resuming
from brpo.engine import checkpoint_io
from brpo.errors import UserError
from brpo.files import write_atomically
from brpo.runs import RunFolder, cut_events, runs_root
from brpo.types import DataSpec

EVALUATION_TAGS = ("evaluation", "evaluation_by_seed", "heldout")
CHECKPOINTS = ("last.ckpt", "previous.ckpt", "best.ckpt")  # what a run continues from, the first that is whole


@dataclass(frozen=True)
class Resumption:
    """Where a run continues."""

    folder: RunFolder
    checkpoint: Path | None  # None: it was killed before its first checkpoint
    updates: int
    notice: str
    config: dict[str, Any] | None = None  # the configuration that the checkpoint holds
    chosen: bool = False  # the user named this checkpoint; else it is the newest whole one of the folder
    ends: Mapping[str, int] = field(default_factory=dict)  # the last steps of events that do not end at `updates`
    evaluated_as: frozenset[tuple[str, int]] = frozenset()  # modes and episodes of the evaluation at `updates`, if any

    @classmethod
    def at(
        cls, folder: RunFolder, path: Path, checkpoint: dict[str, Any], notice: str = "", chosen: bool = False
    ) -> "Resumption":
        """Continue from a checkpoint that has been read."""
        ours = checkpoint["brpo"]
        made, pretrained = int(ours["updates"]), int(ours.get("pretrained", 0))
        states = list(checkpoint.get("callbacks", {}).values())
        evaluated = next((int(state["evaluated"]) for state in states if "evaluated" in state), -1)
        moment = f"update {made}" if made >= 0 else f"pre-training update {pretrained}"
        notice = f"{notice} Continuing {path} from {moment}.".strip()
        # Evaluations end with the one that was made last: a resumed run makes the next one again.
        ends = dict.fromkeys(EVALUATION_TAGS, evaluated)
        ends |= dict.fromkeys(("final", "_hparams_"), -1)  # of an end that is none any more
        # The pre-training has steps of its own, of which `made` and `evaluated` count the last ones below zero.
        ends |= {"pretrain": pretrained, "pretrain/heldout": pretrained - min(made, 0) + min(evaluated, 0)}
        rows = [row for state in states for row in state.get("rows", ()) if row["update"] == made == evaluated]
        kinds = frozenset((row["mode"], row["episodes"]) for row in rows)
        return cls(folder, path, max(made, 0), notice, ours.get("config"), chosen, ends, kinds)


def newest_checkpoint(folder: RunFolder) -> tuple[Path | None, dict[str, Any] | None, str]:
    """The newest whole checkpoint of a run, what it holds, and a notice where an older one had to be taken."""
    notices = []
    for name in CHECKPOINTS:
        path = folder.checkpoints / name
        if not path.exists():
            continue
        try:
            return path, checkpoint_io.read(path), " ".join(notices)
        except checkpoint_io.DamagedCheckpoint as error:
            notices.append(f"{error} Trying another one.")
    return None, None, " ".join(notices)


def resume_in(folder: RunFolder) -> Resumption:
    """Continue a run from its newest whole checkpoint; anew only where it was killed before there was anything to keep.

    Raises:
        UserError: the folder holds no run, or results without a checkpoint that could be continued.
    """
    if not folder.holds_run():
        raise UserError(f"{folder.path} holds no run to resume. A run folder has a config.yaml and checkpoints/.")
    path, checkpoint, notice = newest_checkpoint(folder)
    if path is None or checkpoint is None:
        if folder.result.exists():
            return Resumption(
                folder, None, folder.read_result()["updates"], f"{notice} {folder.path} has no whole checkpoint.".strip()
            )
        if any((folder.checkpoints / name).exists() for name in CHECKPOINTS):
            raise UserError(
                f"{notice.replace(' Trying another one.', '')} {folder.path} has no whole checkpoint to continue from. "
                f"To start anew, delete the folder."
            )
        return Resumption(folder, None, -1, f"{folder.path} has no checkpoint yet: it starts anew.")
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
    folder = RunFolder((path if path.parent.name else path.absolute()).parent.parent)  # typed inside checkpoints/, too
    if not folder.holds_run():
        raise UserError(f"resume={path} is not inside a run folder (no {folder.config}).")
    return Resumption.at(folder, path, checkpoint, chosen=True)


def check_data(path: Path, spec: DataSpec, stored: DataSpec, advice: str) -> None:
    """Refuse a data set that is not the one that a checkpoint was trained on; `advice` ends the sentence on what to do.

    Raises:
        UserError: the contents or the bounds of the actions are others.
    """
    if stored.digest != spec.digest:
        raise UserError(
            f"The data set {spec.dataset_id} has changed since {path} was written "
            f"(digest {spec.digest[:12]}, then {stored.digest[:12]}). Restore it{advice}."
        )
    bounds = {name: (getattr(spec, name), getattr(stored, name)) for name in ("action_low", "action_high")}
    if other := {name: both for name, both in bounds.items() if both[0] != both[1]}:  # no part of the digest
        raise UserError(
            f"The bounds of the actions of {spec.dataset_id} have changed since {path} was written "
            f"({', '.join(f'{name} {list(now)}, then {list(then)}' for name, (now, then) in other.items())}). "
            f"Restore them{advice}."
        )


def _check_references(path: Path, spec: DataSpec, stored: DataSpec) -> None:
    """Refuse other reference scores than those that the run's scores are in; where there were none, some may come."""
    now, then = ((each.reference_min, each.reference_max) for each in (spec, stored))
    if now != then and None not in (*now, *then):
        raise UserError(
            f"The reference returns of {spec.dataset_id} have changed since {path} was written ({now} score 0 and 100, then "
            f"{then}): the scores of the run would be in two units. Restore them, or start a new run."
        )


def take_up(
    resumption: Resumption, spec: DataSpec, config: dict[str, Any], overrides: list[str], scored: bool = True
) -> Resumption:
    """Under the lock, bring the folder back to the checkpoint that is continued; read it anew, it may have moved on.

    Args:
        resumption: where the run continues.
        spec: of the data at hand.
        config: of the run that goes on.
        overrides: what was typed for it.
        scored: whether policies are evaluated in it.

    Raises:
        UserError: the data set is not the one that the checkpoint was trained on, or its reference returns are others.
    """
    folder = resumption.folder
    if not resumption.chosen:
        resumption = resume_in(folder)
    if resumption.checkpoint is not None:
        stored = DataSpec.from_dict(checkpoint_io.read(resumption.checkpoint)["brpo"]["spec"])
        check_data(resumption.checkpoint, spec, stored, ", or start a new run")
        _check_references(resumption.checkpoint, spec, stored)
    if not resumption.chosen and resumption.checkpoint not in (None, folder.checkpoints / "last.ckpt"):
        # Out of the way: the next save keeps what stands as last.ckpt, and must not keep a damaged one.
        with contextlib.suppress(FileNotFoundError):
            (folder.checkpoints / "last.ckpt").rename(folder.checkpoints / "damaged.ckpt")
    if resumption.chosen or resumption.checkpoint == folder.checkpoints / "best.ckpt":  # which another evaluation replaces
        resumption = _as_last(folder, resumption)
    folder.create(config, overrides)
    cut_events(folder.path, resumption.updates, _ends(resumption, config["eval"], scored))
    folder.result.unlink(missing_ok=True)  # it is no longer the result of this run
    return resumption


def _ends(resumption: Resumption, evaluation: dict[str, Any], scored: bool) -> Mapping[str, int]:
    """The last steps of events. What the resumed run evaluates again at the checkpoint's own update takes its place.

    It does so where the evaluation there was of another kind (`Evaluate`); without an environment, for what is held out.
    """
    kinds, updates = resumption.evaluated_as, resumption.updates
    if not kinds or (evaluation["mode"], evaluation["episodes"]) in kinds or updates % evaluation["every"]:
        return resumption.ends
    again = EVALUATION_TAGS if scored else ("heldout",)
    return {**resumption.ends, **dict.fromkeys(again, updates - 1)}


def _as_last(folder: RunFolder, resumption: Resumption) -> Resumption:
    """Let the checkpoint that is continued be the newest one: a kill before the next save must not lead back to another."""
    last, previous = folder.checkpoints / "last.ckpt", folder.checkpoints / "previous.ckpt"
    assert resumption.checkpoint is not None
    if resumption.checkpoint.resolve() == last.resolve():
        return resumption
    write_atomically(last, resumption.checkpoint.read_bytes(), keep=folder.checkpoints / "abandoned.ckpt")
    previous.unlink(missing_ok=True)  # of the way that was left
    return replace(resumption, checkpoint=last)


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
        if against_resuming(stored, config):
            continue
        if not folder.result.exists():
            return folder
        finished = finished or folder
    return finished
