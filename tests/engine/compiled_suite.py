"""`engine=compile`; run by test_engines.py in a process without run-time type checks."""

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import compilation_time_metrics
from torch._inductor.exc import InductorError

from brpo.algorithms.base import OfflineAlgorithm
from brpo.engine.compiled import compile_update
from brpo.engine.graphs import GraphRunner
from brpo.engine.runner import EagerRunner
from brpo.errors import UserError
from brpo.types import Batch
from tests.algorithms.test_contract import state, transitions
from tests.algorithms.test_fqe import make_fqe
from tests.helpers import ALGORITHMS, PRETRAINING, make_algorithm

SCHEDULED = ["++algo.schedule.actor=cosine"]
DATA = transitions()


def pair(algo: str, overrides: list[str], layers: int = 1) -> tuple[OfflineAlgorithm, OfflineAlgorithm]:
    """Twins. Hidden layers, each traced on its own, are one, and two where what is compiled is compiled to code."""
    first, second = (make_algorithm(algo, *overrides, seeds=(0, 5), sizes={"layers": layers}) for _ in range(2))
    return first, second


def assert_equal(a: OfflineAlgorithm, b: OfflineAlgorithm, tolerance: float, records: float = 1e-5) -> None:
    left, right = state(a), state(b)
    for name, value in left.items():
        assert torch.allclose(value.double(), right[name].double(), rtol=0, atol=tolerance), name
    assert a.update_count == b.update_count == int(b.updates)
    ours, theirs = a.take_records(), b.take_records()
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert theirs[name] == pytest.approx(values, rel=records, abs=records / 10), name


@pytest.fixture
def compilations() -> Iterator[Counter[str]]:
    """Counts the graphs that are compiled."""
    torch._dynamo.utils.counters.clear()
    compilation_time_metrics.clear()
    yield torch._dynamo.utils.counters["stats"]


def run_both(eager: OfflineAlgorithm, compiled: OfflineAlgorithm, updates: int = 5) -> None:
    for algorithm in (eager, compiled):
        EagerRunner(DATA, 8).run(algorithm, 0, updates)


VARIANTS = [  # ways through the code that the defaults do not take
    ("sfac", ["algo.omega=exp", "algo.value_loss=expectile"]),
    (
        "sfac",
        ["algo.value_loss=sample", "actor=squashed", "actor@algo.behavior=mixture", "algo.divergence=alpha:0.5"]
        + ["algo.policy_order=4"],
    ),
    (
        "sfac",
        ["algo.value_loss=softmax", "actor=student_t", "algo.actor.learn_degrees_of_freedom=true"]
        + ["algo.epsilon_schedule=spread", "algo.policy_order=3"],
    ),
]


# All parts in every update, and ensembles of one: each combination, and each member, is compiled on its own.
OVERRIDES = {"bdpo": ["algo.policy_delay=1", "algo.critic.critics=1", "algo.behavior_training=joint"]}


@pytest.mark.parametrize(("algo", "overrides"), [(algo, OVERRIDES.get(algo, [])) for algo in ALGORITHMS] + VARIANTS)
def test_update_is_one_graph(algo: str, overrides: list[str], compilations: Counter[str]) -> None:
    """No graph break (`fullgraph=True` raises at one), one version for each combination of what is due, the same meaning."""
    eager, compiled = pair(algo, [*overrides, *SCHEDULED])
    compile_update(compiled, "aot_eager")
    run_both(eager, compiled)
    combinations = {tuple(eager.what_is_due(update).values()) for update in range(1, 5)}
    assert compilations["unique_graphs"] == len(combinations)
    assert "compile_attempt_1" not in compilation_time_metrics  # nothing is traced a second time
    assert_equal(eager, compiled, 1e-12)


@pytest.mark.parametrize("algo", ["sfac", "bdpo"])
def test_estimating_a_sampling_policy_is_one_graph(algo: str) -> None:
    """`brpo estimate`: the policy of another algorithm inside the update."""
    eager, compiled = (make_fqe(make_algorithm(algo, seeds=(0, 5)), deterministic=False) for _ in range(2))
    compile_update(compiled, "aot_eager")
    run_both(eager, compiled, 3)
    assert_equal(eager, compiled, 1e-12)


