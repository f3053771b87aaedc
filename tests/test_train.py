"""`python train.py` and `brpo` as a user runs them: in processes of their own, on a tiny data set, without a network."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from brpo import training
from brpo.engine import checkpoint_io
from tests.commands import Command, CommandServer
from tests.conftest import ROOT, Run, Start, random_episode, write_dataset
from tests.helpers import ALGORITHMS, compose_config, make_algorithm

TINY = [
    "dataset=tests/pendulum/tiny-v0",
    "batch_size=16",
    "eval.episodes=1",
    "trainer=cpu",
]
SMALL_NETWORKS = {
    "bc": ["algo.actor.hidden=[16,16]"],
    "bdpo": [
        *(f"algo.{part}.hidden=[16,16]" for part in ("actor", "critic", "value")),
        "algo.critic.critics=2", "algo.samples=2", "algo.acting.candidates=2", "algo.actor.steps=2", "algo.critic_only=0",
        "algo.policy_delay=2", "algo.pretrain_updates=0", "algo.behavior_training=joint",
        *(f"algo.schedule.{part}=constant" for part in ("critic", "value", "behavior")),
    ],
    "diffusion_bc": ["algo.actor.hidden=[16,16]", "algo.actor.steps=2"],
    "iql": ["algo.actor.hidden=[16,16]", "algo.critic.hidden=[16,16]", "algo.value.hidden=[16,16]"],
    "sfac": ["algo.actor.hidden=[16,16]", "algo.critic.hidden=[16,16]", "algo.value.hidden=[16,16]"],
    "td3_bc": ["algo.actor.hidden=[16,16]", "algo.critic.hidden=[16,16]"],
}  # fmt: skip


def tiny(algo: str, *overrides: str) -> list[str]:
    return [f"algo={algo}", *TINY, *SMALL_NETWORKS.get(algo, []), *overrides]


def scalars(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    return events


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint_io.read(folder / "checkpoints" / "last.ckpt")["state_dict"]


def same_weights(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_train_evaluate_and_resume(algo: str, cli: Run, tmp_path: Path) -> None:
    """One run in one go, the same in two goes: equal weights, rows and events; then `brpo evaluate`."""
    # A cosine schedule refers to max_updates, which differs between the parts of this run.
    options = ["eval.every=20", "engine.chunk=8", "seeds=[3,7]", "++algo.schedule.actor=constant"]
    whole = cli(*tiny(algo, *options, "max_updates=40", "run_dir=whole"))
    assert whole.returncode == 0, whole.stderr
    assert re.search(r"final: return -\d+\.\d ± \d+\.\d \(2 seeds\), normalized score", whole.stdout)
    folder = tmp_path / "whole"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}

    result = json.loads((folder / "result.json").read_text())
    assert (result["algo"], result["seeds"], result["updates"]) == (algo, [3, 7], 40)
    assert result["dataset"]["id"] == "tests/pendulum/tiny-v0"
    assert len(result["dataset"]["digest"]) == 64
    assert result["env"]["id"] == "Pendulum-v1"
    assert result["evaluation"] == {"mode": "mean", "episodes": 1}
    assert {"git", "versions", "config", "wall_seconds", "updates_per_second", "auc"} <= set(result)
    for rule in ("final", "best"):
        for key in ("return", "score"):
            assert len(result[rule][key]) == 2

    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("update,seed,mode,episodes,return_mean,score")
    assert [row.split(",")[:2] for row in rows[1:]] == [["20", "3"], ["20", "7"], ["40", "3"], ["40", "7"]]
    final = [float(row.split(",")[4]) for row in rows[3:]]
    assert final == pytest.approx(result["final"]["return"])

    events = scalars(folder)
    tags = events.Tags()
    assert {"loss/actor", "gradient_norm/actor", "evaluation/score", "evaluation_by_seed/score/7"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("loss/actor")] == [8, 16, 20, 24, 32, 40]
    assert [event.step for event in events.Scalars("evaluation/score")] == [20, 40]
    assert any(tag.startswith("heldout/actor/") for tag in tags["histograms"])
    assert "data/boundary_share" in tags["scalars"]
    assert ("series/remainder" in tags["scalars"]) == (algo == "sfac")

    first = cli(*tiny(algo, *options, "max_updates=20", "run_dir=parts"))
    assert first.returncode == 0, first.stderr
    second = cli("resume=parts", "max_updates=40")
    assert second.returncode == 0, second.stderr
    same_weights(folder, tmp_path / "parts")

    evaluated = cli("evaluate", "parts", "--episodes", "1", program="brpo")
    assert evaluated.returncode == 0, evaluated.stderr
    parts = json.loads((tmp_path / "parts" / "result.json").read_text())
    assert f"{parts['final']['return'][0]:.1f}" in evaluated.stdout  # the same starts, the same policy
    assert [(part["update"], part["max_updates"]) for part in parts["parts"]] == [(0, 20), (20, 40)]
    assert [part["engine"] for part in parts["parts"]] == [parts["engine"]] * 2
    assert result["parts"] == [{**parts["parts"][0], "max_updates": 40}]
    assert "update 40" in evaluated.stdout


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (
            ["algo=iql", "actor=mixture", "+algo.actor.cells=3"],
            "With actor= typed, ~algo.actor.cells leaves out an option of the algorithm's own actor.",
        ),
        (
            ["algo=sfac", "actor@algo.behavior=mixture", "+algo.behavior.cells=3"],
            "With actor@algo.behavior= typed, ~algo.behavior.cells leaves out an option of the algorithm's own behavior.",
        ),
        (
            ["algo=iql", "actor=gaussian", "~algo.actor.min_log_std", "~algo.actor.max_log_std"],
            "Give what is missing, +algo.actor.min_log_std=... +algo.actor.max_log_std=..., and no ~ that takes it away.",
        ),
        (
            ["algo=sfac", "actor@algo.behavior=gaussian", "~algo.behavior.hidden"],
            "Give what is missing, +algo.behavior.hidden=..., and no ~ that takes it away.",
        ),
    ],
)
def test_options_of_another_kind_of_policy_come_with_the_way_out(overrides: list[str], hint: str, cli: Run) -> None:
    refused = cli(*overrides, *TINY, "trainer=smoke")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.endswith(hint)


def wait_for(condition: Any, process: Command) -> None:
    """Poll until the condition holds; fail with the process's own words where it ends first."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return
        if process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before the condition held\n{out}\n{err}")
        time.sleep(0.01)
    if os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, signal.SIGKILL)  # with what it started
    process.kill()
    raise AssertionError("the condition never held")


