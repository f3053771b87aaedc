"""Do the loops that are written here make brpo's update? The same weights and batches in, the same weights and losses out.

In float64: in float32 Adam's first steps divide rounding errors by one another.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import peers_corl
import torch
from peers_workload import FIELDS, Sizes
from torch import Tensor, nn

from brpo.algorithms.base import OfflineAlgorithm
from brpo.types import Batch

TOLERANCE = 1e-5
PARTS = ("value", "actor", "critic", "behavior", "critic_target", "actor_target")
Layers = list[tuple[np.ndarray, np.ndarray]]  # weight (inputs, outputs) and bias of each
Weights = dict[str, dict[str, Any]]  # by part: "members", a list of Layers, and "log_std" where the part has one
Losses = dict[str, float]


def differences(
    algorithm: OfflineAlgorithm,
    algo: str,
    options: dict[str, Any],
    batches: Sequence[Batch],
    device: str = "cpu",
    loops: Sequence[str] = ("corl", "jax"),
) -> dict[str, float]:
    """The largest difference of a weight or loss after some updates, for each loop that has the algorithm.

    JAX is left out where it is not installed. Losses are compared relative to 1 + their magnitude.

    Args:
        algorithm: one seed, float64, with optimizers, before its first update; it is trained on the batches.
        algo: its name in conf/algo.
        options: its options. TD3+BC must have `target_noise` 0, since every side draws noise of its own.
        batches: (1, batch, ...), float64, one for each update.
        device: of the plain loop, that of the algorithm; JAX uses its CPU.
        loops: the ones to compare.
    """
    if algo == "bdpo":
        return bdpo_differences(algorithm, options, batches, loops)
    start = weights_of(algorithm)
    losses = [step(algorithm, batch) for batch in batches]
    end, plain = weights_of(algorithm), [{name: getattr(batch, name)[0] for name in FIELDS} for batch in batches]
    arguments = (options, algorithm.max_updates, start, plain)
    found = {}
    if "corl" in loops:
        found["corl"] = largest(end, losses, *train_corl(peers_corl.LEARNERS[algo], device, *arguments))
    if "jax" in loops and algo == "iql" and jax_is_here():
        found["jax"] = largest(end, losses, *train_jax(*arguments))
    return found


def bdpo_differences(
    algorithm: OfflineAlgorithm, options: dict[str, Any], batches: Sequence[Batch], loops: Sequence[str]
) -> dict[str, float]:
    """`differences` of BDPO, which only the JAX loop has; it gets the noise that brpo drew."""
    if "jax" not in loops or not jax_is_here():
        return {}
    from peers_check_bdpo import difference

    return {"jax": difference(algorithm, options, batches, FIELDS)}


def jax_is_here() -> bool:
    """Whether the JAX loops can run."""
    return all(importlib.util.find_spec(name) for name in ("jax", "optax"))


def step(algorithm: OfflineAlgorithm, batch: Batch) -> Losses:
    """An update of brpo; gives its losses by part."""
    algorithm.step(batch)
    records = algorithm.take_records()
    return {name.removeprefix("loss/"): values[0] for name, values in records.items() if name.startswith("loss/")}


def weights_of(algorithm: OfflineAlgorithm) -> Weights:
    """The weights of brpo's one seed, off the device."""
    weights: Weights = {}
    for name in PARTS:
        part: Any = getattr(algorithm, name, None)
        if part is None:
            continue
        part = getattr(part, "module", part)  # what a target follows
        stacks = [(layer.weight.flatten(0, -3), layer.bias.flatten(0, -2)) for layer in part.network.layers]
        members = [[(array(weight[k]), array(bias[k])) for weight, bias in stacks] for k in range(len(stacks[0][0]))]
        weights[name] = {"members": members}
        if hasattr(part, "log_std"):
            weights[name]["log_std"] = array(part.log_std[0])
    return weights


