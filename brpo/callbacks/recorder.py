"""Takes the numbers of every chunk off the device, and keeps the table of evaluations."""

import time
from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from tensorboard.compat.proto.summary_pb2 import Summary as ScalarEvent  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard.summary import scalar
from torch.utils.tensorboard.writer import SummaryWriter

from brpo import runs
from brpo.console import say
from brpo.engine.ranks import ALONE, Ranks
from brpo.errors import TrainingDiverged
from brpo.evaluation.kinds import ROLLOUTS, Kind, Summary
from brpo.files import write_atomically
from brpo.functional import weights

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
WEIGHTS = ("weight/w", "ratio/rho")  # what `diagnose` calls the factors that multiply the behaviour density


def writer(trainer: lightning.Trainer) -> SummaryWriter:
    """TensorBoard's writer. It is used directly: the step is the update, which Lightning does not count."""
    assert trainer.logger is not None
    return trainer.logger.experiment  # pyright: ignore[reportAttributeAccessIssue]


def add_scalars(trainer: lightning.Trainer, values: dict[str, float], step: int) -> None:
    """Numbers of one step, to TensorBoard and to the user's own loggers; on rank 0.

    One event for all tags: each wakes the thread that writes.
    """
    if not values:
        return
    event = ScalarEvent()
    for name, value in values.items():
        event.MergeFrom(scalar(name, value))
    writer(trainer)._get_file_writer().add_summary(event, step)
    for logger in trainer.loggers[1:]:
        logger.log_metrics(values, step)


