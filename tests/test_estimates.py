"""`brpo estimate`: values in the data's rewards, the same from either storage, and what it refuses."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import minari
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from brpo import cli, estimates
from brpo.datasets.minari_io import Columns
from brpo.datasets.transitions import Transitions
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


def test_episodes_that_were_cut_off_say_nothing_of_how_large_a_value_may_be() -> None:
    """Those that terminated do, and those after which less than a hundredth can follow."""
    datamodule: Any = SimpleNamespace(flat=SimpleNamespace(ended=np.array([1, 2, 0, 1]), lengths=np.array([3, 2, 3, 7])))
    returns = np.array([5.0, 3.0, 6.0, 4.0])
    assert estimates.bounded_by(datamodule, 0.5, returns) == 4.0  # 0.5^7 is less, 0.5^3 is not
    assert estimates.bounded_by(datamodule, 0.9, returns) == 3.0
    datamodule.flat.ended[1] = 1
    assert estimates.bounded_by(datamodule, 0.9, returns) is None


def test_the_size_of_q_suits_the_optimizer() -> None:
    """Rewards of 0.1 at discount 0.99: 10 with no end, or what an episode has; in [10, 1000] nothing is changed."""
    columns = Columns(1, 1)

    def factor(reward: float, largest: float) -> float:
        rows = torch.zeros(5, sum(columns.widths))
        rows[:, columns.slices[2]] = torch.tensor([reward, -reward, reward, -reward, reward])[:, None]
        return estimates.factor_for(Transitions(rows, columns), 0.99, largest)

    assert [factor(0.1, largest) for largest in (1.0, 999.0, 4000.0)] == pytest.approx([1.0, 1.0, 0.25])
    assert factor(100.0, 1.0) == pytest.approx(0.1)
    assert factor(0.01, 0.5) == pytest.approx(10.0)
    assert factor(0.0, 0.0) == 1.0


def test_transitions_that_a_fit_is_judged_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2^24, too, where float32 has no odd numbers."""
    monkeypatch.setattr(estimates, "READ", 4)
    every: Any = [range(3), range(4), range(10), range(3 * 10**7 + 1)]
    chosen = [estimates.spread_over(transitions).tolist() for transitions in every]
    assert chosen == [[0, 1, 2], [0, 1, 2, 3], [0, 2, 5, 7], [0, 7500000, 15000000, 22500000]]


