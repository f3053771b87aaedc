"""Loading a data set, for both values of `data.storage`: time, peak memory, batches a second, and a short training.

    python benchmarks/loading.py [--transitions 1000000] [--storage device --storage memmap] [--updates 300]

A synthetic data set in Hopper's shape (11 observations, 3 actions, episodes of 1000 steps, float64 as Minari's own) is
made in a temporary folder and removed afterwards; 20 million transitions take 5 GB there, and 3 GB for memmap. Each
measurement runs in a process of its own; aim for one million and storage=device: at most 3 s, 2.5 times the tensors.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from brpo.exits import run_command

ROOT = Path(__file__).resolve().parents[1]
ID = "benchmark/hopper/synthetic-v0"
STEPS = 1000  # of an episode
MEGABYTE = 1e6


def make_dataset(transitions: int) -> None:
    """Write the data set: its first episode through Minari, the others into the file that Minari made."""
    import gymnasium
    import h5py
    import minari
    import numpy as np
    from minari.data_collector import EpisodeBuffer

    rng, flags = np.random.default_rng(0), np.zeros(STEPS, bool)
    last = flags.copy()
    last[-1] = True

    def episode() -> dict[str, np.ndarray]:
        return {
            "observations": rng.normal(size=(STEPS + 1, 11)),
            "actions": rng.uniform(-1, 1, size=(STEPS, 3)).astype(np.float32),
            "rewards": rng.normal(size=STEPS),
            "terminations": flags,
            "truncations": last,
        }

    dataset = minari.create_dataset_from_buffers(
        ID,
        [EpisodeBuffer(id=0, **episode())],
        env=gymnasium.spec("Hopper-v5"),
        eval_env=gymnasium.spec("Hopper-v5"),
        algorithm_name="random numbers",
        description="random numbers in Hopper's shape",
    )
    count = transitions // STEPS
    folder = Path(os.environ["MINARI_DATASETS_PATH"]) / ID / "data"
    with h5py.File(folder / "main_data.hdf5", "a", track_order=True) as file:
        for number in range(1, count):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": STEPS})
            for name, values in episode().items():
                group.create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))
    dataset.storage.update_metadata({"total_episodes": count, "total_steps": count * STEPS})


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in megabytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / MEGABYTE


def measure(storage: str, batch: int = 256, gathers: int = 2000) -> None:
    """Load in this process and print what it took."""
    from common import composed
    from torch import arange, zeros

    from brpo import training
    from brpo.datasets.datamodule import batch_indices

    config = composed("algo=iql", f"dataset={ID}", f"data.storage={storage}", "trainer=cpu", "engine.threads=1")
    before, start, work = resident("VmRSS"), time.perf_counter(), time.process_time()
    datamodule = training.make_datamodule(config)
    seconds, work, flat = time.perf_counter() - start, time.process_time() - work, datamodule.flat
    peak, tensors = resident("VmHWM") - before, flat.rows.nbytes / MEGABYTE
    share = f"{peak / tensors:.2f} times the {tensors:.0f} MB of the tensors"
    print(f"  set up in {seconds:.2f} s ({work:.2f} s of CPU); memory +{peak:.0f} MB at its peak, {share}")
    transitions = datamodule.train_transitions
    indices = batch_indices(zeros(1).long(), arange(gathers), batch, transitions)
    start, work = time.perf_counter(), time.process_time()
    for row in indices:
        transitions.gather(row)
    rate, work = gathers / (time.perf_counter() - start), (time.process_time() - work) / gathers
    print(f"  {rate:.0f} batches of {batch} a second, {1e3 * work:.2f} ms of CPU each")
    print(f"  memory afterwards +{resident('VmHWM') - before:.0f} MB at its peak")


def child(*command: str, cwd: Path = ROOT) -> None:
    """Run a program and print the largest resident set that it had; stop where it fails."""
    process = subprocess.Popen([sys.executable, *command], cwd=cwd)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    print(f"  largest resident set of the process: {usage.ru_maxrss * 1024 / MEGABYTE:.0f} MB", flush=True)


def main(
    transitions: int = 1_000_000,
    storage: Annotated[list[str] | None, typer.Option(help="device, memmap; repeat it for both (the default).")] = None,
    updates: Annotated[int, typer.Option(help="Length of the training; 0 leaves it out.")] = 300,
    folder: Annotated[Path | None, typer.Option(help="Where the temporary folder is made.")] = None,
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print load times, memory and rates."""
    if part:
        return make_dataset(transitions) if part == "data" else measure(part)
    this = str(Path(__file__).resolve())
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        os.environ["MINARI_DATASETS_PATH"] = str(Path(temporary) / "data")
        print(f"{transitions} transitions", flush=True)
        child(this, "--part", "data", "--transitions", str(transitions))
        for name in storage or ["device", "memmap"]:
            for title in {"device": ["load"], "memmap": ["conversion", "second start"]}[name]:
                print(f"storage={name}, {title}", flush=True)
                child(this, "--part", name)
            if updates:
                options = [
                    f"max_updates={updates}",
                    f"eval.every={updates}",
                    "eval.episodes=1",
                    "trainer=cpu",
                    "engine.threads=1",
                ]
                print(f"storage={name}, train.py algo=iql {' '.join(options)}", flush=True)
                child(
                    str(ROOT / "train.py"),
                    "algo=iql",
                    f"dataset={ID}",
                    f"data.storage={name}",
                    *options,
                    cwd=Path(temporary),
                )
    return None


if __name__ == "__main__":
    run_command(main)
