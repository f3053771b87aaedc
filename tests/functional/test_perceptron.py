"""The fast path of ReLU networks on a CPU against the plain one, and oneDNN's products against BLAS."""

import math

import pytest
import torch
from torch import Tensor

from brpo.errors import UserError
from brpo.functional import perceptron, products
from brpo.modules.mlp import MLP, initialize

WIDTHS = [1, 3, 17, 40]  # a column, narrow, wider than NARROW


@pytest.fixture(autouse=True)
def default_products():
    yield
    products.use("blas")


def network(members: tuple[int, ...], outputs: int, hidden: list[int]) -> MLP:
    mlp = MLP(members, 5, outputs, hidden=hidden, activation="relu").double()
    initialize(mlp, torch.arange(members[0]), "test")
    return mlp


def gradients(output: Tensor, inputs: Tensor, mlp: MLP) -> list[Tensor]:
    weight = torch.linspace(-1.0, 1.0, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad((output * weight).sum(), [inputs, *mlp.parameters()]))


@pytest.mark.parametrize("outputs", WIDTHS)
@pytest.mark.parametrize("hidden", [[], [8], [8, 70]], ids=str)
@pytest.mark.parametrize("members", [(1,), (3,), (1, 2), (2, 3)], ids=str)
def test_equals_layers_one_by_one(members: tuple[int, ...], hidden: list[int], outputs: int) -> None:
    """Outputs, gradients of every weight, and of inputs that the critics of a seed share."""
    mlp = network(members, outputs, hidden)
    inputs = torch.randn(
        members[0], 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    fast = perceptron.relu_network(inputs, math.prod(members), mlp.in_order()[0]).view(*members, 6, outputs)
    plain = mlp.by_layers(inputs, members, mlp.in_order()[0])
    assert torch.allclose(fast, plain, rtol=0, atol=1e-12)
    for one, other in zip(gradients(fast, inputs, mlp), gradients(plain, inputs, mlp), strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_by_finite_differences() -> None:
    mlp = network((2, 2), 1, [4])
    inputs = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *p: perceptron.relu_network(x, 4, p), (inputs, *mlp.in_order()[0]))


def test_without_gradient_nothing_is_kept() -> None:
    mlp = network((1,), 2, [4])
    with torch.no_grad():
        assert mlp(torch.zeros(1, 3, 5, dtype=torch.float64)).grad_fn is None


def test_a_step_between_forward_and_backward_is_an_error() -> None:
    """Autograd's own guard holds here too: weights that changed would give the gradient of another function."""
    mlp = network((1,), 2, [4])
    output = mlp(torch.zeros(1, 3, 5, dtype=torch.float64))
    with torch.no_grad():
        mlp.layers[1].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_first_network_of_each_seed() -> None:
    mlp = network((2, 3), 1, [8])
    inputs = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    first = mlp.first(inputs)
    assert torch.allclose(first, mlp(inputs)[:, 0])
    (gradient,) = torch.autograd.grad(first.sum(), inputs)
    assert torch.allclose(gradient, torch.autograd.grad(mlp(inputs)[:, 0].sum(), inputs)[0])
    assert not any(p.requires_grad and p.grad is not None for p in mlp.parameters())
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(mlp.first(inputs).sum(), list(mlp.parameters()))


def test_autocast_takes_the_plain_path() -> None:
    inputs = torch.zeros(1, 2, 5)
    assert perceptron.supported(inputs, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not perceptron.supported(inputs, 1)


def test_backward_under_autocast_stays_in_full_precision() -> None:
    """A network that was kept out of autocast, and a gradient that is taken under it."""
    mlp = network((1, 2), 3, [70]).float()
    inputs = torch.linspace(-1.0, 1.0, 30).view(1, 6, 5).requires_grad_()
    expected = gradients(mlp(inputs), inputs, mlp)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            output = mlp(inputs)
        found = gradients(output, inputs, mlp)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.skipif(not products._available(), reason="this build of torch lacks oneDNN's operator")
def test_onednn_gives_the_products_of_blas() -> None:
    """Large float32 matrices, whose error is that of float32; small ones and float64 stay with BLAS."""
    generator = torch.Generator().manual_seed(0)
    inputs, gradient = torch.randn(100, 80, generator=generator), torch.randn(100, 96, generator=generator)
    weight, bias = torch.randn(80, 96, generator=generator), torch.randn(96, generator=generator)
    results = {}
    for name in ("blas", "onednn"):
        assert products.use(name) == (products.Products(True, True, True) if name == "onednn" else products.Products())
        results[name] = (
            products.relu_layer(inputs, weight, bias),
            products.input_gradient(gradient, weight),
            products.weight_gradient(inputs, gradient),
        )
    exact = (
        torch.relu(inputs.double() @ weight.double() + bias),
        gradient.double() @ weight.double().T,
        inputs.double().T @ gradient.double(),
    )
    for expected, *others in zip(exact, results["blas"], results["onednn"], strict=True):
        for other in others:
            assert torch.allclose(other.double(), expected, rtol=1e-5, atol=1e-4)
    wide = products.relu_layer(inputs.double(), weight.double(), bias.double())
    assert torch.allclose(wide, exact[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("processor", "chosen"),
    [
        (("AuthenticAMD", 25, {"avx512f"}), products.Products(True, True, False)),
        (("AuthenticAMD", 26, {"avx512f"}), products.Products(True, True, True)),
        (("AuthenticAMD", 23, set()), products.Products()),
        (("GenuineIntel", 6, {"avx512f"}), products.Products()),
        (("", 0, set()), products.Products()),
    ],
)
def test_products_by_processor(
    processor: tuple[str, int, set[str]], chosen: products.Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor, family, flags = processor
    monkeypatch.setattr(products, "_processor", lambda: products.Processor(vendor, family, frozenset(flags)))
    monkeypatch.setattr(products, "_available", lambda: True)
    products._by_processor.cache_clear()
    assert products.use("auto") == chosen
    products._by_processor.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "chosen"),
    [
        ("GenuineIntel", 6, {"avx512f", "avx512_bf16"}, "highest"),
        ("GenuineIntel", 6, {"avx512f", "avx512_bf16", "amx_bf16"}, "medium"),
        ("AuthenticAMD", 25, {"avx512f", "avx512_bf16"}, "highest"),
        ("AuthenticAMD", 26, {"avx512f", "avx512_bf16"}, "medium"),
        ("", 0, set(), "medium"),
    ],
)
def test_lower_precision_is_taken_where_the_processor_gains_by_it(
    vendor: str, family: int, flags: set[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_processor", lambda: products.Processor(vendor, family, frozenset(flags)))
    assert products.precision("medium") == chosen
    assert products.precision("highest") == "highest"


def test_onednn_is_refused_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_available", lambda: False)
    with pytest.raises(UserError, match="engine.products=onednn is not possible"):
        products.use("onednn")