def test_what_a_fit_still_misses(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a unit in each of the steps that count, in the data's rewards; none of the data's episodes terminates."""
    seen: list[Any] = []

    def residual(self: Any, batch: Any, piece: int) -> torch.Tensor:
        seen.append((self, len(batch.rewards[0])))
        return torch.full(batch.rewards.shape, 0.5) * torch.tensor([[1.0], [3.0]])

    monkeypatch.setattr(estimates.FQE, "residual", residual)
    monkeypatch.setattr(estimates, "PIECE", 100)  # of 240
    found = estimates.estimate(saved_run(tmp_path / "run", "iql") / LAST, updates=1, discount=0.9)
    scale = seen[0][0].spec.reward_scale * seen[0][0].reward_factor
    assert [count for _, count in seen] == [100, 100, 40]
    assert found.missing == pytest.approx([0.5 * 10 / scale, 1.5 * 10 / scale])


def test_steps_that_count_end_where_episodes_terminate() -> None:
    """One of four transitions terminates: at discount 0.8 the sum over steps is 1 / (1 - 0.8 * 3/4) = 2.5, not 5."""
    columns = Columns(1, 1)
    rows = torch.zeros(4, sum(columns.widths))
    rows[0, columns.slices[3]] = 1.0
    fqe: Any = SimpleNamespace(
        seeds=torch.tensor([0]), discount=0.8, reward_factor=2.0, spec=SimpleNamespace(reward_scale=4.0),
        residual=lambda batch, piece: torch.full_like(batch.rewards, 0.5),
    )  # fmt: skip
    assert estimates.still_missing(fqe, Transitions(rows, columns)) == pytest.approx([0.5 * 2.5 / 8])


def test_values_are_in_the_rewards_of_the_data(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in those that the fit is made in; of the first observation of each episode, for each seed."""
    seen: list[tuple[Any, torch.Tensor]] = []

    def policy_value(self: Any, observations: torch.Tensor, piece: int) -> torch.Tensor:
        assert piece == len(seen)  # names the random numbers of a policy that samples
        seen.append((self, observations))
        return observations[..., 0] * torch.tensor([[1.0], [3.0]])

    monkeypatch.setattr(estimates.FQE, "policy_value", policy_value)
    monkeypatch.setattr(estimates, "PIECE", 5)  # of 12
    monkeypatch.setattr(estimates, "factor_for", lambda *_: 0.5)
    found = estimates.estimate(saved_run(tmp_path / "run", "iql") / LAST, updates=1)
    fqe = seen[0][0]
    starts = torch.cat([observations[0] for _, observations in seen])
    first = np.array([episode.observations[0] for episode in minari.load_dataset(DATASET).iterate_episodes()])
    torch.testing.assert_close(starts * fqe.observation_std + fqe.observation_mean, torch.from_numpy(first).float())
    mean = starts[:, 0].double().mean().item() / (0.5 * fqe.spec.reward_scale)
    assert fqe.spec.reward_scale > 10
    assert fqe.reward_factor == 0.5
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
    assert [(row["updates"], row["seed"], row["value"], row["missing"]) for row in rows[-2:]] == [
        (7, 4, first.values[7][0], first.missing[0]),
        (7, 0, first.values[7][1], first.missing[1]),
    ]
    assert {row["missing"] for row in rows[:-2]} == {None}
    assert first.missing == second.missing


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
    assert rows[0] | {"value": "", "data_return": "", "digest": ""} == {
        "run": runs[0], "algo": "bc", "dataset": DATASET, "digest": "", "checkpoint": "last.ckpt", "update": "3",
        "mode": "sampled", "discount": "0.99", "updates": "1", "seed": "0", "value": "", "missing": "", "data_return": "",
        "data_best": "",
    }  # fmt: skip
    last = {row["algo"]: float(row["value"]) for row in rows if row["updates"] == "5"}
    lines = said.output.splitlines()
    order = [next(n for n, line in enumerate(lines) if f" {algo} " in line) for algo in sorted(last, key=lambda a: -last[a])]
    assert order == sorted(order)
    assert f"{last['bc']:.2f}" in said.output


def test_what_lies_beyond_the_data_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    what = {"dataset": "a/b-v0", "digest": "0", "algo": "bc"}

    def estimated(name: str, value: float, data_best: float | None) -> tuple[Path, estimates.Estimate]:
        return Path(name), estimates.Estimate(what, {1: [2.0, value]}, [0, 1], [0.05, 0.15], 2.0, data_best)

    cli._print_estimates([estimated("x", 2.9, None)], 0.9)
    said = capsys.readouterr().out
    assert "estimated; of the data 2.00\n" in said
    assert said.splitlines()[-1].startswith("note: every episode of the data was cut off where a hundredth")
    cli._print_estimates([estimated("x", 2.9, 3.0), estimated("y", 3.1, 3.0)], 0.9)
    said = capsys.readouterr().out
    assert "a/b-v0: discounted return (0.9), estimated; of the data 2.00, at most 3.00" in said
    assert said.splitlines()[-1] == "note: y is above every episode of the data: an extrapolation, not to be believed"
    assert said.count("note") == 1
    assert "0.10 ± 0.05" in said  # still missing


@pytest.mark.parametrize(
    ("value", "missing", "notes"),
    [
        (-2.0, -48.0, ["has not ended"]),  # rewards below zero: Q has not come down yet
        (-49.0, -1.0, []),
        (-10.0, -1.0, ["is above"]),
        (-10.0, 20.0, ["has not ended", "is above"]),
    ],
)
def test_a_fit_that_has_not_ended_is_said_first(
    value: float, missing: float, notes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    what = {"dataset": "a/b-v0", "digest": "0", "algo": "bc"}
    found = estimates.Estimate(what, {1: [value, -50.0]}, [0, 1], [missing, 0.0], -60.0, -30.0)
    cli._print_estimates([(Path("x"), found)], 0.9)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: x")]
    assert len(said) == len(notes) and all(note in line for note, line in zip(notes, said, strict=True))


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
    new = tmp_path / "new.csv"
    assert f"The data set {DATASET} has changed since" in refusal(run, "--csv", str(new)) and not new.exists()


def test_toy_tasks_are_refused(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "toy", "bc", "dataset=toy/8gaussians")
    with pytest.raises(UserError, match="needs no estimate: brpo evaluate"):
        estimates.estimate(run / LAST)


def test_interrupted(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """130, and what is known of the runs that are through is shown and stays."""
    runs, table = [saved_run(tmp_path / name, "bc") for name in "ab"], tmp_path / "table.csv"
    original = estimates.estimate

    def interrupted(path: Path, **options: Any) -> estimates.Estimate:
        if path.parent.parent == runs[1]:
            raise KeyboardInterrupt
        return original(path, **options)

    monkeypatch.setattr(estimates, "estimate", interrupted)
    arguments = ["estimate", *map(str, runs), "--updates", "5", "--csv", str(table)]
    assert exit_code_of(lambda: cli.app(arguments, standalone_mode=False)) == 130
    assert len(table.read_text().splitlines()) == 11
    assert f"{DATASET}: discounted return (0.99), estimated" in capsys.readouterr().out
