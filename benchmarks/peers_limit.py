"""How much of an update must be matrix products, and how fast this machine makes those: what no implementation can beat.

Counted are the products of the layers, 2 floating-point operations for each weight and row, in the update as it is written:
without the time features, which depend on N+1 steps only and not on the rows.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peers_workload import Workload

from brpo.functional import products

TENSORS = 4  # several, so that they are not all in the nearest cache
SECONDS = 0.5  # of a measurement, about


class Network(NamedTuple):
    """Multiplications of one row by the layers of all members; `first` are those of the first layer, which are in `all`."""

    all: int
    first: int

    def forward(self, rows: float) -> float:
        """Operations of the outputs."""
        return 2 * rows * self.all

    def through(self, rows: float) -> float:
        """Those of the outputs and the gradient of the inputs."""
        return 2 * rows * 2 * self.all

    def trained(self, rows: float) -> float:
        """Those of the outputs and the gradient of the weights, for which the first layer's inputs need none."""
        return 2 * rows * (3 * self.all - self.first)


def network(inputs: int, hidden: Sequence[int], outputs: int, members: int = 1) -> Network:
    """A stack of multilayer perceptrons."""
    sizes = (inputs, *hidden, outputs)
    layers = [members * a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
    return Network(sum(layers), layers[0])


def bdpo_operations(options: dict[str, Any], observation: int, action: int, rows: int) -> float:
    """Floating-point operations in the products of an update of BDPO on a batch, the mean over `policy_delay` updates."""
    inputs, many = observation + action, rows * options["samples"]
    policy = network(inputs, options["actor"]["hidden"], action)
    q, v = (network(inputs, options[name]["hidden"], 1, options[name]["critics"]) for name in ("critic", "value"))
    chain = 2 * options["actor"]["steps"] * policy.forward(many)
    critics = chain + q.forward(many) + q.trained(rows) + 2 * policy.forward(rows) + v.trained(rows)
    critics += q.forward(many) + v.forward(many)  # of the next noisy action, in V's target
    policies = policy.trained(rows) + policy.forward(rows) + q.through(many) + v.through(many)
    if options["behavior_training"] == "joint":
        policies += policy.trained(rows)
    return critics + policies / options["policy_delay"]


def operations(workload: Workload) -> float | None:
    """Those of an update; None for algorithms whose products are not counted here."""
    if workload.algo != "bdpo":
        return None
    spec = workload.algorithm.spec
    return bdpo_operations(workload.options, spec.observation_dim, spec.action_dim, workload.batch_size)


class Products:
    """Products of the size that most of the update's have: the rows of all samples by a hidden layer of the critics."""

    def __init__(self, workload: Workload) -> None:
        rows, width = workload.batch_size * workload.options["samples"], workload.options["critic"]["hidden"][-1]
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> list[torch.Tensor]:
            return [torch.randn(*shape, generator=generator).to(workload.device) for _ in range(TENSORS)]

        self.inputs, self.weights, self.bias = draw(rows, width), draw(width, width), draw(width)[0]
        self.operations, self.device = TENSORS * 2.0 * rows * width * width, workload.device
        start = time.process_time()
        self.once()
        self.repeats = max(1, round(SECONDS / (time.process_time() - start)))

    def once(self) -> None:
        """One product of each."""
        for inputs, weight in zip(self.inputs, self.weights, strict=True):
            products.linear_layer(inputs, weight, self.bias)

    def run(self) -> float:
        """Make the products; gives the number of floating-point operations."""
        for _ in range(self.repeats):
            self.once()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.repeats * self.operations
