"""Every engine has one meaning: the weights and records of the eager one."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.engine.choose import choose, make_runner
from brpo.engine.graphs import MAX_GRAPHS, GraphRunner
from brpo.engine.ranks import Ranks
from brpo.engine.runner import EagerRunner
from brpo.errors import UserError
from tests.algorithms.test_base import Staged
from tests.algorithms.test_contract import every_pretraining, every_variant, transitions
from tests.conftest import ROOT
from tests.engine.compiled_suite import DATA, SCHEDULED, assert_equal, pair
from tests.engine.replay import capture_for
from tests.helpers import ALGORITHMS, make_algorithm, make_spec


@pytest.mark.slow
def test_compiled_engine() -> None:
    """In a process of its own: `torch.compile` cannot trace through the run-time type checks of this one."""
    suite = Path(__file__).with_name("compiled_suite.py")
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", str(suite)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=550)
    assert result.returncode == 0, result.stdout[-5000:]
    assert " passed" in result.stdout


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


def careless(algorithm: OfflineAlgorithm, method: str) -> OfflineAlgorithm:
    """It with an update, or a `pretrain`, that draws a number which no seed of the run sets."""
    plain = getattr(algorithm, method)
    setattr(algorithm, method, lambda batch: (torch.rand(1), plain(batch)))
    return algorithm


@pytest.mark.parametrize("start", [0, 7])  # of a run, and of a part that was resumed
@pytest.mark.parametrize("replays", [False, True])
def test_numbers_of_the_global_generator_are_refused_in_the_first_update(replays: bool, start: int) -> None:
    algorithm = careless(make_algorithm("bc"), "update")
    algorithm.update_count = start
    runner = GraphRunner(DATA, 8, chunk=4, capture=capture_for(algorithm)) if replays else EagerRunner(DATA, 8)
    with pytest.raises(
        UserError, match=r"BC draws random numbers from torch's global generator .*self\.normal\(name, like\)"
    ):
        runner.run(algorithm, start, start + 4)
    assert algorithm.update_count == start + 1


@pytest.mark.parametrize("method", ["pretrain", "update"])
def test_both_phases_are_looked_at(method: str) -> None:
    algorithm = careless(make_algorithm("sfac", "algo.pretrain_updates=4"), method)
    algorithm.begin_pretraining()
    runner, reached = EagerRunner(DATA, 8), -3 if method == "pretrain" else 1
    with pytest.raises(UserError, match="SfAC draws random numbers from torch's global generator"):
        for start in (-4, 0):
            runner.run(algorithm, start, start + 4)
    assert algorithm.update_count == reached


class EveryThird(OfflineAlgorithm):
    """Counts on the device how often it was due; chunks of 4 start at three different phases."""

    trained = ("x",)

    def __init__(self) -> None:
        sgd = functools.partial(torch.optim.SGD, lr=0.25, fused=True)
        super().__init__(make_spec(), seeds=[0], max_updates=100, optimizer=sgd, schedule={}, gradient_clip=None)
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


def through_both_phases(eager: OfflineAlgorithm, replayed: OfflineAlgorithm) -> GraphRunner:
    """12 updates of the pre-training and 24 of the training; equal after each chunk of 4."""
    runner = GraphRunner(DATA, 8, chunk=4, capture=capture_for(replayed))
    eager.runner, replayed.runner = EagerRunner(DATA, 8), runner
    for algorithm in (eager, replayed):
        algorithm.begin_pretraining()
    for start in range(-12, 24, 4):
        for algorithm in (eager, replayed):
            algorithm.training_step((start, start + 4), 0)
        assert_equal(eager, replayed, 1e-7)
    return runner


@every_pretraining
def test_replayed_chunks_of_a_pretraining_and_of_what_follows(algo: str) -> None:
    """Each phase warms up, is captured and replayed on its own."""
    runner = through_both_phases(*pair(algo, ["algo.pretrain_updates=12", *SCHEDULED]))
    assert len(runner.graphs) == 1


def test_graphs_of_parts_that_are_trained_before_only() -> None:
    """Every third update is due in each phase: a graph for each pattern of a phase, and none of the phase before."""
    eager, replayed = (Staged(pretrain_updates=12, max_updates=24).double() for _ in range(2))
    for algorithm in (eager, replayed):
        algorithm.configure_optimizers()
    runner = through_both_phases(eager, replayed)
    assert float(eager.thirds) == float(replayed.thirds) == 12
    assert len(runner.graphs) == 3  # the chunks from 12, 16 and 20 on, each pattern's second


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


def averaging(algorithm: OfflineAlgorithm) -> OfflineAlgorithm:
    algorithm.join(Ranks(0, 2, "data"))
    return algorithm


@pytest.mark.parametrize(
    ("name", "device", "storage", "chosen"),
    [
        ("auto", "cuda", "device", "cudagraph"),
        ("auto", "cuda", "memmap", "eager"),
        ("compile", "cpu", "device", "compile"),
        ("eager", "cuda", "device", "eager"),
    ],
)
def test_auto_picks_and_says_why(name: str, device: str, storage: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, reason = choose(name, make_algorithm("iql"), torch.device(device), storage)
    assert engine == chosen
    assert reason
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    short, long = make_algorithm("iql"), make_algorithm("iql")
    long.max_updates = 1_000_000
    assert choose("auto", short, torch.device("cpu"), "device")[0] == "eager"
    assert choose("auto", long, torch.device("cpu"), "device")[0] == "compile"
    short.pretrain_updates = long.max_updates  # a pre-training counts
    assert choose("auto", short, torch.device("cpu"), "device")[0] == "compile"
    assert choose("auto", long, torch.device("cpu"), "device", "bf16-mixed")[0] == "eager"
    with pytest.raises(UserError, match="engine=compile does not go together with trainer.precision=bf16-mixed"):
        choose("compile", long, torch.device("cpu"), "device", "bf16-mixed")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert choose("auto", long, torch.device("cpu"), "device") == ("eager", "there is no g++ to compile with")
    assert choose("auto", averaging(make_algorithm("iql")), torch.device("cuda"), "device")[0] == "eager"


@pytest.mark.parametrize(
    ("device", "storage", "overrides", "averages", "message"),
    [
        ("cpu", "device", [], False, "needs a GPU"),
        ("cuda", "device", [], True, "parallel=data exchanges gradients"),
        ("cuda", "memmap", [], False, "data.storage=memmap reads batches from a file"),
        ("cuda", "device", ["algo.optimizer._target_=torch.optim.SGD", "algo.optimizer.fused=false"], False,
         "SGD is neither capturable nor fused"),
    ],
)  # fmt: skip
def test_cudagraph_says_where_it_is_not_possible(
    device: str, storage: str, overrides: list[str], averages: bool, message: str
) -> None:
    algorithm = make_algorithm("iql", *overrides)
    with pytest.raises(UserError, match=message):
        choose("cudagraph", averaging(algorithm) if averages else algorithm, torch.device(device), storage)


@pytest.mark.parametrize(("precision", "compiled"), [("32-true", True), ("bf16-mixed", False)])
def test_a_graph_captures_no_compiled_updates_under_bfloat16(
    precision: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their gradients of what is kept in float32 come out wrong."""
    algorithm, asked = make_algorithm("bc"), []
    algorithm.max_updates = 1_000_000
    monkeypatch.setattr("brpo.engine.choose.compile_update", lambda *_, **__: asked.append(True))
    options = {"name": "auto", "chunk": 10, "backend": "inductor", "compiled": "auto"}
    make_runner("cudagraph", algorithm, DATA, options, 8, precision)
    assert bool(asked) == compiled


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("engine", "compiled"), [("compile", False), ("cudagraph", False), ("cudagraph", True)])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_on_a_gpu(algo: str, engine: str, compiled: bool) -> None:
    """Against the eager engine on the same GPU, float32; without run-time type checks: `pytest -o addopts= -m gpu`."""
    options = {"name": engine, "chunk": 10, "backend": "inductor"}
    data = transitions(dtype=torch.float32).to(torch.device("cuda"))
    eager, other = (make_algorithm(algo, *SCHEDULED, seeds=(0, 5), dtype=torch.float32).to("cuda") for _ in range(2))
    for algorithm in (eager, other):
        algorithm.configure_optimizers()
    runner = make_runner(engine, other, data, options | {"compiled": compiled}, 8)
    for start in (0, 10, 20, 30):
        EagerRunner(data, 8).run(eager, start, start + 10)
        runner.run(other, start, start + 10)
        assert_equal(eager, other, 1e-4, records=1e-3)
    assert len(getattr(runner, "graphs", [None])) == 1