def test_a_captured_chunk_compiles_nothing(compilations: Counter[str]) -> None:
    """Compiling would allocate and wait, which a capture refuses: every version is made in the chunks before it."""
    compiled, counts = pair("td3_bc", SCHEDULED)[0], []
    compile_update(compiled, "aot_eager")

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        counts.append(compilations["unique_graphs"])
        run()
        counts.append(compilations["unique_graphs"])
        return lambda: None

    runner = GraphRunner(DATA, 8, chunk=4, capture=capture)
    for start in range(0, 12, 4):
        runner.run(compiled, start, start + 4)
    assert counts == [2, 2]


@pytest.mark.parametrize("algo", PRETRAINING)
def test_a_pretraining_is_a_graph_of_its_own(algo: str, compilations: Counter[str]) -> None:
    eager, compiled = pair(algo, ["algo.pretrain_updates=3", *SCHEDULED])
    compile_update(compiled, "aot_eager")
    for algorithm in (eager, compiled):
        algorithm.begin_pretraining()
        EagerRunner(DATA, 8).run(algorithm, -3, 0)
        algorithm.end_pretraining()
    assert compilations["unique_graphs"] == 1
    assert_equal(eager, compiled, 1e-12)
    run_both(eager, compiled, 1)
    assert compilations["unique_graphs"] == 1  # the first update after it is eager again: it makes the optimizers' state
    assert_equal(eager, compiled, 1e-12)


def test_losses_alone(compilations: Counter[str]) -> None:
    """With an optimizer that is not fused Adam."""
    eager, compiled = pair("iql", [*SCHEDULED, "algo.optimizer.fused=false"])
    compile_update(compiled, "aot_eager")
    run_both(eager, compiled)
    assert compilations["unique_graphs"] == len(compiled.trained)
    assert_equal(eager, compiled, 1e-12)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("algo", ["bc", "iql"])
def test_inductor(algo: str) -> None:
    eager, compiled = pair(algo, SCHEDULED, layers=2)
    compile_update(compiled)
    run_both(eager, compiled)
    assert_equal(eager, compiled, 1e-9)


def test_a_checkpoint_continues_in_the_compiled_version() -> None:
    """No eager update after it: the whole and the continued run round alike, to the bit."""
    whole = pair("bc", SCHEDULED)[0]
    compile_update(whole, "aot_eager")
    EagerRunner(DATA, 8).run(whole, 0, 3)
    checkpoint = {
        "state_dict": whole.state_dict(),
        "optimizer_states": [optimizer.state_dict() for optimizer in whole.optimizers_by_part.values()],
    }
    whole.on_save_checkpoint(checkpoint)
    checkpoint = copy.deepcopy(checkpoint)
    EagerRunner(DATA, 8).run(whole, 3, 7)
    second = pair("bc", SCHEDULED)[0]
    second.load_state_dict(checkpoint["state_dict"])
    second.on_load_checkpoint(checkpoint)
    for optimizer, saved in zip(second.optimizers_by_part.values(), checkpoint["optimizer_states"], strict=True):
        optimizer.load_state_dict(saved)
    calls, plain = [], second.update
    second.update = lambda batch: (calls.append(torch.compiler.is_compiling()), plain(batch))[1]
    compile_update(second, "aot_eager")
    EagerRunner(DATA, 8).run(second, 3, 7)
    assert calls and all(calls)  # the plain update is traced and never run
    left, right = state(whole), state(second)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_numbers_of_the_global_generator_are_refused_in_a_continued_run() -> None:
    """Its first update is a compiled one."""
    algorithm = pair("bc", [])[0]
    EagerRunner(DATA, 8).run(algorithm, 0, 2)
    plain = algorithm.actor_loss
    algorithm.actor_loss = lambda batch: plain(batch) + torch.rand(2)
    compile_update(algorithm)
    with pytest.raises(UserError, match="BC draws random numbers from torch's global generator"):
        EagerRunner(DATA, 8).run(algorithm, 2, 5)
    assert algorithm.update_count == 3


class Peeking(type(pair("bc", [])[0])):  # type: ignore[misc]
    """Looks at a value."""

    def actor_loss(self, batch: Batch) -> torch.Tensor:
        loss = super().actor_loss(batch)
        return loss * 2 if loss.sum().item() > 0 else loss


