"""`engine=compile`; run by test_engines.py in a process without run-time type checks."""

import shutil
from collections.abc import Iterator

import pytest
import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.engine.compiled import compile_losses
from brpo.engine.runner import EagerRunner
from tests.algorithms.test_contract import every_variant, state, transitions
from tests.helpers import make_algorithm

SCHEDULED = ["++algo.schedule.actor=cosine"]
DATA = transitions()


def pair(algo: str, overrides: list[str]) -> tuple[OfflineAlgorithm, OfflineAlgorithm]:
    first, second = (make_algorithm(algo, *overrides, seeds=(0, 5)) for _ in range(2))
    return first, second


def assert_equal(a: OfflineAlgorithm, b: OfflineAlgorithm, tolerance: float) -> None:
    left, right = state(a), state(b)
    for name, value in left.items():
        assert torch.allclose(value.double(), right[name].double(), rtol=0, atol=tolerance), name
    assert a.update_count == b.update_count == int(b.updates)
    ours, theirs = a.take_records(), b.take_records()
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert theirs[name] == pytest.approx(values, rel=1e-5, abs=1e-6), name


@pytest.fixture
def one_compilation() -> Iterator[None]:
    """A second compilation of a loss is an error: something in it changes from update to update."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@every_variant
def test_compiled_losses_have_no_graph_break(algo: str, overrides: list[str], one_compilation: None) -> None:
    """`fullgraph=True` raises at a break; the weights and records are those of the eager engine."""
    eager, compiled = pair(algo, [*overrides, *SCHEDULED])
    assert set(compile_losses(compiled, "aot_eager")) == {f"{part}_loss" for part in compiled.trained}
    for algorithm in (eager, compiled):
        EagerRunner(DATA, 8).run(algorithm, 0, 5)
    assert_equal(eager, compiled, 1e-12)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("algo", ["bc", "iql"])
def test_inductor(algo: str, one_compilation: None) -> None:
    eager, compiled = pair(algo, SCHEDULED)
    compile_losses(compiled)
    for algorithm in (eager, compiled):
        EagerRunner(DATA, 8).run(algorithm, 0, 5)
    assert_equal(eager, compiled, 1e-9)
