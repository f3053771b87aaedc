"""What the benchmarks share: composing a configuration, building an algorithm on its data, naming the machine."""

import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hydra import compose, initialize_config_dir  # noqa: E402

from brpo import training  # noqa: E402
from brpo.algorithms.base import OfflineAlgorithm  # noqa: E402
from brpo.config import register_resolvers, seed_list, to_plain  # noqa: E402
from brpo.datasets.datamodule import OfflineDataModule  # noqa: E402
from brpo.engine.choose import choose, make_runner  # noqa: E402


def composed(*overrides: str) -> dict[str, Any]:
    """The configuration of a command line, its torch settings applied."""
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = to_plain(compose("train", overrides=list(overrides)))
    training.set_up_torch(config)
    return config


def build(config: dict[str, Any], device: str = "cpu") -> tuple[OfflineAlgorithm, OfflineDataModule]:
    """The algorithm with the runner of its engine, on a device, and its data (on the CPU).

    `engine=auto` becomes the engine that was chosen.
    """
    datamodule = training.make_datamodule(config)
    seeds = seed_list(config["seeds"])
    algorithm = training.make_algorithm(config["algo"], datamodule.spec, seeds=seeds, max_updates=config["max_updates"])
    algorithm.to(device)
    algorithm.configure_optimizers()  # anew: the parameters may have moved
    transitions = datamodule.train_transitions.to(algorithm.seeds.device)
    engine = config["engine"]
    engine["name"], _ = choose(engine["name"], algorithm, algorithm.seeds.device, config["data"]["storage"])
    algorithm.runner = make_runner(engine["name"], algorithm, transitions, engine, config["batch_size"])
    return algorithm, datamodule


def machine() -> str:
    """Processor, threads and versions, for the head of a table."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, Python {platform.python_version()}"


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rotated(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What several measurements give in some rounds, after a warm-up of each; every round starts with another of them."""
    names, results = list(runs), {name: [] for name in runs}
    for run in runs.values():
        run()
    for k in range(rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(runs[name]())
    return results
