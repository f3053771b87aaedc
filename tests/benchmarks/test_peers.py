"""What `benchmarks/peers.py` compares: do the loops written there make brpo's update, and are its numbers what it says?"""

import csv
import sys
from pathlib import Path
from typing import Any

import peers
import peers_check
import peers_corl
import peers_limit
import pytest
import typer
from common import build, composed, rotated
from peers import Measurement
from peers_workload import Peer, Workload, make_workload
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import ALGORITHMS, compose_config, make_algorithm, random_batch, shrink

LOOPS = sorted(set(peers_corl.LEARNERS) & set(ALGORITHMS))
# Every clip acts on some of the transitions; TD3+BC draws no noise, since every side would draw its own.
OPTIONS = {
    "iql": ["algo.max_weight=3.5"],
    "sfac": ["algo.temperature=0.3", "algo.regularizer.epsilon=0.2", "algo.max_ratio=1.05"],
    "td3_bc": ["algo.target_noise=0"],
}
TINY = ("dataset=tests/pendulum/tiny-v0", "trainer=cpu", "data.heldout=0", "engine.threads=1", "batch_size=8")


def difference(loop: str, algo: str, *changed: str) -> float:
    """The largest one after four updates on both sides; `changed` are overrides that the loop alone gets."""
    algorithm = make_algorithm(algo, *OPTIONS[algo])
    options = compose_config(f"algo={algo}", *OPTIONS[algo], *changed)["algo"]
    batches = [random_batch(size=64, seed=k) for k in range(4)]
    return peers_check.differences(algorithm, algo, options, batches, loops=[loop])[loop]


@pytest.mark.parametrize("algo", LOOPS)
def test_plain_loop_makes_the_update_of_brpo(algo: str) -> None:
    assert difference("corl", algo) < 1e-6


def test_jax_loop_makes_the_update_of_brpo() -> None:
    pytest.importorskip("jax")
    pytest.importorskip("optax")
    assert difference("jax", "iql") < 1e-6


@pytest.mark.parametrize("training", ["joint", "fixed"])
@pytest.mark.parametrize(("changed", "seen"), [("algo.eta=0.3", False), ("algo.eta=0.31", True)])
def test_jax_loop_makes_the_update_of_bdpo(changed: str, seen: bool, training: str) -> None:
    """Actor and behaviour, unless it is fixed, move in updates 1 and 3; gradients are clipped, rates fall."""
    pytest.importorskip("jax")
    pytest.importorskip("optax")
    options = ["algo.eta=0.3", "algo.policy_delay=2", "algo.gradient_clip=0.5", f"algo.behavior_training={training}"]
    algorithm = make_algorithm("bdpo", *options)
    algorithm.max_updates = 9
    config = compose_config("algo=bdpo", *options, changed)
    shrink(config["algo"])
    batches = [random_batch(size=32, seed=k) for k in range(3)]
    found = peers_check.differences(algorithm, "bdpo", config["algo"], batches)
    assert list(found) == ["jax"]
    assert (found["jax"] > peers_check.TOLERANCE) if seen else (found["jax"] < 1e-6)


@pytest.mark.parametrize(
    ("algo", "changed"),
    [
        ("iql", "algo.expectile=0.6"),
        ("iql", "algo.inverse_temperature=2"),
        ("iql", "algo.polyak=0.02"),
        ("iql", "algo.discount=0.9"),
        ("iql", "algo.max_weight=4"),
        ("sfac", "algo.symmetry_coefficient=0.2"),
        ("sfac", "algo.regularizer.epsilon=0.3"),
        ("sfac", "algo.max_ratio=0.5"),
        ("sfac", "algo.temperature=2"),
        ("sfac", "algo.regularizer.loss_order=3"),
    ],
)
def test_another_update_is_seen(algo: str, changed: str) -> None:
    assert difference("corl", algo, changed) > peers_check.TOLERANCE


