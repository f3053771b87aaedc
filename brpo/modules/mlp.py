"""Stacks of small networks: one member per seed, and per critic where there are several."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brpo.errors import UserError
from brpo.functional import activations, perceptron, products, streams
from brpo.options import require, require_flag, require_one_of

NORM_EPSILON = 1e-6  # flax's, which BDPO's authors use; torch's own is 1e-5

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": activations.mish,
    "elu": F.elu,
}


class StackedLinear(nn.Module):
    """Affine maps `x W + b`, one for each member of a stack.

    Args:
        members: shape of the stack, (seeds,) or (seeds, critics).
        inputs: size of the input.
        outputs: size of the output.

    The weights are NaN until `brpo.modules.mlp.initialize` draws them, which `OfflineAlgorithm.build` does.
    """

    def __init__(self, members: tuple[int, ...], inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((*members, inputs, outputs), math.nan))
        self.bias = nn.Parameter(torch.full((*members, outputs), math.nan))

    @torch.no_grad()
    def initialize(self, keys: Tensor) -> None:
        """Uniform in +-1/sqrt(inputs), as `torch.nn.Linear` draws them; `keys` (seeds,) name the random numbers."""
        bound = 1.0 / math.sqrt(self.weight.shape[-2])
        for word, parameter in enumerate((self.weight, self.bias)):
            drawn = streams.uniform(streams.key(keys, word), tuple(parameter.shape[1:]), torch.float64)
            parameter.copy_((2.0 * drawn - 1.0) * bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (members, batch, inputs) to (members, batch, outputs), the stack flattened; without `members` for one."""
        return affine(inputs, self.weight, self.bias)


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`inputs weight + bias` for every member of a stack (see `StackedLinear`)."""
    inner, outer = weight.shape[-2:]
    if inputs.dim() == 2:  # a plain product has less overhead than a batched one
        return torch.addmm(bias.view(outer), inputs, weight.view(inner, outer))
    if outer == 1 and inputs.device.type == "cpu":  # where a batched product of one column takes ten times as long
        return (inputs * weight.reshape(-1, 1, inner)).sum(-1, keepdim=True) + bias.reshape(-1, 1, 1)
    if weight.is_cuda:  # `baddbmm` copies the bias over its output first: a kernel more, where a compiler fuses this sum
        products = torch.bmm(inputs, weight.reshape(-1, inner, outer))
        return products + bias.reshape(-1, 1, outer).to(products.dtype)
    return torch.baddbmm(bias.reshape(-1, 1, outer), inputs, weight.reshape(-1, inner, outer))


class StackedNorm(nn.Module):
    """Layer normalization (Ba, Kiros, Hinton 2016, arXiv:1607.06450) with a scale and a shift for each member of a stack.

    Args:
        members: shape of the stack.
        size: of the layer.
    """

    def __init__(self, members: tuple[int, ...], size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(*members, size))
        self.shift = nn.Parameter(torch.zeros(*members, size))


def normalized(inputs: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalize the last dimension of (batch, size) or (members, batch, size) (see `StackedNorm`)."""
    size = inputs.shape[-1]
    shape = (size,) if inputs.dim() == 2 else (-1, 1, size)
    return torch.addcmul(shift.view(shape), F.layer_norm(inputs, (size,), eps=NORM_EPSILON), scale.view(shape))


