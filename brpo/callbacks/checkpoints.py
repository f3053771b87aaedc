"""Writes `last`, `previous` and `best` checkpoints, and the last one of an interrupted run."""

import signal
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from brpo.callbacks.recorder import Recorder, writer
from brpo.callbacks.signals import Signals
from brpo.console import say
from brpo.engine import checkpoint_io
from brpo.engine.ranks import ALONE, Ranks
from brpo.errors import Interrupted, UserError
from brpo.installation import TRAIN


class Checkpoints(Callback):
    """Saves after every evaluation and, between them, at the first chunk's end after `every_seconds`.

    Not Lightning's ModelCheckpoint, which goes by `trainer.global_step`: under manual optimization that stays 0, and
    nothing would be written. It comes last in the list of callbacks, so that a checkpoint holds the others' new state.

    Args:
        folder: where the checkpoints go.
        recorder: knows which evaluation is the best.
        signals: looked at after every chunk.
        ranks: the group: all save together, and a signal to one of them stops all.
        every_seconds: longest time of training that a kill may cost.
    """

    def __init__(
        self, folder: Path, recorder: Recorder, signals: Signals, ranks: Ranks = ALONE, every_seconds: float = 60.0
    ) -> None:
        self.folder, self.recorder, self.signals, self.ranks = folder, recorder, signals, ranks
        self.every_seconds = every_seconds
        self.saved_at = time.monotonic()

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "last.ckpt"

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """After Evaluate has made up for a missed evaluation: keep it if it is the best; stop if it was interrupted.

        Nothing is saved as `last` here, so that an evaluation that was given up stays the first thing to do.
        """
        self._save_best(trainer, pl_module)
        if self.ranks.rank == 0:
            self._drop_other_best()
        self._stop_if(self.signals.received, pl_module)

    def _drop_other_best(self) -> None:
        """A resumed run may judge in another way, or have gone back: then `best.ckpt` is not the best that it knows."""
        path = self.folder / "best.ckpt"
        if not path.exists():
            return
        try:
            update = checkpoint_io.read(path)["brpo"]["updates"]
        except UserError as error:
            say(f"note: {error} It was deleted.")
            path.unlink()
            return
        if update != self.recorder.best_update:
            path.unlink()
            say(f"note: {path} was deleted: update {update} is not the best evaluation that this run knows")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, or if a signal arrived."""
        received = self.signals.received  # read once: one that arrives while the ranks confer is the next chunk's
        overdue = self.ranks.rank == 0 and time.monotonic() - self.saved_at >= self.every_seconds
        if self.ranks.any(overdue or received is not None):
            self._save(trainer)
        self._stop_if(received, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save after the evaluation; the best one also as `best.ckpt`."""
        self._save_best(trainer, pl_module)  # first: a kill in between leaves the evaluation to be made again
        self._save(trainer)
        self._stop_if(self.signals.received, pl_module)

    def _save_best(self, trainer: lightning.Trainer, algorithm: Any) -> None:
        if self.recorder.best_update == algorithm.update_count:
            self._write(trainer, self.folder / "best.ckpt")

    def _save(self, trainer: lightning.Trainer) -> None:
        writer(trainer).flush()  # events up to a checkpoint must be on the disk before it
        for logger in trainer.loggers[1:]:
            logger.save()
        self._write(trainer, self.last)
        self.saved_at = time.monotonic()

    def _write(self, trainer: lightning.Trainer, path: Path) -> None:
        try:
            trainer.save_checkpoint(path)
        except OSError as error:
            run, kept = self.folder.parent, [file for file in (self.last, self.folder / "previous.ckpt") if file.exists()]
            advice = (
                f"{kept[0]} of before is intact. Make room and continue with resume={run}, or copy {run} to where there is "
                f"room and continue with resume=COPY."
                if kept
                else f"no checkpoint had been written yet. Make room and start anew with resume={run}, or where there is "
                f"room with run_dir=PATH."
            )
            raise UserError(f"The checkpoint {path} cannot be written ({error.strerror}); {advice}") from error

    def _stop_if(self, received: signal.Signals | None, algorithm: Any) -> None:
        self.ranks.fail_together(self._interrupted(received.name, algorithm) if received is not None else None)

    def require_end(self, algorithm: Any) -> None:
        """After the training: one that something else has ended, such as trainer.max_time, is an interrupted one."""
        done = algorithm.update_count >= algorithm.max_updates
        stopped = f"stopped before max_updates={algorithm.max_updates}, by trainer.max_time or a callback,"
        self.ranks.fail_together(None if done else self._interrupted(stopped, algorithm))

    def _interrupted(self, reason: str, algorithm: Any) -> Interrupted:
        if not self.last.exists():
            return Interrupted(f"{reason} before the first chunk of updates; there is nothing to save yet.")
        return Interrupted(
            f"{reason} at {algorithm.moment(algorithm.update_count)}; saved {self.last}. "
            f"Continue with: {TRAIN} resume={self.folder.parent}"
        )
