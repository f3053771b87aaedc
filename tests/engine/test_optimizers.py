"""The short way to torch's fused Adam: the same numbers to the bit, on the optimizer's own state."""

import copy
from typing import Any

import pytest
import torch

from brpo.engine.optimizers import FusedAdamStep

OPTIONS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-4}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
]
every_option = pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)


def optimizer(kind: Any, options: dict[str, Any]) -> Any:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((3, 4), (5,))]
    return kind(parameters, lr=0.1, fused=True, **options)


def gradients(number: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(number + 10)
    return [torch.randn(*shape, generator=generator) for shape in ((3, 4), (5,))]


def step(adam: Any, number: int, rate: float) -> None:
    adam.param_groups[0]["lr"] = rate
    for parameter, gradient in zip(adam.param_groups[0]["params"], gradients(number), strict=True):
        parameter.grad = gradient
    adam.step()


@every_option
def test_steps_and_state_are_those_of_the_optimizer(kind: Any, options: dict[str, Any]) -> None:
    slow, quick, formula, together = (optimizer(kind, options) for _ in range(4))
    for adam in (slow, quick, formula, together):
        assert not FusedAdamStep.possible(adam)
        step(adam, 0, 0.1)
        assert FusedAdamStep.possible(adam)
    short, written, joint = FusedAdamStep(quick), FusedAdamStep(formula), FusedAdamStep(together)
    for number in range(1, 6):
        rate = 0.1 / number
        step(slow, number, rate)
        short(gradients(number), rate)
        torch._foreach_add_(written.steps + joint.steps, 1)
        with torch.no_grad():
            written._one_by_one(gradients(number), torch.tensor(rate, dtype=torch.float64))
            joint._together(gradients(number), torch.tensor(rate, dtype=torch.float64))
    parameters = (adam.param_groups[0]["params"] for adam in (slow, quick, formula, together))
    for one, two, three, four in zip(*parameters, strict=True):
        assert torch.equal(one, two)
        assert torch.allclose(one, three, rtol=0, atol=1e-6)
        assert torch.allclose(one, four, rtol=0, atol=1e-6)
        assert slow.state[one]["step"] == quick.state[two]["step"] == 6
        assert torch.equal(slow.state[one]["exp_avg_sq"], quick.state[two]["exp_avg_sq"])


@every_option
def test_a_state_that_was_begun_is_the_one_of_the_first_step(kind: Any, options: dict[str, Any]) -> None:
    slow, begun = optimizer(kind, options), optimizer(kind, options)
    FusedAdamStep.begin(begun)
    assert FusedAdamStep.possible(begun)
    step(slow, 0, 0.1)
    FusedAdamStep(begun)(gradients(0), 0.1)
    for one, two in zip(slow.param_groups[0]["params"], begun.param_groups[0]["params"], strict=True):
        assert torch.equal(one, two)
        for name, value in slow.state[one].items():
            assert torch.equal(value, begun.state[two][name])
            assert value.dtype == begun.state[two][name].dtype


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}, {"fused": False}], ids=str)
def test_other_options_are_left_to_the_optimizer(options: dict[str, Any]) -> None:
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], **{"fused": True, **options})
    assert not FusedAdamStep.is_plain(adam)
    assert not FusedAdamStep.is_plain(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))]))
    hooked = optimizer(torch.optim.Adam, {})
    hooked.register_step_pre_hook(lambda *_: None)
    assert not FusedAdamStep.is_plain(hooked)


def test_loading_a_state_makes_it_stale() -> None:
    adam = optimizer(torch.optim.Adam, {})
    step(adam, 0, 0.1)
    short = FusedAdamStep(adam)
    assert not short.stale()
    adam.load_state_dict(copy.deepcopy(adam.state_dict()))
    assert short.stale()
