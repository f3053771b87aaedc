"""`brpo estimate`: values in the data's rewards, the same from either storage, and what it refuses."""

import csv
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from brpo import cli, estimates
from brpo.errors import UserError
from brpo.exits import exit_code_of
from brpo.training import make_datamodule
from tests.conftest import random_episode, write_dataset
from tests.helpers import compose_config
from tests.test_diagnosis import DATASET, saved_run

LAST = "checkpoints/last.ckpt"


def test_starts_and_what_the_data_earn(datasets: Path) -> None:
    config = compose_config(f"dataset={DATASET}")
    datamodule = make_datamodule({**config, "data": {**config["data"], **estimates.DATA}})
    begins, returns = estimates.starts(datamodule, 0.5)
    assert begins.tolist() == list(range(0, 240, 20))
    rewards = [episode.rewards for episode in minari.load_dataset(DATASET).iterate_episodes()]
    assert returns == pytest.approx([r @ 0.5 ** np.arange(len(r)) for r in rewards], rel=1e-5)


def test_values_are_in_the_rewards_of_the_data(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in those that the fit is made in; of the first observation of each episode, for each seed."""
    seen: list[tuple[Any, torch.Tensor]] = []

    def policy_value(self: Any, observations: torch.Tensor) -> torch.Tensor:
        seen.append((self, observations))
        return observations[..., 0] * torch.tensor([[1.0], [3.0]])

    monkeypatch.setattr(estimates.FQE, "policy_value", policy_value)
    monkeypatch.setattr(estimates, "PIECE", 5)  # of 12
    found = estimates.estimate(saved_run(tmp_path / "run", "iql") / LAST, updates=1)
    fqe = seen[0][0]
    starts = torch.cat([observations[0] for _, observations in seen])
    first = np.array([episode.observations[0] for episode in minari.load_dataset(DATASET).iterate_episodes()])
    torch.testing.assert_close(starts * fqe.observation_std + fqe.observation_mean, torch.from_numpy(first).float())
    mean = starts[:, 0].double().mean().item() / fqe.spec.reward_scale
    assert fqe.spec.reward_scale > 10
    assert found.values == {1: [pytest.approx(mean, rel=1e-5), pytest.approx(3 * mean, rel=1e-5)]}


def test_points_rows_and_both_storages(datasets: Path, tmp_path: Path) -> None:
    told: list[int] = []
    runs = [
        saved_run(tmp_path / storage, "iql", f"data.storage={storage}", seeds=(4, 0)) for storage in ("device", "memmap")
    ]
    first = estimates.estimate(runs[0] / LAST, updates=7, on_point=lambda update, values: told.append(update))
    second = estimates.estimate(runs[1] / LAST, updates=7)
    assert told == [1, 3, 4, 6, 7]
    assert first.values == second.values
    assert len({value for values in first.values.values() for value in values}) == 10
    rows = first.rows()
    assert [tuple(row) for row in rows] == [estimates.COLUMNS] * 10
    assert [(row["updates"], row["seed"], row["value"]) for row in rows[-2:]] == [
        (7, 4, first.values[7][0]),
        (7, 0, first.values[7][1]),
    ]


def test_command(datasets: Path, tmp_path: Path) -> None:
    runs = [str(saved_run(tmp_path / algo, algo, seeds=(0,))) for algo in ("bc", "td3_bc")]
    table = tmp_path / "tables" / "estimates.csv"
    for _ in range(2):
        said = CliRunner().invoke(cli.app, ["estimate", *runs, "--updates", "5", "--mode", "sampled", "--csv", str(table)])
        assert said.exit_code == 0, said.output
    assert f"{runs[0]}:\n  update 1/5" in said.output
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert rows[0] | {"value": "", "data_return": "", "data_best": "", "digest": ""} == {
        "run": runs[0], "algo": "bc", "dataset": DATASET, "digest": "", "checkpoint": "last.ckpt", "update": "3",
        "mode": "sampled", "discount": "0.99", "updates": "1", "seed": "0", "value": "", "data_return": "",
        "data_best": "",
    }  # fmt: skip
    last = {row["algo"]: float(row["value"]) for row in rows if row["updates"] == "5"}
    lines = said.output.splitlines()
    order = [next(n for n, line in enumerate(lines) if f" {algo} " in line) for algo in sorted(last, key=lambda a: -last[a])]
    assert order == sorted(order)
    assert f"{last['bc']:.2f}" in said.output


def test_what_lies_beyond_the_data_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    what = {"dataset": "a/b-v0", "digest": "0", "algo": "bc"}
    found = [
        (Path(name), estimates.Estimate(what, {1: [2.0, best]}, [0, 1], 2.0, 3.0)) for name, best in (("x", 2.9), ("y", 3.1))
    ]
    cli._print_estimates(found, 0.9)
    said = capsys.readouterr().out
    assert "a/b-v0: discounted return (0.9), estimated; of the data 2.00, at most 3.00" in said
    assert said.splitlines()[-1] == "note: y is above every episode of the data: an extrapolation, not to be believed"
    assert said.count("note") == 1


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as refused:
        CliRunner().invoke(cli.app, ["estimate", *arguments], catch_exceptions=False)
    return str(refused.value)


def test_what_it_refuses(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(saved_run(tmp_path / "run", "bc"))
    other = tmp_path / "other.csv"
    other.write_text("a,b\n")
    assert "has other columns" in refusal(run, "--csv", str(other))
    assert "discount=1.0 is not allowed; it must be in [0, 1)" in refusal(run, "--discount", "1")
    assert "does not exist" in refusal(str(tmp_path / "nothing"))
    write_dataset(tmp_path / "others", DATASET, [random_episode(np.random.default_rng(5), 20) for _ in range(12)])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "others"))
    assert f"The data set {DATASET} has changed since" in refusal(run)


def test_toy_tasks_are_refused(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "toy", "bc", "dataset=toy/8gaussians")
    with pytest.raises(UserError, match="needs no estimate: brpo evaluate"):
        estimates.estimate(run / LAST)


def test_interrupted(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """130, and the rows of the runs that are through stay."""
    runs, table = [saved_run(tmp_path / name, "bc") for name in "ab"], tmp_path / "table.csv"
    original = estimates.estimate

    def interrupted(path: Path, **options: Any) -> estimates.Estimate:
        if path.parent.parent == runs[1]:
            raise KeyboardInterrupt
        return original(path, **options)

    monkeypatch.setattr(estimates, "estimate", interrupted)
    arguments = ["estimate", *map(str, runs), "--updates", "5", "--csv", str(table)]
    assert exit_code_of(lambda: CliRunner().invoke(cli.app, arguments, catch_exceptions=False)) == 130
    assert len(table.read_text().splitlines()) == 11
