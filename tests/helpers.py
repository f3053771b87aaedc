"""Things that several tests build."""

import copy
import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from brpo import training
from brpo.algorithms.base import OfflineAlgorithm
from brpo.config import register_resolvers, to_plain
from brpo.types import Batch, DataSpec

ROOT = Path(__file__).resolve().parents[1]
ALGORITHMS = sorted(path.stem for path in (ROOT / "conf" / "algo").glob("*.yaml"))


def algorithm_class(algo: str) -> Any:
    """The class that an algorithm's file names."""
    node = OmegaConf.load(ROOT / "conf" / "algo" / f"{algo}.yaml")
    return get_class(node.get("algo", node)["_target_"])


PRETRAINING = [name for name in ALGORITHMS if algorithm_class(name).pretrained]
# The most that a test's algorithm has of these: parts that wait or are seldom due would not be seen in a few updates.
SMALL = {"critics": 2, "steps": 2, "samples": 2, "candidates": 3, "time_dim": 8, "policy_delay": 4, "critic_only": 0}


def make_spec(observation: int = 3, action: int = 2, **changes: Any) -> DataSpec:
    """A DataSpec without a data set."""
    values: dict[str, Any] = {
        "dataset_id": "tests/none-v0",
        "digest": "0" * 64,
        "observation_dim": observation,
        "action_dim": action,
        "action_low": (-1.0,) * action,
        "action_high": (1.0,) * action,
        "observation_mean": (0.0,) * observation,
        "observation_std": (1.0,) * observation,
        "reward_scale": 1.0,
        "reward_shift": 0.0,
        "return_min": 0.0,
        "return_max": 1.0,
        "return_mean": 0.5,
        "reference_min": None,
        "reference_max": None,
        "environment": None,
        "transitions": 100,
        "episodes": 10,
    }
    return DataSpec(**{**values, **changes})


def compose_config(*overrides: str) -> dict[str, Any]:
    """The configuration of a command line."""
    return copy.deepcopy(_composed(*overrides))


@functools.cache  # composing takes longer than most tests
def _composed(*overrides: str) -> dict[str, Any]:
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return to_plain(compose("train", overrides=list(overrides)))


def make_algorithm(
    algo: str,
    *overrides: str,
    spec: DataSpec | None = None,
    seeds: tuple[int, ...] = (0,),
    dtype: torch.dtype = torch.float64,
    sizes: dict[str, int] | None = None,
) -> OfflineAlgorithm:
    """An algorithm with small networks, its optimizers ready; `sizes` instead of those of `SMALL`."""
    config = compose_config(f"algo={algo}", *overrides)
    shrink(config["algo"], {**SMALL, **(sizes or {})})
    algorithm = training.make_algorithm(config["algo"], spec or make_spec(), seeds=list(seeds), max_updates=1000)
    algorithm.to(dtype)
    algorithm.configure_optimizers()
    return algorithm


SEVERAL = {"samples": 1, "candidates": 0}  # numbers of `algo/size=small`, for which tests take some


def shrink(node: Any, sizes: dict[str, int] = SMALL) -> None:
    """Small hidden layers, ensembles and the like everywhere in a configuration node."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "hidden":
                node[key] = [16] * sizes.get("layers", 2)
            elif key in sizes and value is not None:
                node[key] = sizes[key] if SEVERAL.get(key) == value else min(value, sizes[key])
            else:
                shrink(value, sizes)


def random_batch(
    seeds: int = 1, size: int = 8, spec: DataSpec | None = None, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    """Transitions of random numbers; some of them terminated, some actions at the boundary."""
    spec, generator = spec or make_spec(), torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return Batch(
        normal(seeds, size, spec.observation_dim),
        normal(seeds, size, spec.action_dim).clamp(-1, 1),
        normal(seeds, size),
        normal(seeds, size, spec.observation_dim),
        normal(seeds, size, spec.action_dim).clamp(-1, 1),
        (normal(seeds, size) > 1).to(dtype),
    )


def set_apart(part: torch.nn.Module) -> None:
    """Move every parameter a little: what reads another copy of the part is then seen."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(1.1)


class Poison(Callback):
    """Makes a weight NaN after update 15, as a training that diverges would."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.update_count == 15:
            with torch.no_grad():
                next(pl_module.actor.parameters()).fill_(float("nan"))


class Stop(Callback):
    """Ends the run where the counter stands at `at` after a chunk, before a checkpoint: kills the process, or raises.

    Args:
        at: value of the update counter.
        kill: SIGKILL; else KeyError.
    """

    def __init__(self, at: int, kill: bool = False) -> None:
        self.at, self.kill = at, kill

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.update_count == self.at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("stopped")


class Hold(Callback):
    """Holds the run where the counter stands at `at` until there is a file `go`: a signal is sure to find it training."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        while pl_module.update_count == self.at and not Path("go").exists():
            time.sleep(0.01)


class PoisonBehavior(Callback):
    """Makes a weight of the behaviour model NaN where the counter stands at -80."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.update_count == -80:
            with torch.no_grad():
                next(pl_module.behavior.parameters()).fill_(float("nan"))


class SaveWeights(Callback):
    """Writes what a rank holds at the end of its training."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(pl_module.state_dict(), f"rank{trainer.global_rank}.pt")


class LoseLastRank(Callback):
    """Ends the last rank without a word to the others."""

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_rank == trainer.world_size - 1:
            os._exit(9)


class PoisonLastRank(Poison):
    """Makes the last rank alone diverge."""

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_rank == trainer.world_size - 1:
            super().on_train_batch_end(trainer, *rest)