def largest(end: Weights, losses: list[Losses], other_end: Weights, other_losses: list[Losses]) -> float:
    """The largest difference of two trainings.

    Raises:
        ValueError: they have other parts, or other losses.
    """
    pairs = [*zip(arrays(end), arrays(other_end), strict=True)]
    distance = max(float(np.abs(a - b).max()) for a, b in pairs)
    for ours, theirs in zip(losses, other_losses, strict=True):
        if ours.keys() != theirs.keys():
            raise ValueError(f"one side has the losses {sorted(ours)}, the other {sorted(theirs)}")
        distance = max(distance, *(abs(ours[name] - theirs[name]) / (1.0 + abs(ours[name])) for name in ours))
    return distance


def arrays(weights: Weights) -> list[np.ndarray]:
    """All arrays, part by part."""
    found = []
    for name in PARTS:
        if name in weights:
            found += [entry for layers in weights[name]["members"] for layer in layers for entry in layer]
            found += [weights[name]["log_std"]] if "log_std" in weights[name] else []
    return found


def array(tensor: Tensor) -> np.ndarray:
    """A copy, off the device."""
    return tensor.detach().cpu().numpy().copy()


def sizes_of(weights: Weights) -> Sizes:
    """The sizes of the networks, read from the actor's."""
    layers = weights["actor"]["members"][0]
    inputs, *hidden = (weight.shape[0] for weight, _ in layers)
    return Sizes(inputs, layers[-1][0].shape[1], tuple(hidden))


# --- The plain loop ---------------------------------------------------------------------------------------------------


def train_corl(
    learner_class: Any, device: str, options: dict[str, Any], max_updates: int, start: Weights, batches: list[dict]
) -> tuple[Weights, list[Losses]]:
    """Weights and losses of the plain loop."""
    learner = learner_class(sizes_of(start), options, max_updates, device)
    with torch.no_grad():
        for name, values in start.items():
            part = getattr(learner, name).double()
            for layers, network in zip(values["members"], networks(part), strict=True):
                for (weight, bias), linear in zip(layers, linears(network), strict=True):
                    linear.weight.copy_(torch.from_numpy(weight).T)
                    linear.bias.copy_(torch.from_numpy(bias))
            if "log_std" in values:
                part.log_std.copy_(torch.from_numpy(values["log_std"]))
    losses = [learner.update(batch) for batch in batches]
    return {name: plain_weights(getattr(learner, name)) for name in start}, losses


def plain_weights(part: Any) -> dict[str, Any]:
    """The weights of a part of the plain loop."""
    members = [[(array(linear.weight.T), array(linear.bias)) for linear in linears(network)] for network in networks(part)]
    return {"members": members, **({"log_std": array(part.log_std)} if hasattr(part, "log_std") else {})}


def networks(part: Any) -> list[nn.Module]:
    """The networks of a part of the plain loop."""
    return list(part.networks) if hasattr(part, "networks") else [part.network]


def linears(network: nn.Module) -> list[nn.Linear]:
    """The layers of a network that have weights."""
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


# --- JAX --------------------------------------------------------------------------------------------------------------


def train_jax(
    options: dict[str, Any], max_updates: int, start: Weights, batches: list[dict]
) -> tuple[Weights, list[Losses]]:
    """Weights and losses of the JAX loop."""
    import jax
    import peers_jax

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        learner = peers_jax.IQL(options, max_updates)
        (value,), (actor,) = start["value"]["members"], start["actor"]["members"]
        parameters = {
            "value": value,
            "actor": {"layers": actor, "log_std": start["actor"]["log_std"]},
            "critic": start["critic"]["members"],
        }
        state, losses = learner.start(jax.tree.map(jax.numpy.asarray, parameters)), []
        for batch in batches:
            state, logged = jax.jit(learner.update)(state, {name: array(tensor) for name, tensor in batch.items()})
            losses.append({name: float(loss) for name, loss in logged.items()})
        parameters, target = jax.tree.map(np.asarray, (state.parameters, state.target))
    return {
        "value": {"members": [parameters["value"]]},
        "actor": {"members": [parameters["actor"]["layers"]], "log_std": parameters["actor"]["log_std"]},
        "critic": {"members": parameters["critic"]},
        "critic_target": {"members": target},
    }, losses
