"""Does the JAX loop of BDPO make brpo's update? The same weights, batches and noise in, the same weights and losses out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from peers_jax_bdpo import BDPO, PARTS
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.modules.mlp import initialize
from brpo.types import Batch

Arrays = dict[str, np.ndarray]


def difference(algorithm: Any, options: dict[str, Any], batches: Sequence[Batch], fields: Sequence[str]) -> float:
    """The largest difference of a weight or loss after some updates; losses relative to 1 + their magnitude.

    Args:
        algorithm: one seed, float64, with optimizers, before its first update. The actor and all averages are drawn anew, so
            that actor, behaviour and averages differ; then it is trained on the batches.
        options: those of the loop.
        batches: (1, batch, ...), float64, one for each update.
        fields: of a batch, those that an update reads.
    """
    for name in ("actor", *(f"{part}_target" for part in PARTS)):
        initialize(getattr(algorithm, name), algorithm.seeds, f"check/{name}")
    parameters, targets = weights_of(algorithm)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        learner = BDPO(options, algorithm.max_updates)
        update = jax.jit(learner.update, compiler_options={"xla_backend_optimization_level": 0})
        state = learner.start(jax.tree.map(jax.numpy.asarray, parameters), targets)
        found = 0.0
        for batch in batches:
            with recorded_noise(algorithm) as noise:
                algorithm.step(batch)
            plain = {name: array(getattr(batch, name)) for name in fields}
            unused = learner.noise(state.key, plain)  # of the parts that are not due
            state, losses = update(state, plain, unused | noise)
            for name, (loss,) in algorithm.take_records().items():
                if name.startswith("loss/"):
                    theirs = float(losses[name.removeprefix("loss/")])
                    found = max(found, abs(loss - theirs) / (1.0 + abs(loss)))
        pairs = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()), weights_of(algorithm), (state.parameters, state.targets)
        )
    return max(found, *jax.tree.leaves(pairs))


@contextmanager
def recorded_noise(algorithm: OfflineAlgorithm) -> Iterator[Arrays]:
    """What an algorithm draws meanwhile, by name."""
    noise: Arrays = {}

    def recording(draw: Any) -> Any:
        def run(name: str, *arguments: Any) -> Tensor:
            drawn = draw(name, *arguments)
            noise[name] = array(drawn)
            return drawn

        return run

    algorithm.normal, algorithm.integers = recording(algorithm.normal), recording(algorithm.integers)
    try:
        yield noise
    finally:
        del algorithm.normal, algorithm.integers  # the methods come back


def weights_of(algorithm: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The networks of the parts and of their averages, as the JAX loop keeps them."""
    parts = {part: network_of(getattr(algorithm, part)) for part in PARTS}
    return parts, {part: network_of(getattr(algorithm, f"{part}_target").module) for part in PARTS}


def network_of(part: Any) -> dict[str, Any]:
    """The weights of one network, off the device."""
    network, time = part.network, getattr(part.network, "time", None)
    network = network.network if time else network
    return {
        "time": [linear(layer) for layer in (time.first, time.second)] if time else [],
        "layers": [linear(layer) for layer in network.layers],
        "norms": [(array(norm.scale), array(norm.shift)) for norm in network.norms],
    }


def linear(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias."""
    return array(layer.weight), array(layer.bias)


def array(tensor: Tensor) -> np.ndarray:
    """A copy of the one seed's, off the device."""
    return tensor.detach()[0].cpu().numpy().copy()
