"""What the networks' and the optimizer's own paths save on a CPU, each beside the plain way it replaces.

    OMP_NUM_THREADS=1 python benchmarks/layers.py [--rounds 150]

Both ways take turns in one process, a few calls each; times are medians in processor time, ratios medians of those within a
round (with their quartiles). The shapes are those of IQL: batches of 256, layers of 256, six action entries.
"""

from collections.abc import Callable
from functools import partial
from statistics import median, quantiles
from time import process_time
from typing import Any
from unittest import mock

import torch
from common import build, composed, machine, rotated
from torch import Tensor

from brpo.engine.optimizers import FusedAdamStep, adam_scales, scales
from brpo.exits import run_command
from brpo.functional import perceptron
from brpo.functional.activations import mish
from brpo.modules.mlp import MLP, initialize

BATCH, WIDTH, ACTIONS, INPUTS = 256, 256, 6, 17
Way = Callable[[], object]


def draw(*shape: int) -> Tensor:
    """Numbers to calculate with."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def last_layer_of_two_critics() -> dict[str, tuple[Way, Way]]:
    """Products with one column: both critics at once, and one after the other."""
    hidden, weight, gradient = draw(2, BATCH, WIDTH), draw(2, WIDTH, 1), draw(2, BATCH, 1)
    members = list(zip(hidden.unbind(0), weight.unbind(0), gradient.unbind(0), strict=True))

    def batched_backward() -> None:
        torch.bmm(gradient, weight.mT)
        torch.bmm(hidden.mT, gradient)

    def plain_backward() -> None:
        for one, factor, error in members:
            torch.mm(error, factor.t())
            torch.mm(error.t(), one)

    forward = (lambda: torch.bmm(hidden, weight), lambda: [torch.mm(one, factor) for one, factor, _ in members])
    return {
        "last layer of two critics, forward: batched | each": forward,
        "last layer of two critics, backward: batched | each": (batched_backward, plain_backward),
    }


def narrow_outputs() -> dict[str, tuple[Way, Way]]:
    """The actor's last layer: factors as they lie, and transposed."""
    hidden, weight, bias, gradient = draw(BATCH, WIDTH), draw(WIDTH, ACTIONS), draw(ACTIONS), draw(BATCH, ACTIONS)
    return {
        "actor's last layer, forward: as it lies | transposed": (
            lambda: torch.addmm(bias, hidden, weight),
            lambda: torch.nn.functional.linear(hidden, weight.t().contiguous(), bias),
        ),
        "actor's last layer, weights: as it lies | transposed": (
            lambda: torch.mm(hidden.t(), gradient),
            lambda: torch.mm(gradient.t(), hidden).t(),
        ),
    }


def networks() -> dict[str, tuple[Way, Way]]:
    """Networks forward and backward: layer by layer, and in one node, both through torch's default BLAS."""
    inputs, ways = draw(1, BATCH, INPUTS + ACTIONS), {}
    for name, members in (("V", (1,)), ("two critics", (1, 2))):
        network = MLP(members, INPUTS + ACTIONS, 1, hidden=[WIDTH, WIDTH], activation="relu")
        initialize(network, torch.tensor([0]), name)
        parameters = list(network.parameters())

        def by_layers(network: MLP = network, parameters: list[Any] = parameters) -> None:
            output = network.by_layers(inputs, network.members, network.in_order()[0])
            torch.autograd.grad(output.square().mean(), parameters)

        def in_one_node(network: MLP = network, parameters: list[Any] = parameters) -> None:
            torch.autograd.grad(network(inputs).square().mean(), parameters)

        ways[f"{name}, forward and backward: layers | one node"] = (by_layers, in_one_node)
    return ways


def activation() -> dict[str, tuple[Way, Way]]:
    """Mish forward and backward: torch's, and by one sigmoid."""
    inputs, gradient = draw(BATCH, WIDTH).requires_grad_(), draw(BATCH, WIDTH)

    def through(function: Callable[[Tensor], Tensor]) -> Way:
        return lambda: torch.autograd.grad(function(inputs), inputs, gradient)

    return {"Mish, forward and backward: torch's | one sigmoid": (through(torch.nn.functional.mish), through(mish))}


def whole_update() -> dict[str, tuple[Way, Way]]:
    """Ten updates of IQL with its networks layer by layer, and in one node."""
    algorithm, _ = build(composed("algo=iql", "trainer=cpu", "engine=eager", "engine.products=blas"))

    def in_one_node() -> None:
        assert algorithm.runner is not None
        algorithm.runner.run(algorithm, algorithm.update_count, algorithm.update_count + 10)
        algorithm.discard_records()

    def by_layers() -> None:
        with mock.patch.object(perceptron, "supported", lambda inputs, members: False):
            in_one_node()

    return {"ten updates of IQL: layers | one node": (by_layers, in_one_node)}


def adam() -> dict[str, tuple[Way, Way]]:
    """A step of one critic's parameters: through the optimizer, and the kernel on its state."""
    critic = MLP((1,), INPUTS + ACTIONS, 1, hidden=[WIDTH, WIDTH], activation="relu")
    initialize(critic, torch.tensor([0]), "critic")
    optimizer = torch.optim.Adam(critic.parameters(), fused=True)
    gradients = [torch.ones_like(parameter) for parameter in critic.parameters()]
    for parameter, gradient in zip(critic.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    kernel = FusedAdamStep(optimizer)
    return {"a step of Adam: Optimizer.step | kernel": (optimizer.step, lambda: kernel(gradients, 3e-4))}


def compiled_powers() -> dict[str, tuple[Way, Way]]:
    """Adam's last line, compiled: its powers fused into the loop over the numbers, and in an operator of their own."""
    parameter, average, square = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH), draw(WIDTH, WIDTH).square()
    count, rate = torch.tensor(100.0), torch.tensor(3e-4, dtype=torch.float64)

    def step(found: tuple[Tensor, ...] | list[Tensor]) -> None:
        size, correction = (value.float() for value in found)
        parameter.sub_(size * average / (square.sqrt() / correction + 1e-8))

    @torch.compile(fullgraph=True)
    def fused() -> None:
        step(scales(count, rate, 0.9, 0.999))

    @torch.compile(fullgraph=True)
    def apart() -> None:
        step(adam_scales(count, rate, 0.9, 0.999).unbind())

    return {"a matrix's step, compiled: powers fused | apart": (fused, apart)}


def duration(run: Way, calls: int) -> float:
    """Microseconds of processor time of one call."""
    start = process_time()
    for _ in range(calls):
        run()
    return 1e6 * (process_time() - start) / calls


def main(rounds: int = 150, calls: int = 20) -> None:
    """Print times and ratios."""
    composed("trainer=cpu", "engine.products=blas")  # threads and products, as train.py sets them
    print(machine())
    for make in (last_layer_of_two_critics, narrow_outputs, networks, activation, adam, compiled_powers, whole_update):
        each = calls if make is not whole_update else 1
        for name, (plain, ours) in make().items():
            times = rotated({"plain": partial(duration, plain, each), "ours": partial(duration, ours, each)}, rounds)
            low, middle, high = quantiles([a / b for a, b in zip(times["plain"], times["ours"], strict=True)], n=4)
            print(
                f"{name:52s} {median(times['plain']):7.0f} {median(times['ours']):7.0f} us   "
                f"{middle:.2f} ({low:.2f} to {high:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    run_command(main)
