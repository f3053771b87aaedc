"""Every engine has one meaning: the weights and records of the eager one."""

import shutil
from typing import Any

import pytest
import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.engine.choose import choose, make_runner
from brpo.engine.compiled import compile_losses
from brpo.engine.graphs import MAX_GRAPHS, GraphRunner
from brpo.engine.runner import EagerRunner
from brpo.errors import UserError
from tests.algorithms.test_contract import every_variant, state, transitions
from tests.engine.replay import capture_for
from tests.helpers import ALGORITHMS, make_algorithm

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
def one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second compilation of a loss is an error: something in it changes from update to update."""
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)


@every_variant
def test_compiled_losses_have_no_graph_break(algo: str, overrides: list[str], one_compilation: None) -> None:
    """`fullgraph=True` raises at a break; the weights and records are those of the eager engine."""
    eager, compiled = pair(algo, [*overrides, *SCHEDULED])
    assert set(compile_losses(compiled, "aot_eager")) == {f"{part}_loss" for part in compiled.trained}
    for algorithm in (eager, compiled):
        EagerRunner(DATA, 8).run(algorithm, 0, 5)
    assert_equal(eager, compiled, 1e-12)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("algo", ["bc", "iql"])
def test_inductor(algo: str, one_compilation: None) -> None:
    eager, compiled = pair(algo, SCHEDULED)
    compile_losses(compiled)
    for algorithm in (eager, compiled):
        EagerRunner(DATA, 8).run(algorithm, 0, 5)
    assert_equal(eager, compiled, 1e-9)


@every_variant
def test_replayed_chunks(algo: str, overrides: list[str]) -> None:
    """Warm-up, capture, replays, a shorter chunk: on recorded operations, which is what a CUDA graph repeats."""
    eager, replayed = pair(algo, [*overrides, *SCHEDULED])
    runner = GraphRunner(DATA, 8, chunk=4, capture=capture_for(replayed))
    for start, stop in ((0, 4), (4, 8), (8, 12), (12, 16), (16, 18)):
        EagerRunner(DATA, 8).run(eager, start, stop)
        runner.run(replayed, start, stop)
        assert_equal(eager, replayed, 1e-7)  # learning rates are float32 inside a graph
    assert len(runner.graphs) == 1


class EveryThird(OfflineAlgorithm):
    """Counts on the device how often it was due; chunks of 4 start at three different phases."""

    trained = ("x",)

    def __init__(self) -> None:
        from tests.algorithms.test_base import Toy

        options = Toy(schedule={"x": "cosine"})
        super().__init__(
            options.spec, seeds=[0], max_updates=100, optimizer=options.optimizer_factory,
            schedule={}, gradient_clip=None,
        )  # fmt: skip
        self.x = torch.nn.Module()
        self.x.weight = torch.nn.Parameter(torch.ones(1, 1))
        self.register_buffer("count", torch.zeros(()))

    def update(self, batch: Any) -> None:
        if self.due(3, after=5):
            self.count += 1
        self.descend("x", (self.x.weight**2).sum(-1))


def test_a_graph_for_each_pattern_of_what_is_due() -> None:
    eager, replayed = EveryThird(), EveryThird()
    for algorithm in (eager, replayed):
        algorithm.configure_optimizers()
    runner = GraphRunner(DATA, 8, chunk=4, capture=capture_for(replayed))
    for start in range(0, 60, 4):
        EagerRunner(DATA, 8).run(eager, start, start + 4)
        runner.run(replayed, start, start + 4)
        assert float(replayed.count) == float(eager.count)
    assert float(eager.count) == len([u for u in range(60) if u >= 5 and u % 3 == 0])
    assert 3 <= len(runner.graphs) <= MAX_GRAPHS


def test_checkpoints_do_not_carry_what_an_engine_set() -> None:
    """Adam refuses `capturable` on a CPU when it is not fused; a tensor for a rate would be one more thing to load."""
    algorithm = make_algorithm("iql")
    runner = GraphRunner(DATA, 8, chunk=2, capture=capture_for(algorithm))
    for start in (0, 2, 4):
        runner.run(algorithm, start, start + 2)
    checkpoint: dict[str, Any] = {
        "state_dict": algorithm.state_dict(),
        "optimizer_states": [optimizer.state_dict() for optimizer in algorithm.optimizers_by_part.values()],
    }
    algorithm.on_save_checkpoint(checkpoint)
    for saved in checkpoint["optimizer_states"]:
        for group in saved["param_groups"]:
            assert type(group["lr"]) is float
            assert group["capturable"] is False


def test_reading_a_value_is_noticed() -> None:
    """The stand-in for CUDA graphs refuses what they refuse."""
    algorithm = make_algorithm("bc")
    with pytest.raises(AssertionError, match="read off the device"):
        capture_for(algorithm)(lambda: algorithm.updates.item())


@pytest.mark.parametrize(
    ("name", "device", "averages", "storage", "chosen"),
    [
        ("auto", "cpu", False, "device", "eager"),
        ("auto", "cuda", False, "device", "cudagraph"),
        ("auto", "cuda", True, "device", "eager"),
        ("auto", "cuda", False, "memmap", "eager"),
        ("compile", "cpu", False, "device", "compile"),
        ("eager", "cuda", False, "device", "eager"),
    ],
)
def test_auto_picks_and_says_why(name: str, device: str, averages: bool, storage: str, chosen: str) -> None:
    engine, reason = choose(name, torch.device(device), averages, storage)
    assert engine == chosen
    assert reason


@pytest.mark.parametrize(
    ("device", "averages", "storage", "message"),
    [
        ("cpu", False, "device", "needs a GPU"),
        ("cuda", True, "device", "parallel=data exchanges gradients"),
        ("cuda", False, "memmap", "data.storage=memmap reads batches from a file"),
    ],
)
def test_cudagraph_says_where_it_is_not_possible(device: str, averages: bool, storage: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose("cudagraph", torch.device(device), averages, storage)


def test_compile_says_what_it_looks_for() -> None:
    from tests.algorithms.test_base import Toy

    engine = {"chunk": 4, "backend": "aot_eager"}
    with pytest.raises(UserError, match="a part's loss is a method <part>_loss, for the parts x"):
        make_runner("compile", Toy(), DATA, engine, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["compile", "cudagraph"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_on_a_gpu(algo: str, engine: str) -> None:
    """Against the eager engine on the same GPU, float32."""
    data = transitions(dtype=torch.float32).to(torch.device("cuda"))
    eager, other = (
        make_algorithm(algo, *SCHEDULED, seeds=(0, 5), dtype=torch.float32).to("cuda") for _ in range(2)
    )
    for algorithm in (eager, other):
        algorithm.configure_optimizers()
    runner = make_runner(engine, other, data, {"chunk": 10, "backend": "inductor"}, 8)
    for start in (0, 10, 20):
        EagerRunner(data, 8).run(eager, start, start + 10)
        runner.run(other, start, start + 10)
    assert_equal(eager, other, 1e-4)
