"""Which runner makes the updates: what was asked for, or what suits the device."""

from typing import Any

import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.datamodule import Transitions
from brpo.engine import graphs
from brpo.engine.compiled import compile_losses
from brpo.engine.runner import EagerRunner
from brpo.errors import UserError


def choose(name: str, algorithm: OfflineAlgorithm, device: torch.device, storage: str) -> tuple[str, str]:
    """The engine and why.

    Args:
        name: `auto`, `eager`, `compile` or `cudagraph`.
        algorithm: with its optimizers.
        device: where it will train.
        storage: where the data lie, `device` or `memmap`.

    Raises:
        UserError: it cannot run here.
    """
    obstacle = _graph_obstacle(algorithm, device, storage)
    if name == "cudagraph" and obstacle:
        raise UserError(f"engine=cudagraph is not possible here: {obstacle}. Use engine=eager, compile or auto.")
    if name != "auto":
        return name, "asked for"
    if obstacle is None:
        return "cudagraph", "small networks on a GPU wait for kernel launches; a graph launches a chunk at once"
    if device.type == "cuda":
        return "eager", obstacle
    return "eager", "on a CPU compiling takes a minute and gains little"


def _graph_obstacle(algorithm: OfflineAlgorithm, device: torch.device, storage: str) -> str | None:
    if device.type != "cuda":
        return f"the device is {device.type}, a CUDA graph needs a GPU"
    if algorithm.ranks.averages:
        return "parallel=data exchanges gradients inside an update, which is not captured (parallel=seeds exchanges none)"
    if storage != "device":
        return f"data.storage={storage} reads batches from a file, which is not captured"
    return graphs.obstacle(algorithm)


def make_runner(
    name: str, algorithm: OfflineAlgorithm, transitions: Transitions, engine: dict[str, Any], batch_size: int
) -> EagerRunner:
    """The runner of an engine; for `compile`, the algorithm's losses are replaced by compiled ones.

    Args:
        name: what `choose` gave.
        algorithm: on its device.
        transitions: on the same device.
        engine: the options of the configuration.
        batch_size: transitions of an update, for each seed.

    Raises:
        UserError: the algorithm has nothing to compile.
    """
    if name == "cudagraph":
        return graphs.GraphRunner(transitions, batch_size, engine["chunk"])
    if name == "compile" and not compile_losses(algorithm, engine["backend"]):
        raise UserError(
            f"engine=compile finds no loss in {type(algorithm).__name__}: a part's loss is a method <part>_loss, "
            f"for the parts {', '.join(algorithm.trained)}. Use engine=eager."
        )
    return EagerRunner(transitions, batch_size)
