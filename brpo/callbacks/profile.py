"""`profile=true`: a trace of one chunk for TensorBoard or Perfetto, and a table of what took the time."""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

from brpo.console import say
from brpo.files import write_atomically


class Profile(Callback):
    """Traces the first chunk that trains all parts as the rest of the run will: once it is compiled or captured.

    That is the second one (third under a CUDA graph) after the last part has joined; of a shorter run the last one.

    Written are a `*.pt.trace.json.gz` (drop it on ui.perfetto.dev; TensorBoard's profiler plugin reads it too) and
    `summary.txt`. Only rank 0 is traced.

    Args:
        folder: where they go.
        rows: lines of the summary.
    """

    def __init__(self, folder: Path, rows: int = 25) -> None:
        self.folder, self.rows = folder, rows
        self.profiler: profile | None = None
        self.chunks = 0  # whole ones that trained all parts
        self.size = 0
        self.done = False

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start, if this is the chunk."""
        if batch[0] < 0 or self.done or not trainer.is_global_zero:  # below 0: pre-training
            return
        size = batch[1] - batch[0]
        self.size = max(self.size, size)
        whole = size == self.size  # shorter ones, before an evaluation, are not captured
        all_parts = batch[0] >= max((after for _, after in pl_module.asked), default=0)
        self.chunks = self.chunks + whole if all_parts else 0
        if (whole and self.chunks > pl_module.runner.warms_up) or batch[1] >= pl_module.max_updates:
            self.done = True
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
        say(f"profile of the updates {batch[0]} to {batch[1]}: {self.folder}")
        self.profiler = None
