"""Stacks of ReLU networks on a CPU: the products of every member on their own, forward and backward in one node.

Why not a batched product, and autograd layer by layer: on a CPU a batched product with one output is many times slower than
plain ones, a narrow output wants its factors in another order, and the small operations between the large products cost
Python and autograd some microseconds each. docs/performance.md has the figures. The mathematics is that of
`brpo.modules.mlp.MLP`, which is the fallback and the test's oracle.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from brpo.functional import products

MOST_COMPILED = 8  # each member makes the graph larger
NARROW = 16  # outputs up to which the transposed product is the faster one


def supported(inputs: Tensor, members: int) -> bool:
    """Whether to take this path: on a CPU, outside autocast; in a compiled graph for a few members only, never in a file."""
    if inputs.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting():
        return False
    return members <= MOST_COMPILED or not torch.compiler.is_compiling()


def relu_network(inputs: Tensor, members: int, parameters: Sequence[Tensor]) -> Tensor:
    """Networks `W_L relu(... relu(W_1 x + b_1) ...) + b_L`, one for each member.

    Args:
        inputs: (seeds, batch, inputs); neighbouring members share those of a seed.
        members: seeds x networks for each seed.
        parameters: W_1, b_1, ..., W_L, b_L: weights (..., inputs, outputs) and biases (..., outputs) of all members.

    Returns:
        (members, batch, outputs).
    """
    if torch.is_grad_enabled():
        return _Network.apply(inputs, members, *parameters)  # type: ignore[return-value]
    return _forward(inputs, members, parameters)[0]


def _split(parameters: Sequence[Tensor]) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """For each layer the members' weights (inputs, outputs) and biases (outputs,)."""
    pairs = zip(parameters[::2], parameters[1::2], strict=True)
    return [(w.reshape(-1, *w.shape[-2:]).unbind(0), b.reshape(-1, b.shape[-1]).unbind(0)) for w, b in pairs]


def _forward(inputs: Tensor, members: int, parameters: Sequence[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
    """Outputs, and by member the input of every layer."""
    *inner, (last, last_bias) = _split(parameters)
    outputs = inputs.new_empty(members, inputs.shape[1], last[0].shape[1])
    by_seed, each = inputs.unbind(0), members // inputs.shape[0]
    activations = []
    for member, output in enumerate(outputs.unbind(0)):
        hidden = by_seed[member // each]
        passed = [hidden]
        for weights, biases in inner:
            hidden = products.relu_layer(hidden, weights[member], biases[member])
            passed.append(hidden)
        _last_layer(hidden, last[member], last_bias[member], output)
        activations.append(passed)
    return outputs, activations


def _last_layer(hidden: Tensor, weight: Tensor, bias: Tensor, output: Tensor) -> None:
    if 1 < weight.shape[1] <= NARROW:
        output.copy_(torch.nn.functional.linear(hidden, weight.t().contiguous(), bias))
    else:
        torch.addmm(bias, hidden, weight, out=output)


def _weight_gradient(hidden: Tensor, gradient: Tensor) -> Tensor:
    """`hidden^T gradient`."""
    if gradient.shape[1] <= NARROW:
        return torch.mm(gradient.t(), hidden).t()
    return products.weight_gradient(hidden, gradient)


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: Tensor, members: int, *parameters: Tensor) -> Tensor:
        outputs, activations = _forward(inputs, members, parameters)
        ctx.save_for_backward(inputs, *parameters, *(hidden for passed in activations for hidden in passed))
        ctx.parameters = len(parameters)
        return outputs

    @staticmethod
    def backward(ctx, gradients: Tensor):
        # As the forward pass, which was outside autocast: this may be called under it.
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return _backward(ctx, gradients)
        return _backward(ctx, gradients)


def _backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
    inputs, *saved = ctx.saved_tensors
    parameters, passed_on = saved[: ctx.parameters], saved[ctx.parameters :]
    layers = _split(parameters)
    wanted = ctx.needs_input_grad[2]  # the networks are trained; else only the gradient of the inputs is asked for
    by_parameter: list[list[Tensor]] = [[] for _ in parameters]
    by_input = []
    for member, gradient in enumerate(gradients.unbind(0)):
        passed = passed_on[member * len(layers) : (member + 1) * len(layers)]
        for number in range(len(layers) - 1, -1, -1):
            if wanted:
                by_parameter[2 * number].append(_weight_gradient(passed[number], gradient))
                by_parameter[2 * number + 1].append(gradient.sum(0))
            if number:
                gradient = products.input_gradient(gradient, layers[number][0][member])
                # The derivative of relu: nothing passes where nothing was passed on.
                gradient = torch.ops.aten.threshold_backward(gradient, passed[number], 0)
        if ctx.needs_input_grad[0]:
            by_input.append(products.input_gradient(gradient, layers[0][0][member]))
    own = [_stack(parts, parameter) for parts, parameter in zip(by_parameter, parameters, strict=True)]
    into_inputs = None
    if by_input:  # members that share an input
        into_inputs = torch.stack(by_input).view(inputs.shape[0], -1, *inputs.shape[1:]).sum(1)
    return into_inputs, None, *own


def _stack(parts: list[Tensor], parameter: Tensor) -> Tensor | None:
    """Gradients of the members in the shape of the parameter; one of them is not copied."""
    if not parts:
        return None
    return (parts[0] if len(parts) == 1 else torch.stack(parts)).reshape(parameter.shape)