def test_what_cannot_be_compiled_is_said_or_runs_eagerly(capsys: pytest.CaptureFixture[str]) -> None:
    eager, compiled = pair("bc", [])
    eager.__class__ = compiled.__class__ = Peeking
    compile_update(compiled, "aot_eager", or_eager=True)
    run_both(eager, compiled)
    assert_equal(eager, compiled, 0.0)
    assert "note: the update cannot be compiled and goes on eagerly" in capsys.readouterr().out
    refused = pair("bc", [])[0]
    refused.__class__ = Peeking
    compile_update(refused, "aot_eager")
    with pytest.raises(UserError, match="engine=compile cannot compile Peeking"):
        EagerRunner(DATA, 8).run(refused, 0, 3)


@pytest.mark.parametrize("overrides", [[], ["algo.optimizer.fused=false"]])
def test_a_disk_error_while_compiling_is_no_disk_error_of_the_run(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/nope")

    monkeypatch.setattr(torch._dynamo.convert_frame, "compile_frame", refuse)
    eager, compiled = pair("bc", overrides)
    compile_update(compiled, "aot_eager", or_eager=True)
    run_both(eager, compiled)
    assert_equal(eager, compiled, 0.0)
    note = "cannot be compiled and goes on eagerly: FileNotFoundError: [Errno 2] No such file or directory: '/proc/nope'"
    assert capsys.readouterr().out.count(note) == 1
    refused = pair("bc", overrides)[0]
    compile_update(refused, "aot_eager")
    with pytest.raises(UserError, match="engine=compile cannot compile BC: .*No such file or directory: '/proc/nope'"):
        EagerRunner(DATA, 8).run(refused, 0, 3)


@pytest.mark.parametrize("overrides", [[], ["algo.optimizer.fused=false"]])
def test_a_disk_error_of_what_is_compiled_is_one_of_the_run(overrides: list[str]) -> None:
    """A part of the update may have been made, and must not be made again."""
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    name = f"fails_running_{len(overrides)}"
    torch._dynamo.register_backend(lambda graph, inputs: fail, name=name)
    compiled = pair("bc", overrides)[1]
    compile_update(compiled, name, or_eager=True)
    with pytest.raises(OSError, match="No space left on device"):
        run_both(compiled, compiled)
    assert calls == [1]


def test_a_loss_that_cannot_be_compiled_is_said_or_runs_eagerly(capsys: pytest.CaptureFixture[str]) -> None:
    """Where losses alone are compiled: under another optimizer, and where ranks average."""
    eager, compiled = pair("bc", ["algo.optimizer.fused=false"])
    eager.__class__ = compiled.__class__ = Peeking
    compile_update(compiled, "aot_eager", or_eager=True)
    run_both(eager, compiled)
    assert_equal(eager, compiled, 0.0)
    assert "note: actor_loss cannot be compiled and goes on eagerly" in capsys.readouterr().out
    refused = pair("bc", ["algo.optimizer.fused=false"])[0]
    refused.__class__ = Peeking
    compile_update(refused, "aot_eager")
    with pytest.raises(UserError, match="engine=compile cannot compile Peeking"):
        EagerRunner(DATA, 8).run(refused, 0, 3)


def test_a_backward_pass_that_cannot_be_compiled_is_one_of_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """It is compiled with the loss, and not later in the middle of an update."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def refuse(graph: Any, inputs: Any) -> Any:
        raise InductorError(RuntimeError("no compiler"), None)

    torch._dynamo.register_backend(
        aot_autograd(fw_compiler=lambda g, _: make_boxed_func(g.forward), bw_compiler=refuse), name="no_backward"
    )
    eager, compiled = pair("bc", ["algo.optimizer.fused=false"])
    compile_update(compiled, "no_backward", or_eager=True)
    run_both(eager, compiled)
    assert_equal(eager, compiled, 0.0)
    assert "note: actor_loss cannot be compiled and goes on eagerly" in capsys.readouterr().out


def test_an_unknown_backend_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="engine.backend=induktor is unknown"):
        compile_update(pair("bc", [])[0], "induktor")