def test_every_side_is_warmed_up_and_starts_a_round_in_turn() -> None:
    calls: list[str] = []

    def run(name: str) -> int:
        calls.append(name)
        return len(calls)

    results = rotated({name: lambda name=name: run(name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert results == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}


def test_ratios_are_medians_within_a_round() -> None:
    """Rates 10, 20, 60 against 10, 10, 20: ratios 1, 2, 3, whose median is not that of the medians, 20 / 10."""
    sides = {name: Peer(name, lambda updates: None) for name in ("brpo", "other")}
    rounds = {
        "brpo": [Measurement(rate, 1.0) for rate in (10.0, 30.0, 60.0)],
        "other": [Measurement(rate, cores) for rate, cores in ((10.0, 0.5), (30.0, 1.0), (15.0, 0.7))],
    }
    ours, other = peers.rows(sides, rounds)
    assert (ours["rate"], ours["rate_min"], ours["rate_max"], ours["ratio"]) == (30.0, 10.0, 60.0, 1.0)
    assert (other["rate"], other["ratio"], other["ratio_min"], other["ratio_max"]) == (15.0, 1.0, 1.0, 4.0)
    assert other["cores"] == 0.7


def test_the_limit_is_the_share_of_products_within_a_round() -> None:
    """40 operations an update: 10, 20, 20 updates of a possible 20, 25, 50."""
    rounds = {
        "brpo": [Measurement(rate, 1.0) for rate in (10.0, 20.0, 20.0)],
        peers.LIMIT: [Measurement(rate, 1.0) for rate in (800.0, 1000.0, 2000.0)],
    }
    (ours,) = peers.rows({"brpo": Peer("brpo", lambda updates: None)}, rounds, operations=40.0)
    assert ours["limit"] == pytest.approx(0.5)


@pytest.mark.parametrize("training", ["joint", "fixed"])
def test_operations_are_those_that_torch_counts(training: str) -> None:
    """Of an update in which all parts are due, without the time features, which torch counts too."""
    options = ["algo.policy_delay=1", f"algo.behavior_training={training}"]
    algorithm = make_algorithm("bdpo", *options, sizes={"policy_delay": 1})
    config = compose_config("algo=bdpo", *options)
    shrink(config["algo"])
    algorithm.step(random_batch(size=256))
    with FlopCounterMode(display=False) as counted:
        algorithm.step(random_batch(size=256))
    operations = peers_limit.bdpo_operations(config["algo"], 3, 2, rows=256)
    assert operations <= counted.get_total_flops() <= 1.1 * operations


@pytest.fixture
def workload(datasets: Path) -> Workload:
    """IQL on the tiny data set, with small networks."""
    config = composed(
        "algo=iql", "engine=eager", *TINY, *(f"algo.{part}.hidden=[16,16]" for part in ("actor", "critic", "value"))
    )
    return make_workload("iql", config, *build(config))


def test_what_is_not_installed_is_named_and_skipped(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    monkeypatch.delitem(sys.modules, "peers_d3rlpy", raising=False)
    found, skipped = peers.gather(["d3rlpy", "corl"], workload)
    assert list(found) == ["corl"]
    assert skipped == {"d3rlpy": "d3rlpy is not installed; benchmarks/requirements.txt says how"}


def test_a_loop_written_for_the_defaults_refuses_others(datasets: Path) -> None:
    config = composed("algo=sfac", *TINY, "algo.omega=exp")
    found, skipped = peers.gather(["corl"], make_workload("sfac", config, *build(config)))
    assert not found
    assert "algo.omega=series alone, not exp" in skipped["corl"]


def test_all_sides_make_the_same_number_of_updates(
    workload: Workload, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "peers.csv"
    for _ in range(2):
        peers.compare(workload, ["corl"], rounds=2, updates=3, target=target)
    assert workload.algorithm.update_count == 2 * (1 + 2) * 3
    output = capsys.readouterr().out
    assert "brpo (engine eager)" in output and "plain PyTorch loop" in output
    with target.open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert [row["side"] for row in rows] == ["brpo", "corl"] * 2
    assert {(row["algo"], row["hidden"], row["batch"], row["updates"]) for row in rows} == {("iql", "16x16", "8", "3")}
    assert all(float(row["rate_min"]) <= float(row["rate"]) <= float(row["rate_max"]) for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": "corl,corll"}, "knows d3rlpy, corl, jax, not corll"),
        ({"updates": 150}, "a multiple of --scan 100"),
        ({"device": "tpu"}, "must be cpu"),
        ({"clock": "sun"}, "one of wall, processor"),
        ({"overrides": ["seeds=2"]}, "benchmarks/seeds.py"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        peers.main(**options)
