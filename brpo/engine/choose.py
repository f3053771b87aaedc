"""Which runner makes the updates: what was asked for, or what suits the device."""

import shutil
from typing import Any

import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.datamodule import Transitions
from brpo.engine import graphs
from brpo.engine.compiled import compile_update
from brpo.engine.runner import EagerRunner
from brpo.errors import UserError

# Updates, with those of a pre-training: compiling takes a minute, whatever the number of seeds, and saves a tenth or more.
WORTH_COMPILING = 20_000


def choose(
    name: str,
    algorithm: OfflineAlgorithm,
    device: torch.device,
    storage: str,
    precision: str = "32-true",
) -> tuple[str, str]:
    """The engine and why.

    Args:
        name: `auto`, `eager`, `compile` or `cudagraph`.
        algorithm: with its optimizers.
        device: where it will train.
        storage: where the data lie, `device` or `memmap`.
        precision: Lightning's.

    Raises:
        UserError: it cannot run here.
    """
    if name == "compile" and precision != "32-true":
        raise UserError(
            f"engine=compile does not go together with trainer.precision={precision}: gradients of densities, which "
            f"stay in float32, come out wrong. Use engine=eager or auto."
        )
    obstacle = _graph_obstacle(algorithm, device, storage)
    if name == "cudagraph" and obstacle:
        raise UserError(f"engine=cudagraph is not possible here: {obstacle}. Use engine=eager, compile or auto.")
    if name != "auto":
        return name, "asked for"
    if obstacle is None:
        return "cudagraph", "small networks on a GPU wait for kernel launches; a graph launches a chunk at once"
    if device.type == "cuda":
        return "eager", obstacle
    if precision != "32-true":
        return "eager", f"compiled updates do not go together with {precision}"
    if shutil.which("g++") is None:
        return "eager", "there is no g++ to compile with"
    # By the whole run and not by what is left of it: a part that was resumed is to repeat the roundings of the first.
    if _updates(algorithm) < WORTH_COMPILING:
        return "eager", f"compiling pays from {WORTH_COMPILING} updates on"
    return "compile", "compiled updates are a tenth faster or more, once they are compiled"


def _updates(algorithm: OfflineAlgorithm) -> int:
    return algorithm.max_updates + algorithm.pretrain_updates


def _graph_obstacle(algorithm: OfflineAlgorithm, device: torch.device, storage: str) -> str | None:
    if device.type != "cuda":
        return f"the device is {device.type}, a CUDA graph needs a GPU"
    if algorithm.ranks.averages:
        return (
            "parallel=data exchanges gradients inside an update, which is not captured (parallel=seeds exchanges none, and "
            "one GPU alone may be faster)"
        )
    if storage != "device":
        return f"data.storage={storage} reads batches from a file, which is not captured"
    return graphs.obstacle(algorithm)


def make_runner(
    name: str,
    algorithm: OfflineAlgorithm,
    transitions: Transitions,
    engine: dict[str, Any],
    batch_size: int,
    precision: str = "32-true",
) -> EagerRunner:
    """The runner of an engine. `compile` replaces the algorithm's update by a compiled one, `cudagraph` may do so too.

    Args:
        name: what `choose` gave.
        algorithm: on its device.
        transitions: on the same device.
        engine: the options of the configuration.
        batch_size: transitions of an update, for each seed.
        precision: Lightning's. Compiled updates go with 32-true alone; `auto` then captures eager ones.
    """
    if name == "cudagraph":
        pays = _updates(algorithm) >= WORTH_COMPILING and precision == "32-true"
        if engine["compiled"] is True or (engine["compiled"] == "auto" and pays):
            compile_update(algorithm, engine["backend"], or_eager=engine["compiled"] == "auto")
        return graphs.GraphRunner(transitions, batch_size, engine["chunk"])
    if name == "compile":
        compile_update(algorithm, engine["backend"], or_eager=engine["name"] == "auto")
    return EagerRunner(transitions, batch_size)
