"""Lightning, logging, progress and checkpoints over a bare loop of the same updates (aim: at most 3 %).

    python benchmarks/overhead.py [--algo iql] [--updates 1000] [--rounds 7]

Both sides run in one process, in turn, after a warm-up; the median of the ratios is printed. Rollouts are left out.
"""

import io
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer
from common import build, composed, machine, paired, seconds
from lightning.pytorch.callbacks import Callback

from brpo import runs, training
from brpo.callbacks.checkpoints import Checkpoints
from brpo.callbacks.progress import UpdateProgress
from brpo.callbacks.recorder import Recorder
from brpo.callbacks.signals import Signals


class Clock(Callback):
    """Time from the first chunk to the end of training."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.start


def main(algo: str = "iql", updates: int = 1000, rounds: int = 7) -> None:
    """Print both sides and their ratio."""
    config = composed(f"algo={algo}", f"max_updates={updates}", f"eval.every={updates}", "trainer=cpu")
    training._quiet_libraries()

    def bare() -> float:
        algorithm, _ = build(config)
        algorithm.configure_optimizers()
        runner, chunk = algorithm.runner, config["engine"]["chunk"]
        assert runner is not None

        def loop() -> None:
            for start in range(0, updates, chunk):
                runner.run(algorithm, start, min(start + chunk, updates))
                algorithm.discard_records()

        return seconds(loop)

    def under_lightning() -> float:
        algorithm, datamodule = build(config)
        with tempfile.TemporaryDirectory() as folder, Signals() as signals, redirect_stdout(io.StringIO()):
            run = runs.RunFolder(Path(folder))
            recorder, clock = Recorder(run), Clock()
            progress = UpdateProgress(recorder, updates)
            saver = Checkpoints(run.checkpoints, recorder, signals)
            trainer = training.make_trainer(config, run, [recorder, progress, clock, saver])
            trainer.fit(algorithm, datamodule=datamodule)
        return clock.seconds

    lightning_seconds, bare_seconds, ratio = paired(under_lightning, bare, rounds)
    print(machine())
    print(f"{algo}, {updates} updates in chunks of {config['engine']['chunk']}, median of {rounds} rounds")
    print(f"bare loop             {1e3 * bare_seconds / updates:.3f} ms an update")
    print(f"Lightning and logging {1e3 * lightning_seconds / updates:.3f} ms an update")
    print(f"overhead {100 * (ratio - 1):+.2f} % (aim: at most +3 %)")


if __name__ == "__main__":
    typer.run(main)
