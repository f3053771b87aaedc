"""Training on toy tasks, and what the other commands make of such runs."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from brpo import cli, config, launch, resume
from brpo.engine import checkpoint_io
from brpo.errors import UserError
from brpo.evaluation.make import columns
from brpo.experiments import toy as experiment
from brpo.runs import RunFolder
from brpo.sweeps import collect
from brpo.training import train
from tests.helpers import ALGORITHMS, compose_config, shrink
from tests.test_sweeps import finished, result, sweep_of
from tests.test_train import scalars

OPTIONS = ("batch_size=16", "trainer=cpu", "eval.every=6", "eval.episodes=200", "engine.chunk=4")


def run(folder: Path, algo: str, *overrides: str, resumed: bool = False) -> dict[str, Any]:
    """Train with small networks on 8gaussians, unless the overrides say otherwise."""
    typed = (f"algo={algo}", "dataset=toy/8gaussians", "max_updates=12", f"run_dir={folder}", *OPTIONS, *overrides)
    composed = compose_config(*typed)
    shrink(composed["algo"])
    config.check_config(composed)
    return train(composed, list(typed), resume.resume_in(RunFolder(folder)) if resumed else None)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k not in ("updates_per_second", "wall_seconds")} for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("algo", ["bc", "sfac"])
def test_train_resume_and_evaluate(
    algo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one go and in two: equal weights and rows. Then result, events, pictures, and `brpo evaluate`."""
    options = ("seeds=[3,7]", "++algo.schedule.actor=constant")  # a cosine would refer to max_updates, which differs
    found = run(tmp_path / "whole", algo, *options)
    launch.report(found)
    assert "final: sliced Wasserstein distance 0." in capsys.readouterr().out

    stored = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert stored["evaluation"] == {"mode": "sampled", "episodes": 200}
    assert stored["env"]["id"] is None
    table = rows(tmp_path / "whole")
    assert [(row["update"], row["seed"]) for row in table] == [("6", "3"), ("6", "7"), ("12", "3"), ("12", "7")]
    assert list(table[0])[4:] == columns("toy/8gaussians")  # behind update, seed, mode and episodes
    for name in ("sliced_wasserstein", "energy_mean"):
        assert stored["final"][name] == [float(row[name]) for row in table[2:]]
    mean = {
        update: sum(float(row["sliced_wasserstein"]) for row in table if row["update"] == update) for update in ("6", "12")
    }
    assert stored["best"]["update"] == int(min(mean, key=lambda update: mean[update]))
    assert set(stored["final"]) == {"sliced_wasserstein", "energy_mean"}
    tags = scalars(tmp_path / "whole").Tags()
    assert {"evaluation/sliced_wasserstein", "evaluation/noise_floor", "evaluation/mode_share_7"} <= set(tags["scalars"])
    assert "evaluation_by_seed/sliced_wasserstein/7" in tags["scalars"]
    assert "evaluation/samples" in tags["images"]
    assert {path.name for path in (tmp_path / "whole" / "pictures").iterdir()} == {"samples-6.png", "samples-12.png"}

    if algo == "sfac":  # the other one adds nothing
        run(tmp_path / "parts", algo, *options, "max_updates=6")
        run(tmp_path / "parts", algo, *options, resumed=True)
        left, right = (
            checkpoint_io.read(tmp_path / p / "checkpoints" / "last.ckpt")["state_dict"] for p in ("whole", "parts")
        )
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert rows(tmp_path / "parts") == table

    shown = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "whole"), "--episodes", "200"]).stdout
    assert f"{stored['final']['sliced_wasserstein'][0]:.4f}" in shown
    assert "200 samples a seed, sampled action, update 12" in shown
    new = tmp_path / "new.csv"
    refused = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "whole"), "--mode", "mean", "--csv", str(new)])
    assert "eval.mode=mean is not allowed on toy/8gaussians" in str(refused.exception) and not new.exists()
    refused = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "whole"), "--steps", "2"])
    assert "has no choice of steps: diffusion policies alone have a choice. Leave it out." in str(refused.exception)
    refused = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "whole"), "--first-seed", "1"])
    assert "toy/8gaussians has no episodes that could start from other seeds" in str(refused.exception)
    table = tmp_path / "scores.csv"
    table.write_text("run,algo,of rollouts\n")
    monkeypatch.setattr("brpo.saved_runs.evaluate_checkpoint", None)  # the file is refused before
    refused = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "whole"), "--csv", str(table)])
    assert "scores.csv has other columns than the rows to be added: run,algo,dataset" in str(refused.exception)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_any_algorithm_is_judged_by_its_distance_to_the_target(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pretraining = ["algo.pretrain_updates=4"] if algo == "bdpo" else []
    found = run(tmp_path / "run", algo, "max_updates=4", "eval.every=4", *pretraining)
    assert 0 < found["final"]["sliced_wasserstein"][0] < 5
    assert (tmp_path / "run" / "result.json").exists()


def test_bdpo_draws_its_paths_and_knows_what_its_start_is_worth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pre-training; the table of runs has the numbers of the last evaluation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    found = run(folder, "bdpo", "seeds=[3,7]", "max_updates=6", "algo.pretrain_updates=4", "eval.every=6")
    assert {path.name for path in (folder / "pictures").iterdir()} == {"samples-6.png", "paths-6.png"}
    tags = scalars(folder).Tags()
    assert {"evaluation/start_value", "evaluation_by_seed/start_value/7"} <= set(tags["scalars"])
    assert "evaluation/paths" in tags["images"]
    table = rows(folder)
    assert float(table[0]["start_exact"]) == pytest.approx(0.881, abs=1e-3)
    evaluate = ["evaluate", str(folder), "--episodes", "50"]
    quick = CliRunner().invoke(cli.app, [*evaluate, "--sampler", "ddim", "--steps", "2"]).stdout
    assert "50 samples a seed, sampled action, sampler ddim, steps 2, update 6" in quick
    assert quick.splitlines()[:-1] != CliRunner().invoke(cli.app, evaluate).stdout.splitlines()[:-1]
    for options, says in (
        (["--steps", "51"], "A reverse pass has 1 to 2 steps"),
        (["--sampler", "dpm"], "Unknown sampler 'dpm'. Known: ddpm, ddim."),
        (["--candidates", "5"], "Candidates are chosen among where the mode is mean; sampled takes a plain sample."),
    ):
        refused = CliRunner().invoke(cli.app, [*evaluate, *options])
        assert says in str(refused.exception)
    experiment.table([folder], tmp_path / "toy.csv")
    (line,) = csv.DictReader((tmp_path / "toy.csv").open())
    assert [line[key] for key in ("task", "algorithm", "seeds", "updates", "pretrain_updates")] == [
        "toy/8gaussians", "bdpo", "2", "6", "4",
    ]  # fmt: skip
    assert float(line["start_value"]) == pytest.approx(sum(float(row["start_value"]) for row in table) / 2, abs=1e-4)
    assert float(line["sliced_wasserstein"]) == pytest.approx(sum(found["final"]["sliced_wasserstein"]) / 2, abs=1e-4)
    assert float(line["cpu_minutes"]) >= 0
    with pytest.raises(UserError, match="is not the folder of a finished run"):
        experiment.table([tmp_path], tmp_path / "none.csv")
    shutil.copytree(folder, tmp_path / "other")
    result = json.loads((folder / "result.json").read_text())
    result["config"]["data"]["eta"] = 0.1
    (tmp_path / "other" / "result.json").write_text(json.dumps(result))
    with pytest.raises(
        UserError, match="other targets: toy/8gaussians with 0.06, toy/8gaussians with 0.1. Give runs of one"
    ):
        experiment.table([folder, tmp_path / "other"], tmp_path / "none.csv")
    fewer = run(tmp_path / "fewer", "bdpo", "max_updates=6", "algo.pretrain_updates=4", "eval.every=6", "eval.episodes=50")
    assert fewer["evaluation"]["episodes"] == 50
    with pytest.raises(UserError, match="eval.episodes makes other noise floors: toy/8gaussians with 0"):
        experiment.table([folder, tmp_path / "fewer"], tmp_path / "none.csv")


@pytest.mark.parametrize("eta", ["0", "-0.06", "nan"])
def test_a_target_has_a_temperature_above_zero(eta: str, tmp_path: Path) -> None:
    refused = CliRunner().invoke(experiment.app, ["tasks", "--eta", eta, "--out", str(tmp_path / "x.png")])
    assert "it must be positive and finite" in str(refused.exception)
    assert list(tmp_path.iterdir()) == []


def test_the_table_holds_bdpo_against_three_limits() -> None:
    """By hand: 0.06 / (1.5 x 0.02 + 0.05) = 0.75, 0.06 / (0.2 / 2) = 0.6, and 0.84 is 4.5 % below 0.88."""

    def line(task: str, algorithm: str, distance: str, value: str = "", seeds: int = 3) -> dict[str, Any]:
        spread = {"sliced_wasserstein_std": "0.0010", "start_value_std": "0.0020", "mode_error": ""}
        numbers = {"sliced_wasserstein": distance, "start_value": value, "noise_floor": "0.0200", "start_exact": "0.8800"}
        return {"task": task, "algorithm": algorithm, "seeds": seeds, "cpu_minutes": "2.5", **numbers, **spread}

    lines = [
        line("toy/a", "bdpo", "0.0600", "0.8400"),
        line("toy/a", "sfac", "0.2000"),
        line("toy/b", "sfac", "0.1000", seeds=1),
    ]
    lines.append(line("toy/a", "diffusion_bc", "0.3000"))
    titles, _, first, second = (
        [cell.strip() for cell in row.split("|")[1:-1]] for row in experiment.markdown(lines).split("\n")
    )
    assert titles[2:7] == ["bdpo", "diffusion_bc", "sfac", "(a)", "(b)"]
    assert first == ["a", "0.0200", "0.0600 ± 0.0010", "0.3000 ± 0.0010", "0.2000 ± 0.0010", "0.75", "0.60",
                     "0.880", "0.840 ± 0.002", "-4.5 %", "-", "2.5, 2.5, 2.5"]  # fmt: skip
    assert second == ["b", "0.0200", "-", "-", "0.1000", "-", "-", "0.880", "-", "-", "-", "-, -, 2.5"]


def test_one_picture_of_several_runs(tmp_path: Path, datasets: Path) -> None:
    """A row for each task, a panel for each run; a second run of an algorithm gets a number."""
    run(tmp_path / "a", "bc", "max_updates=1")
    run(tmp_path / "b", "bc", "max_updates=1", "seeds=[4,5]")
    run(tmp_path / "c", "td3_bc", "max_updates=1", "dataset=toy/moons")
    found = experiment.rows_of([tmp_path / name for name in "abc"])
    assert [(row.dataset_id, list(row.panels)[2:]) for row in found] == [
        ("toy/8gaussians", ["bc", "bc 2"]),
        ("toy/moons", ["td3_bc"]),
    ]
    assert not (found[0].panels["bc"] == found[0].panels["bc 2"]).all()
    experiment.compare([tmp_path / "a"], tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
    run(tmp_path / "d", "bc", "max_updates=1", "dataset=tests/pendulum/tiny-v0", "eval.episodes=1")
    with pytest.raises(UserError, match="was trained on tests/pendulum/tiny-v0; only runs on toy tasks can be drawn"):
        experiment.rows_of([tmp_path / "d"])


def test_the_family_gives_toy_tasks_options_of_their_own() -> None:
    composed = compose_config("algo=sfac", "dataset=toy/rings", "data.eta=0.1")
    config.check_config(composed)
    assert (composed["max_updates"], composed["eval"]["episodes"], composed["eval"]["mode"]) == (10000, 10000, "sampled")
    assert (composed["algo"]["temperature"], composed["data"]["reward_scale"]) == (0.1, 1.0)
    target = ("temperature", "omega", "value_loss")
    assert [composed["algo"][name] for name in target] == [0.1, "exp", "expectile"]
    assert [compose_config("algo=sfac")["algo"][name] for name in target] == [1.0, "series", "normalizer"]
    inverse = compose_config("algo=iql", "dataset=toy/rings")
    assert inverse["algo"]["inverse_temperature"] * inverse["data"]["eta"] == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.mode=mean", "eval.mode=mean is not allowed on toy/rings, which compares samples; it must be sampled"),
        ("data.reward_scale=10", "data.reward_scale=10 is not allowed; it must be 1 on a toy task"),
        ("data.family=mujoco/hopper", "data.family=mujoco/hopper brings eval.mode=mean and data.reward_scale=return_range"),
        ("data.eta=0", "data.eta=0 is not allowed; it must be a number > 0"),
    ],
)
def test_options_that_would_mean_another_target_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.check_config(compose_config("dataset=toy/rings", override))


def test_a_sweep_over_toy_tasks_has_a_table(tmp_path: Path) -> None:
    """The worst seed is the one with the largest distance; four digits are shown."""
    folder, numbers = sweep_of(tmp_path, planned=1), {"sliced_wasserstein": [0.02, 0.04], "energy_mean": [0.9, 0.8]}
    content = result("bc", [3, 7], []) | {"dataset": {"id": "toy/rings", "digest": "a" * 64}}
    finished(folder, 0, content | dict.fromkeys(collect.RULES, numbers))
    (row,) = collect.collect(folder)
    assert (row.metric, row.worst()) == ("sliced_wasserstein", (7, 0.04))
    assert collect.cells(row, {})[5:9] == (*["0.0300 ± 0.0100"] * 3, "7: 0.0400")
    assert collect.notes([row], {})[0].startswith("sliced Wasserstein distance, mean")
