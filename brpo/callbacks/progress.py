"""Progress: a bar in updates where the output is a terminal, plain lines where it is not."""

import contextlib
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from brpo.callbacks.recorder import Recorder
from brpo.console import say


class UpdateProgress(ProgressBar):
    """Updates made, updates per second, the latest score (without an environment the held-out fit), time left.

    Args:
        recorder: knows the latest score.
        max_updates: where it ends.
        every_seconds: time between plain lines.
        scored: whether the run will have scores.
    """

    def __init__(self, recorder: Recorder, max_updates: int, every_seconds: float = 10.0, scored: bool = True) -> None:
        super().__init__()
        self.recorder, self.max_updates, self.every_seconds = recorder, max_updates, every_seconds
        self.scored = scored
        self.console = Console()
        self.bar: Progress | None = None
        self.enabled = True
        self._rate = 0.0
        self._line_at = 0.0

    def disable(self) -> None:
        """Lightning disables the bar on ranks other than 0."""
        self.enabled = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Open the bar."""
        if self.enabled and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TextColumn("[bold]{task.fields[score]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console)
            with contextlib.suppress(OSError):  # a terminal that was closed, as in `say`
                self.bar.start()
            name, done, total = self._position(pl_module, pl_module.pretraining)
            self.bar.add_task(name, total=total, completed=done, speed="", score="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        rate = self.recorder.chunk_rate
        self._rate = rate if not self._rate or batch[0] == 0 else 0.9 * self._rate + 0.1 * rate
        self._line_at = self._line_at if batch[1] else 0.0  # the end of the pre-training is shown
        if batch[0] < 0 or not trainer.is_last_batch:  # else an evaluation follows, and its line
            self._show(pl_module, pretraining=batch[0] < 0)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Show the score of the evaluation that has just been made; there is none in the pre-training."""
        if pl_module.update_count > 0:
            self._line_at = 0.0
            self._show(pl_module)

    def _position(self, algorithm: Any, pretraining: bool) -> tuple[str, int, int]:
        """What is counted, how much of it is done, and how much there is."""
        update = algorithm.update_count
        if pretraining:
            return ", ".join(algorithm.pretrained), algorithm.pretrain_updates + update, algorithm.pretrain_updates
        return "update", update, self.max_updates

    def _show(self, algorithm: Any, pretraining: bool = False) -> None:
        if not self.enabled:
            return
        score = self.recorder.last_score() if self.scored else self.recorder.last_fit()
        name, done, total = self._position(algorithm, pretraining)
        if self.bar is not None:
            task, speed = self.bar.task_ids[0], f"{self._rate:.0f}/s"
            with contextlib.suppress(OSError):
                self.bar.update(task, description=name, total=total, completed=done, speed=speed, score=score)
            return
        if time.monotonic() - self._line_at < self.every_seconds:
            return
        self._line_at = time.monotonic()
        score = score or ("no score yet" if self.scored else "")
        score = f"{score}  " if score and not pretraining else ""
        left = (total - done) / max(self._rate, 1e-9)
        say(f"{name} {done}/{total}  {self._rate:.0f}/s  {score}{left:.0f} s left")

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Close the bar, so that whatever is printed next stands below it."""
        self._close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """As `teardown`, which Lightning leaves out then: the cursor must come back."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.stop()
            self.bar = None
