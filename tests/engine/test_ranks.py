"""Several processes: shares, messages, and whole runs with two gloo processes on the CPU."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from brpo import behavior
from brpo.callbacks.pretraining import Pretraining
from brpo.engine import checkpoint_io, strategy
from brpo.engine.ranks import Ranks, choose_mode, join_optimizer, own_optimizer, own_state, seed_axis
from brpo.engine.runner import EagerRunner
from brpo.errors import LeftToRankZero, UserError
from brpo.options import OptionRefused
from brpo.training import _stopping_together
from tests.algorithms.test_contract import transitions
from tests.conftest import ROOT, Run, Start
from tests.helpers import compose_config, make_algorithm, random_batch
from tests.test_train import wait_for

TINY = ["dataset=tests/pendulum/tiny-v0", "batch_size=16", "eval.episodes=1", "engine.chunk=5", "algo=iql"]
SMALL = [f"algo.{part}.hidden=[16]" for part in ("actor", "critic", "value")]
TWO = ["trainer=cpu", "trainer.devices=2"]
ONE = ["trainer=cpu"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint_io.read(run / "checkpoints" / "last.ckpt")["state_dict"]


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.allclose(a[name].double(), b[name].double(), rtol=1e-5, atol=1e-6)]


@pytest.mark.parametrize(("seeds", "world"), [(5, 2), (4, 4), (7, 3), (2, 2)])
def test_every_seed_belongs_to_one_rank(seeds: int, world: int) -> None:
    shares = [list(range(seeds))[Ranks(rank, world, "seeds").share(seeds)] for rank in range(world)]
    assert [seed for share in shares for seed in share] == list(range(seeds))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert Ranks(1, world, "data").share(seeds) == slice(0, seeds)


def test_auto_shares_seeds_where_there_are_enough() -> None:
    assert choose_mode("auto", 4, 2) == "seeds"
    assert choose_mode("auto", 1, 2) == "data"
    assert choose_mode("data", 4, 2) == "data"
    with pytest.raises(UserError, match="parallel=seeds needs a seed for each of the 4 processes, and there are 3"):
        choose_mode("seeds", 3, 4)


class TwoRanks(Ranks):
    """The view of rank 0, where rank 1 says what was put in its mouth."""

    def __init__(self, mode: str, other: object, rank: int = 0) -> None:
        super().__init__(rank, 2, mode)
        self.other = other

    def exchange(self, value):  # type: ignore[override]
        return [value, self.other]


def test_records_are_put_side_by_side_or_averaged() -> None:
    own = {"loss/x": [1.0, 2.0]}
    assert TwoRanks("seeds", {"loss/x": [7.0]}).merge(own) == {"loss/x": [1.0, 2.0, 7.0]}
    assert TwoRanks("data", {"loss/x": [3.0, 6.0]}).merge(own) == {"loss/x": [2.0, 4.0]}


def test_gradients_are_means_over_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other of two ranks has three times as much: (1 + 3) / 2 and (2 + 6) / 2, each in its own shape."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: flat.mul_(4.0))
    first, second = Ranks(0, 2, "data").average([torch.ones(2, 3), torch.full((4,), 2.0)])
    assert torch.equal(first, torch.full((2, 3), 2.0))
    assert torch.equal(second, torch.full((4,), 4.0))


def test_rank_zero_alone_says_what_failed() -> None:
    error = UserError("no such thing")
    with pytest.raises(UserError, match="no such thing"):
        TwoRanks("data", error).fail_together(None)
    with pytest.raises(LeftToRankZero):
        TwoRanks("data", None, rank=1).fail_together(error)
    TwoRanks("data", None).fail_together(None)


def test_refused_options_can_be_told_to_other_processes() -> None:
    error = OptionRefused("discount", 2, "in [0, 1)").of("algo")
    told = pickle.loads(pickle.dumps(error))
    assert (type(told), str(told)) == (OptionRefused, "algo.discount=2 is not allowed; it must be in [0, 1).")


def test_a_full_disk_before_the_first_update_is_told_to_all() -> None:
    with pytest.raises(UserError, match="No space left on device: run/config.yaml"), _stopping_together(Ranks()):
        raise OSError(28, "No space left on device", "run/config.yaml")


def test_gradients_go_by_nccl_and_words_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, backend in (("cpu", "gloo"), ("cuda", "cpu:gloo,cuda:nccl")):
        monkeypatch.setattr(strategy.RanksStrategy, "root_device", torch.device(device))
        assert strategy.RanksStrategy()._get_process_group_backend() == backend


def test_an_optimizer_that_mixes_seeds_is_refused_where_checkpoints_join_them() -> None:
    algorithm = make_algorithm("bc", "algo.optimizer._target_=torch.optim.Adafactor", "~algo.optimizer.fused")
    algorithm.join(Ranks(0, 2, "data"))
    with pytest.raises(UserError, match="Adafactor steps by whole tensors"):
        algorithm.join(Ranks(0, 2, "seeds"))


def test_ranks_that_average_draw_numbers_of_their_own() -> None:
    plain, first, second = (make_algorithm("iql") for _ in range(3))
    first.join(Ranks(0, 2, "data"))
    second.join(Ranks(1, 2, "data"))
    like = torch.empty(1, 4, 2)
    assert torch.equal(plain.normal("x", like), first.normal("x", like))
    assert not torch.equal(plain.normal("x", like), second.normal("x", like))
    assert torch.equal(plain.integers("x", 9, 99), first.integers("x", 9, 99))
    assert not torch.equal(plain.integers("x", 9, 99), second.integers("x", 9, 99))
    runner = EagerRunner(transitions(), 16)
    indices = [runner.indices(algorithm, 0, 1) for algorithm in (plain, first, second)]
    assert torch.equal(indices[0], indices[1])
    assert not torch.equal(indices[0], indices[2])


def test_state_of_all_seeds_falls_apart_into_that_of_a_share() -> None:
    """Weights, Adam's moments and its step count; what has no seed axis stays."""
    every, some = make_algorithm("iql", seeds=(0, 1, 2)), make_algorithm("iql", seeds=(1, 2))
    every.step(random_batch(seeds=3))
    share = slice(1, 3)
    own = own_state(every.state_dict(), seed_axis(every), share)
    some.load_state_dict(own)
    assert some.seeds.tolist() == [1, 2]
    assert torch.equal(some.critic.network.layers[0].weight, every.critic.network.layers[0].weight[1:])
    assert int(some.updates) == 1
    ours, theirs = some.optimizers_by_part["critic"], every.optimizers_by_part["critic"]
    ours.load_state_dict(own_optimizer(theirs.state_dict(), ours, share))
    for mine, whole in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], whole["exp_avg"][1:])
        assert mine["step"] == whole["step"] == 1
    alone = join_optimizer(Ranks(), theirs)["state"]
    assert torch.equal(alone[0]["exp_avg"], theirs.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize(
    ("options", "several"),
    [
        ({"devices": 1}, False),
        ({"devices": [3]}, False),
        ({"devices": 2}, True),
        ({"devices": "auto"}, True),
        ({"devices": [0, 1]}, True),
        ({"devices": 1, "num_nodes": 2}, True),
    ],
)
def test_several_processes_are_asked_for(options: dict, several: bool) -> None:
    assert strategy.several_processes(options) == several


@pytest.mark.parametrize(
    "started",
    [
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"},
        {"SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "x"},
    ],
    ids=["torchrun", "srun"],
)
@pytest.mark.parametrize("devices", [1, 2])
def test_more_processes_than_devices_are_refused(
    started: dict[str, str], devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    trainer = {"accelerator": "cpu", "devices": devices, "num_nodes": 1, "precision": "32-true"}
    with pytest.raises(UserError, match=r"3 processes were started|The trainer's options .* are refused"):
        strategy.start(trainer, "auto", 4)


def test_slurms_variables_count_where_srun_has_started_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch script without srun they stand too, and nobody else starts processes then."""
    assert strategy.cluster_plugins() == []
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    (plugin,) = strategy.cluster_plugins()
    assert (type(plugin).__name__, plugin.creates_processes_externally) == ("LightningEnvironment", False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    (plugin,) = strategy.cluster_plugins()
    assert (type(plugin).__name__, plugin.creates_processes_externally) == ("SLURMEnvironment", True)


def test_a_later_training_of_a_script_starts_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would run the script anew, up to its first training."""
    monkeypatch.setattr(strategy, "_trained_here", True)
    trainer = {"accelerator": "cpu", "devices": 2, "num_nodes": 1, "precision": "32-true"}
    with pytest.raises(UserError, match="trainer.devices=2 is possible in the first training of a script alone"):
        strategy.start(trainer, "auto", 2)


def test_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with strategy.environment_kept():
        os.environ.update(OMP_NUM_THREADS="1", LOCAL_RANK="0")
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("LOCAL_RANK")) == ("3", None)


@pytest.mark.skipif(torch.cuda.device_count() >= 64, reason="that many GPUs are here")
def test_devices_that_are_not_here_are_refused() -> None:
    trainer = {"accelerator": "gpu", "devices": 64, "num_nodes": 1, "precision": "32-true"}
    with pytest.raises(UserError, match="The trainer's options .*'devices': 64.* are refused"):
        strategy.start(trainer, "auto", 64)


@pytest.mark.parametrize("here", [False, True])
def test_cuda_or_the_cpu_and_no_other_device(here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Lightning's auto would take: Apple's GPUs have no float64."""
    monkeypatch.setattr(strategy.CUDAAccelerator, "is_available", lambda: here)
    chosen = {name: strategy.resolve_accelerator({"accelerator": name, "devices": 1}) for name in ("auto", "gpu", "cpu")}
    assert {name: options["accelerator"] for name, options in chosen.items()} == {
        "auto": "cuda" if here else "cpu", "gpu": "cuda", "cpu": "cpu",
    }  # fmt: skip
    assert all(options["devices"] == 1 for options in chosen.values())


@pytest.mark.slow
def test_shared_seeds_equal_one_process_and_checkpoints_do_not_know_the_ranks(cli: Run, tmp_path: Path) -> None:
    """Two processes then one, and one then two: the weights of one process alone.

    The two pre-train a behaviour model for each seed, and the one takes them from the cache.
    """
    runs = {"there": tmp_path / "there", "back": tmp_path / "back"}
    pretraining = ["algo=sfac", "algo.pretrain_updates=10", "algo.behavior_training=fixed"]
    common = [*TINY[:-1], *pretraining, *SMALL, "seeds=[4,8,9]", "eval.every=10", "++algo.schedule.actor=constant"]
    for updates, first, second in ((10, TWO, ONE), (20, ONE, TWO)):
        for run, where in zip(runs.values(), (first, second), strict=True):
            again = ["resume=auto"] if updates > 10 else []
            cache = str(tmp_path / "cache")
            result = cli(*common, *where, f"max_updates={updates}", f"run_dir={run}", *again, XDG_CACHE_HOME=cache)
            assert result.returncode == 0, result.stderr
        there, back = weights(runs["there"]), weights(runs["back"])
        assert there["seeds"].tolist() == [4, 8, 9]
        assert there["critic.network.layers.0.weight"].shape[0] == 3
        assert differing(there, back) == []
    rows = [(run / "metrics.csv").read_text().splitlines() for run in runs.values()]
    keys = [[line.split(",")[:2] for line in table[1:]] for table in rows]
    assert keys[0] == keys[1] == [[update, seed] for update in ("10", "20") for seed in ("4", "8", "9")]
    result = json.loads((runs["back"] / "result.json").read_text())
    assert len(result["final"]["return"]) == 3
    made, taken = (json.loads((run / "result.json").read_text())["behavior"] for run in runs.values())
    assert made["files"] == [None] * 3
    assert [Path(f).name[:28] for f in taken["files"]] == [f"tests-pendulum-tiny-v0-seed{seed}" for seed in (4, 8, 9)]
    assert made["digests"] == taken["digests"]
    assert result["engine"] == {"name": "eager", "device": "cpu, 1 thread(s)", "processes": 2, "parallel": "seeds"}


class Scripted(Ranks):
    """A rank that hears from the group what was written down."""

    def __init__(self, rank: int, mode: str, *answers: list) -> None:
        super().__init__(rank, 2, mode)
        self.answers = list(answers)

    def exchange(self, value):  # type: ignore[override]
        return self.answers.pop(0)


def test_ranks_take_files_together_or_train_together() -> None:
    """Where one rank has found nothing, all train; where they average, all take what rank 0 has found."""
    other = make_algorithm("sfac", seeds=(1,))
    found = behavior.members_of(other)
    parts = [{"files": ["a"], "digests": ["x"]}, {"files": ["b"], "digests": ["y"]}]
    for ranks, own, pretrains, files in (
        (Scripted(0, "seeds", [False, True]), found, True, None),
        (Scripted(0, "seeds", [False, False], parts), found, False, ["a", "b"]),
        (Scripted(1, "data", [found, None], [False, False]), None, False, [None]),
        (Scripted(1, "data", [None, found], [True, True]), found, True, None),
    ):
        algorithm = make_algorithm("sfac", "algo.pretrain_updates=5")
        pretraining = Pretraining(compose_config("algo=sfac", "algo.pretrain_updates=5"), algorithm, ranks)
        pretraining.members = own
        pretraining.begin()
        assert (algorithm.pretraining, ranks.answers) == (pretrains, [])
        assert (pretraining.provenance or {}).get("files") == files
        assert torch.equal(algorithm.behavior.network.layers[0].weight, other.behavior.network.layers[0].weight) != pretrains


@pytest.mark.slow
def test_averaged_gradients_under_torchrun_keep_ranks_equal(data_root: Path, cli: Run, tmp_path: Path) -> None:
    """Two ranks hold the same weights, which are not those of one rank's batches; one process goes on from there."""
    run = tmp_path / "run"
    options = [*TINY, *SMALL, "eval.every=20", f"run_dir={run}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py")]
    typed = [*command, *options, *TWO, "parallel=data", "max_updates=20"]
    callback = "+callbacks.save._target_=tests.helpers.SaveWeights"
    result = subprocess.run(
        [*typed, callback],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "MINARI_DATASETS_PATH": str(data_root), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("run folder:") == 1
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert differing(weights(run), first) == []
    alone = cli(*TINY, *SMALL, *ONE, "eval.every=20", "max_updates=20", f"run_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    assert differing(weights(tmp_path / "alone"), first) != []
    more = cli(*options, *ONE, "parallel=data", "max_updates=30", "resume=auto")
    assert more.returncode == 0, more.stderr
    assert checkpoint_io.read(run / "checkpoints" / "last.ckpt")["brpo"]["updates"] == 30


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_another_machine(start: Start, tmp_path: Path) -> None:
    process = start(*TINY, *SMALL, "trainer=cpu", "trainer.num_nodes=2", f"run_dir={tmp_path / 'run'}")
    wait_for(lambda: "waiting for 1 more process at 127.0.0.1:" in (process.streams / "out").read_text(), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("interrupted: SIGTERM while waiting for 1 more process")) == (130, 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_script_goes_on_in_the_process_that_the_user_started(variables: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from brpo.api import train\n"
        "if __name__ == '__main__':\n"
        f"    options = {[*TINY, *SMALL, 'trainer=smoke']}\n"
        f"    two = train(*options, 'trainer.devices=2', 'seeds=2', 'run_dir={tmp_path}/two')\n"
        f"    one = train(*options, 'run_dir={tmp_path}/one')\n"
        "    print('processes', two['engine']['processes'], one['engine']['processes'])\n"
    )
    ended = subprocess.run([sys.executable, script], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("processes 2 1") == 1
    assert weights(tmp_path / "two")["seeds"].tolist() == [0, 1]


@pytest.mark.slow
def test_one_rank_that_fails_or_is_stopped_ends_all(cli: Run, start: Start, tmp_path: Path) -> None:
    """Divergence on the last rank: exit 3, told once. SIGTERM to the first: a checkpoint, exit 130, resumable."""
    options = [*TINY, *SMALL, *TWO, "seeds=2", "eval.every=1000"]
    diverged = cli(
        *options, "max_updates=1000", f"run_dir={tmp_path / 'bad'}",
        "+callbacks.poison._target_=tests.helpers.PoisonLastRank", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert diverged.returncode == 3, diverged.stderr
    assert diverged.stderr.count("diverged: ") == 1
    assert "of seed 1 became NaN" in diverged.stderr

    wrong = cli(*options, "algo.discount=2", f"run_dir={tmp_path / 'wrong'}")
    assert (wrong.returncode, wrong.stderr) == (2, "error: algo.discount=2 is not allowed; it must be in [0, 1).\n")

    lost = cli(
        *options, "max_updates=1000", f"run_dir={tmp_path / 'lost'}",
        "+callbacks.lose._target_=tests.helpers.LoseLastRank", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert lost.returncode not in (0, 2, 3), lost.stderr

    run = tmp_path / "stopped"
    process = start(*options, "max_updates=100000", f"run_dir={run}")
    wait_for(lambda: "\nupdate " in (process.streams / "out").read_text(), process)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.count("interrupted: SIGTERM") == 1
    assert weights(run)["seeds"].tolist() == [0, 1]