class Recorder(Callback):
    """Chunk means and evaluations to TensorBoard and the user's own loggers, evaluations to `metrics.csv` too; clocks.

    Its state is in the checkpoint, so a resumed run rewrites `metrics.csv` from what the checkpoint knows.

    Args:
        folder: the run folder; rank 0 writes into it.
        ranks: the group; every rank keeps the rows of all seeds.
        mode: of the evaluations, `mean` or `sampled`.
        episodes: of an evaluation, for each seed.
        kind: how evaluations are judged.
        constants: numbers that are logged once.
    """

    def __init__(
        self,
        folder: runs.RunFolder,
        ranks: Ranks = ALONE,
        *,
        mode: str = "mean",
        episodes: int = 1,
        kind: Kind = ROLLOUTS,
        constants: dict[str, float] | None = None,
    ) -> None:
        self.folder, self.ranks, self.constants = folder, ranks, constants or {}
        self.mode, self.episodes, self.kind = mode, episodes, kind
        self.rows: list[dict[str, Any]] = []
        self.part: dict[str, Any] = {}  # what makes the updates from here on
        self.parts: list[dict[str, Any]] = []  # of the run, with the update that each began at
        self.latest: dict[str, list[float]] = {}
        self.heldout: dict[str, float] = {}  # means of the newest held-out quantities
        self.train_seconds = 0.0  # without the pre-training
        self.earlier_seconds = 0.0  # wall time of the parts before this one
        self.earlier_cpu_seconds = 0.0
        self.start, self.cpu_start = time.monotonic(), time.process_time()
        self.chunk_rate = 0.0  # updates per second of the last chunk
        self._chunk_start = self.start

    def wall_seconds(self) -> float:
        """Wall time of all parts of the run."""
        return self.earlier_seconds + time.monotonic() - self.start

    def cpu_seconds(self) -> float:
        """Processor time of this process in all parts of the run; not of those that step environments."""
        return self.earlier_cpu_seconds + time.process_time() - self.cpu_start

    def state_dict(self) -> dict[str, Any]:
        """Rows, parts and clocks."""
        return {
            "rows": self.rows,
            "parts": self.parts,
            "train_seconds": self.train_seconds,
            "wall_seconds": self.wall_seconds(),
            "cpu_seconds": self.cpu_seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rows, self.parts = list(state_dict["rows"]), list(state_dict.get("parts", []))
        self.train_seconds, self.earlier_seconds = state_dict["train_seconds"], state_dict["wall_seconds"]
        self.earlier_cpu_seconds = state_dict.get("cpu_seconds", 0.0)

    @property
    def comparable(self) -> list[dict[str, Any]]:
        """Rows of the present mode and number of episodes, which a resumed run may have changed."""
        return [row for row in self.rows if (row["mode"], row["episodes"]) == (self.mode, self.episodes)]

    def misses(self, update: int) -> bool:
        """Whether an update was evaluated, but not in the present mode with the present number of episodes."""
        return update in {row["update"] for row in self.rows} - {row["update"] for row in self.comparable}

    @property
    def best_update(self) -> int | None:
        """The best evaluation by the mean over the seeds, the first of equal ones."""
        return self.kind.best(self.comparable)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Bring `metrics.csv` to what the checkpoint knows, and begin a part of the run."""
        begun = self.parts[-1].get("code") if self.parts else None
        if begun and begun != self.part.get("code") and self.ranks.rank == 0:
            say("note: the method's code has changed since the part of this run before; `brpo report` will say so")
        self.parts.append({"update": pl_module.update_count, **self.part})
        self._write_rows()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log what does not change, in the first part of a run; the configuration, to the user's own loggers."""
        if self.ranks.rank != 0:
            return
        if self.earlier_seconds == 0.0:
            add_scalars(trainer, self.constants, 0)
        for logger in trainer.loggers[1:]:
            logger.log_hyperparams(pl_module.stored["config"])

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock of the chunk."""
        self._chunk_start = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the chunk's means. Raises `TrainingDiverged` before anything of the chunk is kept."""
        self.latest = self._take_records(pl_module)
        seconds = time.monotonic() - self._chunk_start
        start, stop = batch
        self.train_seconds += seconds if start >= 0 else 0.0
        self.chunk_rate = (stop - start) / max(seconds, 1e-9)
        # The pre-training has tags of its own, and steps that begin at 0.
        prefix, step = ("", stop) if start >= 0 else ("pretrain/", stop + pl_module.pretrain_updates)
        means = {prefix + name: sum(values) / len(values) for name, values in self.latest.items()}
        means[prefix + "speed/updates_per_second"] = self.chunk_rate
        if self.ranks.rank == 0:
            add_scalars(trainer, means, step)

    def _take_records(self, algorithm: Any) -> dict[str, list[float]]:
        """The chunk's means of all ranks; where one has diverged, all stop."""
        records, error = {}, None
        try:
            records = algorithm.take_records()  # waits for the device
        except TrainingDiverged as diverged:
            error = diverged
        self.ranks.fail_together(error)
        return self.ranks.merge(records)

    def _write_rows(self) -> None:
        if self.ranks.rank == 0:
            runs.write_metrics(self.folder.metrics, self.rows)

    def add_evaluation(self, trainer: lightning.Trainer, summaries: Sequence[Summary]) -> None:
        """Keep an evaluation of all seeds."""
        update, scalars = summaries[0].update, {}
        self.rows = [row for row in self.rows if row["update"] != update]
        speed = update / self.train_seconds if self.train_seconds else 0.0
        for summary in summaries:
            values = summary.numbers()
            row = {"update": update, "seed": summary.seed, "mode": self.mode}
            row |= {"episodes": self.episodes, **values}
            row |= {"updates_per_second": round(speed, 2), "wall_seconds": round(self.wall_seconds(), 2)}
            self.rows.append(row)
            for name, value in values.items():
                if value is not None and len(summaries) > 1:
                    scalars[f"evaluation_by_seed/{name}/{summary.seed}"] = value
        for name in summaries[0].numbers():
            values = [value for summary in summaries if (value := summary.numbers()[name]) is not None]
            if len(values) == len(summaries):
                scalars[f"evaluation/{name}"] = sum(values) / len(values)
        # A run that was started before there was some column has it from here on.
        self.rows = [{**dict.fromkeys(self.rows[-1]), **row} for row in self.rows]
        if self.ranks.rank == 0:
            add_scalars(trainer, scalars, update)
        self._write_rows()

    def add_pictures(self, trainer: lightning.Trainer, pictures: dict[str, bytes], update: int) -> None:
        """Keep pictures of an evaluation, PNG by name, in the run folder and in TensorBoard."""
        if self.ranks.rank != 0 or not pictures:
            return
        import imageio.v3 as imageio

        for name, content in pictures.items():
            self.folder.pictures.mkdir(exist_ok=True)
            write_atomically(self.folder.pictures / f"{name}-{update}.png", content)
            pixels = imageio.imread(content, extension=".png")[..., :3]
            writer(trainer).add_image(f"evaluation/{name}", pixels, update, dataformats="HWC")

    def add_distributions(
        self, trainer: lightning.Trainer, values: dict[str, torch.Tensor], update: int, prefix: str = ""
    ) -> None:
        """Histogram, mean and quantiles of each quantity (seeds, n) on the held-out batch, over all seeds.

        Of weights and ratios also the effective sample share, mean over the seeds. Tags begin with `prefix` and heldout/.
        """
        if self.ranks.rank != 0:
            return
        scalars, self.heldout = {}, {}
        for name, tensor in values.items():
            tag = f"{prefix}heldout/{name}"
            numbers = tensor.detach().float().flatten().cpu().numpy()
            finite = numbers[np.isfinite(numbers)]
            scalars[f"{tag}/finite_share"] = len(finite) / len(numbers)
            if not len(finite):
                continue
            writer(trainer).add_histogram(tag, finite, update)
            scalars[f"{tag}/mean"] = self.heldout[tag] = float(finite.mean())
            for level, quantile in zip(QUANTILES, np.quantile(finite, QUANTILES), strict=True):
                scalars[f"{tag}/q{round(100 * level):02d}"] = float(quantile)
            if name in WEIGHTS and len(finite) == len(numbers):
                share = weights.effective_sample_share(tensor.detach().double()).mean()
                scalars[f"{tag}/effective_share"] = float(share)
        add_scalars(trainer, scalars, update)

    def last_fit(self) -> str:
        """The policy's newest fit of held-out actions by its tag, or nothing."""
        tags = (f"heldout/{name}" for name in ("actor/log_prob", "actor/error", "actor/denoising_error"))
        return next((f"{tag} {self.heldout[tag]:.3f}" for tag in tags if tag in self.heldout), "")

    def last_score(self) -> str:
        """The newest evaluation in words, or nothing."""
        if not self.rows:
            return ""
        rows = [row for row in self.rows if row["update"] == self.rows[-1]["update"]]
        columns = self.kind.reported
        name = next(name for name in self.kind.lead if rows[0][columns[name]] is not None)
        return f"{name.replace('_', ' ')} {sum(row[columns[name]] for row in rows) / len(rows):.{self.kind.digits}f}"
