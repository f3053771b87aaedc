"""`profile=true`: a trace of one chunk for TensorBoard or Perfetto, and a table of what took the time."""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

from brpo.files import write_atomically


class Profile(Callback):
    """Traces the second chunk that is trained (the first one warms up, compiles or is captured), or the only one.

    Written are a `*.pt.trace.json.gz` (drop it on ui.perfetto.dev; TensorBoard's profiler plugin reads it too) and
    `summary.txt`. Only rank 0 is traced.

    Args:
        folder: where they go.
        rows: lines of the summary.
    """

    def __init__(self, folder: Path, rows: int = 25) -> None:
        self.folder, self.rows = folder, rows
        self.profiler: profile | None = None
        self.chunks = 0

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start, if this is the chunk."""
        if batch[0] < 0:  # pre-training
            return
        self.chunks += 1
        only = self.chunks == 1 and batch[1] >= pl_module.max_updates
        if (self.chunks == 2 or only) and trainer.is_global_zero:
            cuda = [ProfilerActivity.CUDA] if pl_module.device.type == "cuda" else []
            self.profiler = profile(activities=[ProfilerActivity.CPU, *cuda])
            self.profiler.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, if this was the chunk."""
        if self.profiler is None:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.profiler.stop()
        tensorboard_trace_handler(str(self.folder), worker_name="brpo", use_gzip=True)(self.profiler)
        order = "self_cuda_time_total" if pl_module.device.type == "cuda" else "self_cpu_time_total"
        table = self.profiler.key_averages().table(sort_by=order, row_limit=self.rows, max_name_column_width=60)
        write_atomically(self.folder / "summary.txt", f"updates {batch[0]} to {batch[1]}\n{table}\n")
        print(f"profile of the updates {batch[0]} to {batch[1]}: {self.folder}", flush=True)
        self.profiler = None