PATIENCE = 240  # seconds; machines may be busy
LONG = ["eval.every=150", "engine.chunk=10", "max_updates=450"]
HELD = ["+callbacks.hold._target_=tests.helpers.Hold", "+callbacks.hold.at=170"]  # after the first checkpoint


@pytest.fixture(scope="module")
def uninterrupted(commands: CommandServer, tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A run of Sf-AC that nobody disturbs; the resumed ones must equal it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    variables = {**os.environ, "MINARI_DATASETS_PATH": str(data_root)}
    result = commands.run("train.py", tiny("sfac", *LONG, "run_dir=run"), folder, variables, folder)
    assert result.returncode == 0, result.stderr
    assert "final:" in result.stdout
    return folder / "run"


def without_clocks(path: Path) -> list[list[str]]:
    return [line.split(",")[:-2] for line in path.read_text().splitlines()]


def test_sigkill_in_the_middle_then_resume_is_bit_exact(cli: Run, start: Start, tmp_path: Path, uninterrupted: Path) -> None:
    """Checkpoints are there in mid-training; after SIGKILL `resume=auto` gives the uninterrupted run's bits."""
    arguments = tiny("sfac", *LONG, *HELD, "run_dir=run")
    run = tmp_path / "run"
    process = start(*arguments)
    wait_for((run / "checkpoints" / "last.ckpt").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "go").touch()
    assert not (run / "result.json").exists()
    updates = checkpoint_io.read(run / "checkpoints" / "last.ckpt")["brpo"]["updates"]
    assert 0 < updates < 450
    # what a killed run may leave behind: rows and events after its last checkpoint, a torn temporary file
    with (run / "metrics.csv").open("a") as file:
        file.write("9999,0,mean,1,1,1,1,1,1,1,1,1\n")

    resumed = cli(*arguments, "resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert f"from update {updates}" in resumed.stdout
    same_weights(run, uninterrupted)
    assert without_clocks(run / "metrics.csv") == without_clocks(uninterrupted / "metrics.csv")
    left, right = scalars(run), scalars(uninterrupted)
    for tag in ("loss/critic", "evaluation/score", "heldout/ratio/rho/mean"):
        assert [(e.step, e.value) for e in left.Scalars(tag)] == [(e.step, e.value) for e in right.Scalars(tag)], tag


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_exit_130_and_the_run_resumes(
    number: signal.Signals, cli: Run, start: Start, tmp_path: Path, uninterrupted: Path
) -> None:
    arguments = tiny("sfac", *LONG, *HELD, "run_dir=run")
    process = start(*arguments)
    wait_for((tmp_path / "run" / "checkpoints" / "last.ckpt").exists, process)
    process.send_signal(number)
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert re.search(rf"interrupted: {number.name} at update \d+; saved run/checkpoints/last.ckpt. Continue with:", err)
    assert "Traceback" not in err
    resumed = cli("resume=run")
    assert resumed.returncode == 0, resumed.stderr
    same_weights(tmp_path / "run", uninterrupted)
    assert without_clocks(tmp_path / "run" / "metrics.csv") == without_clocks(uninterrupted / "metrics.csv")


def test_a_signal_among_the_imports_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py")],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=120,
    )
    assert (result.returncode, result.stderr) == (130, b"")


def test_a_training_that_is_out_of_time_is_an_interrupted_one(cli: Run, tmp_path: Path) -> None:
    """Not a finished one, whose last policy would be taken for that of `max_updates`."""
    options = tiny("bc", "eval.every=1000", "engine.chunk=5", "run_dir=run")
    stopped = cli(*options, "max_updates=1000000", "+trainer.max_time='00:00:00:01'")
    assert stopped.returncode == 130, stopped.stderr
    assert "interrupted: stopped before max_updates=1000000, by trainer.max_time or a callback, at update" in stopped.stderr
    assert not (tmp_path / "run" / "result.json").exists()
    updates = checkpoint_io.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["brpo"]["updates"]
    again = cli("resume=run", f"max_updates={updates + 5}")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["updates"] == updates + 5


def test_resume_of_a_finished_damaged_or_different_run(cli: Run, tmp_path: Path) -> None:
    options = tiny("bc", "eval.every=10", "engine.chunk=5")
    fresh = cli(*options, "max_updates=20", "resume=auto")
    assert fresh.returncode == 0, fresh.stderr
    assert "no run to continue, starting one" in fresh.stdout
    (folder,) = (tmp_path / "runs" / "bc" / "tests-pendulum-tiny-v0").iterdir()

    finished = cli(*options, "max_updates=20", "resume=auto")
    assert (finished.returncode, "already finished" in finished.stdout) == (0, True)

    elsewhere = cli(f"resume={folder}", "max_updates=40", "run_dir=other")
    assert elsewhere.returncode == 2
    assert f"run_dir=other is not where resume={folder} goes on" in elsewhere.stderr
    assert not (tmp_path / "other").exists()
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.ckpt"))
    bare = cli("resume=bare", "max_updates=40")
    assert bare.returncode == 2
    assert "bare ended after 20 updates and has no whole checkpoint to go on from" in bare.stderr
    assert (tmp_path / "bare" / "result.json").exists()

    refused = cli(*options, "max_updates=40", f"run_dir={folder}")
    assert refused.returncode == 2
    assert "already holds a run. Continue it with resume=auto" in refused.stderr

    different = cli(f"resume={folder}", "batch_size=32", "algo.optimizer.lr=0.1")
    assert different.returncode == 2
    assert (
        "other values: algo.optimizer.lr is 0.0003 there and 0.1 here, batch_size is 16 there and 32 here."
        in different.stderr
    )
    assert len(different.stderr.strip().splitlines()) == 1
    unknown = cli(f"resume={folder}", "algo.acting.sampler=ddim")  # read as an option of the default algorithm
    assert unknown.returncode == 2
    assert "Key 'acting' is not in struct" in unknown.stderr
    assert "With resume=RUN only these may be typed: max_updates, eval, " in unknown.stderr

    other = cli(f"resume={folder}", "algo=iql")
    assert other.returncode == 2
    assert other.stderr == f"error: {folder} is a run of bc, not of iql. Leave algo= out.\n"
    other = cli("dataset=tests/pendulum/tiny-v0", f"run_dir={folder}", "resume=auto")
    assert other.stderr.endswith(" is a run of bc, not of sfac. Type algo=bc, or another run_dir.\n")

    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    (folder / "result.json").unlink()
    evaluated = cli("evaluate", str(folder), "--episodes", "1", program="brpo")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "last.ckpt is torn" in evaluated.stdout
    assert "update 10" in evaluated.stdout
    resumed = cli(*options, "max_updates=20", "resume=auto")
    assert resumed.returncode == 0, resumed.stderr
    assert "is torn" in resumed.stdout
    assert "previous.ckpt from update 10" in resumed.stdout
    assert (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algo=bc", "algo.optimizer.lr=-1"], "algo.optimizer.lr=-1 is not allowed; it must be a number >= 0."),
        (["algo=bc", "+algo.optimizer.foo=1"], "algo.optimizer="),
        (["trainer=gpu"], "The trainer's options"),
        (["algo=bc", "algo.actor.hidden=256"], "algo.actor.hidden=256 is not allowed; it must be a list of whole numbers"),
        (
            ["algo=bdpo", "algo.critic.critics=null"],
            "algo.critic.critics=None is not allowed; it must be a whole number >= 1",
        ),
        (["algo=bdpo", "algo.critic.layer_norm=no"], "algo.critic.layer_norm=no is not allowed; it must be true or false"),
        (["algo=iql", "+algo.critic.foo=1"], "has no option 'foo'. Known options: critics, hidden, activation"),
        (
            ["algo=iql", "+algo.actor.foo=1"],
            "GaussianActor has no option 'foo'. Known options: hidden, activation, min_log_std, max_log_std. With actor= ",
        ),
        (["algo=sfac", "+algo.regularizer.bogus=1"], "SfAC: SeriesDivergence has no option 'bogus'.\n"),
        (
            ["algo=td3_bc", "actor=mixture"],
            "td3_bc has a policy of its own, which MixtureActor cannot replace: leave actor= out",
        ),
        (
            ["algo=bdpo", "actor=gaussian"],
            "bdpo has a policy of its own, which GaussianActor cannot replace: leave actor= out",
        ),
        (
            ["algo=sfac", "+algo.schedule.actr=cosine"],
            "algo.schedule.actr=cosine is not allowed; it must be left out: schedule is a mapping from behavior, value",
        ),
        (["+sweep=epsilon"], "+sweep= varies algo, seeds, algo.regularizer.epsilon from job to job: type -m before it"),
        (["algo=null"], "A group such as algo or engine cannot be null"),
        (["eval=5000"], "eval=5000 is not allowed"),
        (["algo=iqll"], "Could not find 'algo/iqll'"),
        (["algo=iql", "algo.expectle=0.7"], "Key 'expectle' is not in struct"),
        (["algo=iql", "algo.expectile=1.7"], "algo.expectile=1.7 is not allowed; it must be in (0, 1)"),
        (["algo=sfac", "algo.divergence=jefreys"], "Unknown divergence 'jefreys'. Known: chi2"),
        (["algo=sfac", "algo.divergence=[jeffreys]"], "Unknown divergence ['jeffreys']. Known: chi2"),
        (["dataset=brpo/halfcheetah/medium-replay"], "Did you mean brpo/halfcheetah/medium-replay-v0?"),
        (["dataset=mujoco/hopper/medium-v0"], "could not be downloaded"),
        (["trainer.precision=16-mixed"], "Use trainer.precision=bf16-mixed"),
        (["seeds=[1,1]"], "seeds=[1, 1] is not allowed"),
        (["max_updates"], "max_updates"),
        (["resume=nowhere"], "resume=nowhere does not exist"),
        (["run_dir=/proc/brpo"], "cannot be written"),
        (["run_dir='~nobody-here/x'"], "run_dir=~nobody-here/x names a home folder that is not known here."),
        (["run_dir='~nobody-here/x'", "resume=auto"], "run_dir=~nobody-here/x names a home folder that is not known"),
        (["resume='~nobody-here/x'"], "resume=~nobody-here/x names a home folder that is not known here."),
        (["algo=bdpo", "behavior='~nobody-here/x'"], "behavior=~nobody-here/x names a home folder that is not known here."),
        (["algo=bc", "+algo.optimizer.betas=[0.9,0.99,0.999]"], "is refused: too many values to unpack (expected 2). Give"),
        (["data.reward_scale=rnage"], "data.reward_scale=rnage is not allowed. Use a positive number or return_range"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, cli: Run, tmp_path: Path) -> None:
    result = cli("dataset=tests/pendulum/tiny-v0", *arguments, CUDA_VISIBLE_DEVICES="")  # else trainer=gpu may be right
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_bad_data_is_one_line_and_exit_code_2(cli: Run, data_root: Path, tmp_path: Path) -> None:
    episode = random_episode(np.random.default_rng(0), 4)
    episode["rewards"][2] = np.nan
    write_dataset(data_root, "tests/bad-v0", [episode])
    for result in (cli("dataset=tests/bad-v0"), cli("data", "check", "tests/bad-v0", program="brpo")):
        assert result.returncode == 2
        assert (
            "tests/bad-v0, episode 0: the field rewards holds NaN, infinity or a number beyond float32 at step 2"
            in result.stderr
        )
        assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_one_line_and_leaves_the_checkpoint(cli: Run, start: Start, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk; the networks are the large ones."""
    options = ["algo=bc", *TINY, "eval.every=5", "engine.chunk=5"]
    assert cli(*options, "max_updates=5", "run_dir=run").returncode == 0
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    process = start(*options, "max_updates=10", "run_dir=run", "resume=auto", largest_file=100 << 10)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert ".ckpt cannot be written (File too large); run/checkpoints/last.ckpt of before is intact" in err
    assert "resume=run, or copy run to" in err
    assert len(err.strip().splitlines()) == 1, err
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "last.ckpt").read_bytes() == before
    assert not list(folder.glob(".*.tmp"))
    assert cli(*options, "max_updates=10", "run_dir=run", "resume=auto").returncode == 0


def test_divergence_ends_with_code_3_and_names_the_good_checkpoint(cli: Run, tmp_path: Path) -> None:
    result = cli(*tiny("bc", "eval.every=10", "engine.chunk=5", "max_updates=10", "run_dir=run"))
    assert result.returncode == 0, result.stderr
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    options = tiny("bc", "eval.every=10", "engine.chunk=5", "run_dir=run", "+callbacks.poison._target_=tests.helpers.Poison")
    result = cli(*options, "max_updates=60", "resume=auto", PYTHONPATH=str(ROOT))
    assert result.returncode == 3, result.stderr
    assert "diverged: loss/actor of seed 0 became NaN or infinite at update 15." in result.stderr
    assert "The last good checkpoint is run/checkpoints/last.ckpt" in result.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == before


def test_without_an_environment_training_goes_on(cli: Run, data_root: Path, tmp_path: Path) -> None:
    import gymnasium

    box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    actions = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    episodes = [random_episode(np.random.default_rng(k), 5) for k in range(4)]
    write_dataset(
        data_root, "tests/noenv-v0", episodes, env=None, observation_space=box, action_space=actions, references=None
    )
    result = cli("algo=bc", "dataset=tests/noenv-v0", "max_updates=4", "eval.every=2", "batch_size=8", "run_dir=run")
    assert result.returncode == 0, result.stderr
    assert "no rollouts: the data set names no environment; offline diagnostics remain" in result.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["final"] == {"return": None, "score": None}
    assert "heldout/actor/log_prob" in scalars(tmp_path / "run").Tags()["histograms"]


def test_one_episode_leaves_nothing_to_hold_out(cli: Run, data_root: Path) -> None:
    write_dataset(data_root, "tests/one-v0", [random_episode(np.random.default_rng(0), 20)])
    options = ("algo=bc", "dataset=tests/one-v0", "trainer=smoke")
    says = "note: one episode leaves nothing to hold out: heldout/* is of what is trained on"
    assert says in cli(*options).stdout
    assert "nothing to hold out" not in cli(*options, "data.heldout=0").stdout


def test_the_number_of_parameters_is_that_of_all_seeds(datasets: Path) -> None:
    """Also where this process trains some of them."""
    datamodule = training.make_datamodule(compose_config("dataset=tests/pendulum/tiny-v0"))
    own, all_of_them = (make_algorithm("iql", spec=datamodule.spec, seeds=seeds) for seeds in ((0,), (0, 1, 2)))
    lines = training.describe(datamodule, own, [0, 1, 2])
    assert lines == training.describe(datamodule, all_of_them, [0, 1, 2])
    assert f"seeds [0, 1, 2], {sum(p.numel() for p in all_of_them.parameters() if p.requires_grad)} parameters" in lines


def test_like_trains_again_with_the_options_of_a_run(cli: Run, tmp_path: Path) -> None:
    """Also with defaults that have changed since; the end says how far the results agree."""
    first = cli(*tiny("bc", "max_updates=4", "eval.every=4", "algo.optimizer.lr=0.01", "run_dir=first"))
    assert first.returncode == 0, first.stderr
    config = tmp_path / "first" / "config.yaml"
    config.write_text(config.read_text().replace("heldout: 0.05", "heldout: 0.25"))  # as if that had been the default then
    result = json.loads((tmp_path / "first" / "result.json").read_text())
    result["config"]["data"]["heldout"] = 0.25
    (tmp_path / "first" / "result.json").write_text(json.dumps(result))

    again = cli("like=first", "run_dir=again")
    assert again.returncode == 0, again.stderr
    assert "note: data.heldout=0.25, as the run was started; today's default is 0.05" in again.stdout
    assert "like first: the same data, code, versions, device, options; final return" in again.stdout  # fewer episodes
    repeated = json.loads((tmp_path / "again" / "result.json").read_text())
    told_apart = {"run_dir"}
    assert {k: v for k, v in repeated["config"].items() if k not in told_apart} == {
        k: v for k, v in result["config"].items() if k not in told_apart
    }
    assert repeated["config"]["algo"]["optimizer"]["lr"] == 0.01

    third = cli("like=again", "run_dir=third")
    assert third.stdout.endswith(
        "like again: the same data, code, versions, device, options; the final numbers are the same to the last digit\n"
    )
    same_weights(tmp_path / "again", tmp_path / "third")
    other = cli("like=again", "seeds=[3]", "run_dir=other")
    assert "like again: the same data, code, versions, device; other options (seeds); final return" in other.stdout
    assert json.loads((tmp_path / "other" / "result.json").read_text())["seeds"] == [3]
    for typed, words in {
        ("like=nothing",): "error: like=nothing is no run folder: it has no config.yaml.",
        ("like=first", "resume=auto"): "error: like=first starts a run and resume=auto goes on with one: type one of them.",
        ("like=first", "run_dir=again"): "error: run_dir=again already holds a run.",
    }.items():
        refused = cli(*typed)
        assert refused.returncode == 2 and refused.stderr.startswith(words)


def test_a_run_remembers_what_was_typed_when_it_was_resumed(cli: Run, tmp_path: Path) -> None:
    """Two resumes by path: the second one, with no options, continues with those of the first."""
    assert cli(*tiny("bc", "eval.every=10", "max_updates=10", "run_dir=run")).returncode == 0
    assert cli("resume=run", "max_updates=20").returncode == 0
    (tmp_path / "run" / "result.json").unlink()
    again = cli("resume=run")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["updates"] == 20


def test_a_run_folder_cannot_smuggle_code_in(cli: Run, tmp_path: Path) -> None:
    """Hydra imports what hydra.searchpath names while it composes: refused before it does."""
    assert cli(*tiny("bc", "eval.every=2", "max_updates=2", "run_dir=run")).returncode == 0
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('executed').touch()")
    config = tmp_path / "run" / "config.yaml"
    for line in ("hydra.searchpath=[pkg://evil]", "+x._target_=os.system"):
        text = config.read_text()
        config.write_text(text.replace("overrides:\n", f"overrides:\n- {line}\n"))
        result = cli("resume=run", PYTHONPATH=str(tmp_path))
        assert result.returncode == 2
        assert "a run has only algo" in result.stderr
        config.write_text(text)
    assert not (tmp_path / "executed").exists()


def test_a_logger_of_the_users_gets_every_number_and_is_typed_again(cli: Run, tmp_path: Path) -> None:
    logger = ["+loggers.csv._target_=lightning.pytorch.loggers.CSVLogger", f"+loggers.csv.save_dir={tmp_path / 'csv'}"]
    options = tiny("bc", "eval.every=4", "engine.chunk=2", "max_updates=4", "run_dir=run")
    assert cli(*options, *logger).returncode == 0
    folder = next((tmp_path / "csv").rglob("metrics.csv")).parent
    rows: dict[int, dict[str, str]] = {}
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(int(row["step"]), {}).update({name: value for name, value in row.items() if value})
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags = {tag for tag in events.Tags()["scalars"] if not tag.startswith(("final/", "hp_metric"))}
    assert set().union(*rows.values()) - {"step"} == tags
    assert {"loss/actor", "evaluation/score", "heldout/actor/log_prob/mean"} <= set(rows[4])
    assert events.Scalars("loss/actor")[-1].value == pytest.approx(float(rows[4]["loss/actor"]))
    assert "algo" in (folder / "hparams.yaml").read_text()
    longer = cli("resume=run", "max_updates=6")
    assert longer.returncode == 0
    assert f"note: {logger[0]} is left out; type it again if the run is to go on with it" in longer.stdout
    wrong = cli(*tiny("bc", "run_dir=other"), "+loggers.csv._target_=lightning.pytorch.loggers.CSVLogger")
    assert (wrong.returncode, (tmp_path / "other").exists()) == (2, False)
    assert "save_dir" in wrong.stderr and "The trainer's options" not in wrong.stderr


def test_evaluations_are_added_to_a_table(cli: Run, tmp_path: Path) -> None:
    assert cli(*tiny("bc", "max_updates=20", "seeds=[3,7]", "run_dir=run")).returncode == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for _ in range(2):
        evaluated = cli("evaluate", "run", "--csv", "tables/scores.csv", program="brpo")
        assert evaluated.returncode == 0, evaluated.stderr
    with (tmp_path / "tables" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seed"], row["digest"]) for row in rows] == 2 * [
        ("run", seed, result["dataset"]["digest"]) for seed in ("3", "7")
    ]
    assert [float(row["return_mean"]) for row in rows] == pytest.approx(2 * result["final"]["return"])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    refused = cli("evaluate", "run", "--csv", "other.csv", program="brpo")
    assert (refused.returncode, "other.csv has other columns" in refused.stderr, refused.stdout) == (2, True, "")
    refused = cli("evaluate", "run", "--csv", "/proc/brpo/scores.csv", program="brpo")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1


def test_smoke_trainer_and_bfloat16(cli: Run) -> None:
    result = cli("algo=sfac", "dataset=tests/pendulum/tiny-v0", "trainer=smoke", "trainer.precision=bf16-mixed")
    assert result.returncode == 0, result.stderr
    assert "final: return" in result.stdout


def test_brpo_data_commands(cli: Run) -> None:
    listed = cli("data", "list", program="brpo")
    assert listed.returncode == 0, listed.stderr
    assert "tests/pendulum/tiny-v0" in listed.stdout
    assert "brpo/halfcheetah/medium-replay-v0" in listed.stdout
    assert "The hub cannot be reached" in listed.stdout
    info = cli("data", "info", "brpo/halfcheetah/medium-replay-v0", program="brpo")
    assert info.returncode == 0, info.stderr
    assert "60: 0 terminated, 60 truncated, 0 neither" in info.stdout
    checked = cli("data", "check", "tests/pendulum/tiny-v0", program="brpo")
    assert (checked.returncode, "good. 240 transitions in 12 episodes" in checked.stdout) == (0, True)
    for arguments in (["data", "info", "nope-v0"], ["evaluate", "nowhere"], ["data", "inof"], ["evaluate"]):
        assert cli(*arguments, program="brpo").returncode == 2


@pytest.mark.parametrize("command", [["train.py"], ["-m", "brpo.cli"]])
def test_help_says_how(command: list[str]) -> None:
    """In an interpreter of its own, as the other commands of this file are not."""
    result = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0
    assert ("algo" if command == ["train.py"] else "evaluate") in result.stdout