class MLP(nn.Module):
    """A multilayer perceptron for each member of a stack.

    Args:
        members: shape of the stack.
        inputs: size of the input.
        outputs: size of the output.
        hidden: sizes of the hidden layers.
        activation: a key of `ACTIVATIONS`.
        layer_norm: normalize what goes into each activation.

    Raises:
        ValueError: the activation is unknown, or a size is below 1.
    """

    def __init__(
        self,
        members: tuple[int, ...],
        inputs: int,
        outputs: int,
        *,
        hidden: Sequence[int],
        activation: str,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        require_one_of(ACTIVATIONS, activation=activation)
        require("hidden", hidden, "a list of whole numbers >= 1, as [256,256]",
                lambda v: isinstance(v, list | tuple) and all(type(size) is int and size >= 1 for size in v))  # fmt: skip
        require_flag(layer_norm=layer_norm)
        sizes = (inputs, *hidden, outputs)
        self.members = members
        self.activation = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(StackedLinear(members, a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.norms = nn.ModuleList(StackedNorm(members, size) for size in hidden if layer_norm)
        self._listed = self._list_parameters()

    def _list_parameters(self) -> tuple[list[Any], list[Any]]:
        layers = [parameter for layer in self.layers for parameter in (layer.weight, layer.bias)]
        return layers, [(norm.scale, norm.shift) for norm in self.norms]

    def in_order(self) -> tuple[list[Any], list[Any]]:
        """W_1, b_1, ..., W_L, b_L, and scale and shift of each norm.

        From a list: walking the layers at every call would cost as much as a small product. An export, which puts others in
        their place, would miss that and keep every weight twice.
        """
        return self._list_parameters() if torch.compiler.is_exporting() else self._listed

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moving a module may make new parameters."""
        super()._apply(fn, recurse)
        self._listed = self._list_parameters()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (seeds, batch, inputs) to (*members, batch, outputs)."""
        return self.run(inputs, self.members, *self.in_order())

    def first(self, inputs: Tensor) -> Tensor:
        """The first network of each seed, (seeds, batch, outputs), its weights held fixed: for gradients of the inputs."""
        layers, pairs = self.in_order()
        parameters = [parameter[:, 0].detach() for parameter in layers]
        norms = [(scale[:, 0].detach(), shift[:, 0].detach()) for scale, shift in pairs]
        return self.run(inputs, self.members[:1], parameters, norms)

    def run(
        self,
        inputs: Tensor,
        members: tuple[int, ...],
        parameters: Sequence[Tensor],
        norms: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        """`forward` with given weights and biases W_1, b_1, ..., W_L, b_L and norms' scales and shifts, by layer."""
        count = math.prod(members)
        if self.activation is torch.relu and not norms and perceptron.supported(inputs, count):
            output = perceptron.relu_network(inputs, count, parameters)
            return output.view(*members, *output.shape[1:])
        stacked = torch.is_grad_enabled() or torch.compiler.is_compiling()  # whose graph would only be longer
        if not stacked and perceptron.supported(inputs, count):
            return self.by_members(inputs, members, parameters, norms)
        return self.by_layers(inputs, members, parameters, norms)

    def by_members(
        self,
        inputs: Tensor,
        members: tuple[int, ...],
        parameters: Sequence[Tensor],
        norms: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """One member after the other, without gradient: on a CPU, where what one needs stays in the cache."""
        count, by_seed = math.prod(members), inputs.unbind(0)
        own = [parameter.reshape(count, *parameter.shape[len(members) :]).unbind(0) for parameter in parameters]
        own_norms = [tuple(value.reshape(count, -1).unbind(0) for value in norm) for norm in norms]
        outputs = []
        for member in range(count):
            hidden = by_seed[member * len(by_seed) // count]
            *inner, (weight, bias) = zip(own[::2], own[1::2], strict=True)
            for number, (inner_weight, inner_bias) in enumerate(inner):
                hidden = products.linear_layer(hidden, inner_weight[member], inner_bias[member])
                if own_norms:
                    scale, shift = own_norms[number]
                    hidden = F.layer_norm(hidden, hidden.shape[-1:], scale[member], shift[member], NORM_EPSILON)
                hidden = self.activation(hidden)
            outputs.append(torch.addmm(bias[member], hidden, weight[member]))
        return torch.stack(outputs).view(*members, *outputs[0].shape)

    def by_layers(
        self,
        inputs: Tensor,
        members: tuple[int, ...],
        parameters: Sequence[Tensor],
        norms: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        """Layer by layer through batched products: on GPUs, under autocast and for any activation."""
        batch = inputs.shape[-2]
        if len(members) == 2:  # one input for all the critics of a seed
            inputs = inputs.unsqueeze(1).expand(*members, -1, -1)
        hidden = inputs.reshape(batch, -1) if math.prod(members) == 1 else inputs.flatten(0, -3)
        *inner, (weight, bias) = zip(parameters[::2], parameters[1::2], strict=True)
        for number, (inner_weight, inner_bias) in enumerate(inner):
            hidden = affine(hidden, inner_weight, inner_bias)
            if norms:
                hidden = normalized(hidden, *norms[number])
            hidden = self.activation(hidden)
        # Under autocast the products run in bfloat16, but for the last: of values near 100 it knows only halves.
        if torch.is_autocast_enabled(hidden.device.type):
            with torch.autocast(hidden.device.type, enabled=False):
                return affine(hidden.to(weight.dtype), weight, bias).view(*members, batch, -1)
        return affine(hidden, weight, bias).view(*members, batch, -1)


def draw_others(module: nn.Module, build_one: Callable[[], nn.Module], seeds: Tensor, name: str) -> None:
    """Draw the weights of a module that are of no stacked layer: those of each member as if it were built alone.

    Such weights come from torch's generator, in the module's own constructor.

    Args:
        module: with a member for each seed.
        build_one: builds it with one member.
        seeds: (seeds,) int64.
        name: of the module among others with these seeds.

    Raises:
        UserError: a weight has no axis of seeds in front.
    """
    stacked = {
        id(p) for layer in module.modules() if isinstance(layer, StackedLinear | StackedNorm) for p in layer.parameters()
    }
    others = {path: parameter for path, parameter in module.named_parameters() if id(parameter) not in stacked}
    for path, parameter in others.items():
        if parameter.shape[:1] != seeds.shape:
            raise UserError(
                f"The {name}'s weight {path} is {tuple(parameter.shape)}: an axis of {len(seeds)} seeds must come first. "
                f"Take StackedLinear or MLP of brpo.modules.mlp in the place of torch.nn.Linear."
            )
    if not others:
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for member, key in enumerate(streams.key(seeds, streams.purpose(f"init/{name}")).tolist()):
            torch.manual_seed(key)
            alone = dict(build_one().named_parameters())
            for path, parameter in others.items():
                parameter[member] = alone[path][0]


def initialize(module: nn.Module, seeds: Tensor, name: str) -> None:
    """Draw the weights of every stacked layer of a module: a function of the seed and the layer's qualified name."""
    for path, layer in module.named_modules():
        if isinstance(layer, StackedLinear):
            layer.initialize(streams.key(seeds, streams.purpose(f"init/{name}.{path}")))
