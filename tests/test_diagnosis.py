"""`brpo diagnose`: numbers by hand, the page for each kind of method, and what it refuses."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard.writer import SummaryWriter
from typer.testing import CliRunner

from brpo import cli, diagnosis, diagnosis_page, diagnosis_panels, saved_runs
from brpo.callbacks.evaluate import BOUNDARY_SHARE, boundary_share
from brpo.callbacks.recorder import WEIGHTS, Recorder
from brpo.diagnosis import Curve
from brpo.diagnosis_panels import KL
from brpo.engine.checkpoint_io import encode
from brpo.errors import UserError
from brpo.exits import exit_code_of
from brpo.runs import RunFolder
from brpo.training import make_datamodule
from tests.callbacks.test_callbacks import FakeTrainer
from tests.conftest import ROOT, random_episode, write_dataset
from tests.helpers import ALGORITHMS, compose_config, make_algorithm, random_batch, shrink

DATASET = "tests/pendulum/tiny-v0"


def saved_run(path: Path, algo: str, *overrides: str, seeds: tuple[int, ...] = (0, 1)) -> Path:
    """The folder of a run that has not made an update: a configuration, a checkpoint, no events."""
    config = compose_config(f"algo={algo}", f"dataset={DATASET}", f"seeds=[{','.join(map(str, seeds))}]", *overrides)
    shrink(config["algo"])
    spec = make_datamodule(config).spec
    algorithm = make_algorithm(algo, *overrides, spec=spec, seeds=seeds, dtype=torch.float32)
    RunFolder(path).create(config, [])
    content = {"config": config, "spec": spec.to_dict(), "updates": 3}
    (path / "checkpoints" / "last.ckpt").write_bytes(encode({"state_dict": algorithm.state_dict(), "brpo": content}))
    return path


def record(path: Path, algo: str) -> None:
    """Events and evaluations as a run leaves them."""
    trainer: Any = FakeTrainer()
    writer = SummaryWriter(str(path))
    trainer.logger.experiment = writer
    diagnosed = diagnosis.diagnose(path / "checkpoints" / "last.ckpt")
    for update in (10, 20):
        quantities = {name: torch.from_numpy(values) for name, values in diagnosed.quantities.items()}
        Recorder(RunFolder(path)).add_distributions(trainer, quantities, update)
        for tag in (*diagnosis.CLIPPED, "weight/effective_share", *(tag for pair in diagnosis.TERMS for tag in pair)):
            if algo in ("sfac", "iql"):
                writer.add_scalar(tag, 0.5, update)
    writer.close()
    (path / "metrics.csv").write_text("update,seed,value_gap\n10,0,1.5\n10,1,-0.5\n20,0,2.0\n20,1,\n")


def draw_panels(diagnosed: diagnosis.Diagnosis) -> bytes:
    for panel in diagnosis_page.shown(diagnosed):
        panel.draw(Figure().subplots(), diagnosed)
    return b"\x89PNG"


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_method_gets_a_page(algo: str, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved_run(tmp_path / "run", algo)
    record(path, algo)
    if algo != "sfac":  # a page costs a second: of the others the panels alone
        monkeypatch.setattr(diagnosis_page, "draw", draw_panels)
    result = CliRunner().invoke(cli.app, ["diagnose", str(path)])
    assert result.exit_code == 0, result.output
    assert [Path(line).name for line in result.output.splitlines()] == ["diagnosis.png", "diagnosis.json", "diagnosis.md"]
    assert (path / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((path / "diagnosis.json").read_text())
    assert (found["update"], found["seeds"], found["held_out"], found["transitions"]) == (3, [0, 1], True, 20)
    assert found["value_gap"] == {"0": {"updates": [10, 20], "values": [1.5, 2.0]}, "1": {"updates": [10], "values": [-0.5]}}
    page = (path / "diagnosis.md").read_text()
    shown = {panel.title for panel in diagnosis_page.PANELS} - set(found["absent"])
    assert ("Pathwise KL" in found["absent"]) == (algo in ("bdpo", "diffusion_bc"))  # of others it is not said
    for name in found["quantities"]:
        assert f"| `{name}` |" in page
    assert ("Weights w" in shown) == ("weight/w" in found["quantities"])
    assert ("Truncated series" in shown) == (found["series"] is not None)
    for panel, reason in found["absent"].items():
        assert f"- No {panel}: {reason}." in page


def test_what_is_asked_for_by_name_has_a_panel(datasets: Path, tmp_path: Path) -> None:
    """A quantity of the checkpoint, a tag of the events, each once; the numbers are kept beside the others."""
    path = saved_run(tmp_path / "run", "iql")
    writer = SummaryWriter(str(path))
    for update, value in ((10, 1.0), (20, 3.0)):
        writer.add_scalar("critic/gap", value, update)
    writer.close()
    found = diagnosis.diagnose(path, ["value/v", "critic/gap", "value/v"])
    quantity, tag = diagnosis_page.shown(found)[-2:]
    assert (quantity.title, tag.title) == ("value/v", "critic/gap")
    axes = Figure().subplots()
    quantity.draw(axes, found)
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100.0)  # per cent of the transitions
    assert f"mean {found.quantities['value/v'].mean():.3g}, " in axes.texts[0].get_text()
    axes = Figure().subplots()
    tag.draw(axes, found)
    assert axes.lines[0].get_xydata().tolist() == [[10.0, 1.0], [20.0, 3.0]]
    table = diagnosis.numbers(found, diagnosis_page.absent(found))
    assert table["over_time"]["critic/gap"] == {"first": 1.0, "last": 3.0}
    nothing = replace(found, quantities={**found.quantities, "value/v": np.full((2, 20), np.nan)})
    assert diagnosis_page.absent(nothing)["value/v"] == "no value of it is finite"
    with pytest.raises(
        UserError, match=r"^--also gap: this run has no such name. Quantities .*value/v.*events, among others: critic/gap\.$"
    ):
        diagnosis.diagnose(path, ["gap"])


def test_the_page_lists_what_feeds_the_panels() -> None:
    """All that an algorithm records or gives itself, for who writes one."""
    page = (ROOT / "docs" / "diagnose.md").read_text()
    tags = (
        *diagnosis.CLIPPED,
        diagnosis.EFFECTIVE[0],
        *sum(diagnosis.TERMS, ()),
        *diagnosis.VALUES,
        *diagnosis.FITS,
        *WEIGHTS,
    )
    assert [tag for tag in (*tags, KL) if f"`{tag}`" not in page] == []


def test_what_lacks_is_said_in_words(datasets: Path, tmp_path: Path) -> None:
    """A run without events, rollouts, held-out episodes and series."""
    exact = saved_run(tmp_path / "exact", "sfac", "data.heldout=0", "algo.regularizer.exact=true", seeds=(0,))
    found = diagnosis.diagnose(exact / "checkpoints" / "last.ckpt")
    assert (found.held_out, int(found.lengths.sum()), len(found.returns)) == (False, 240, 12)
    absent = diagnosis_page.absent(found)
    assert absent["Value gap"] == "no rollouts were made"
    assert absent["Shares at a clip or a bound"] == "the run folder has no TensorBoard events"
    assert absent["Truncated series"] == "algo.regularizer.exact=true: the function itself is used"
    assert "Weights w" not in absent
    draw_panels(found)
    cloned = diagnosis.diagnose(saved_run(tmp_path / "bc", "bc") / "checkpoints" / "last.ckpt")
    empty = replace(cloned, quantities={BOUNDARY_SHARE: cloned.quantities[BOUNDARY_SHARE]}, curves={}, value_gaps={})
    assert (
        len(diagnosis_page.absent(empty)) == len(diagnosis_page.PANELS) - 2
    )  # not of the KL and of V: no diffusion, no critic
    assert diagnosis_page.draw(empty).startswith(b"\x89PNG")
    absent = diagnosis_page.absent(cloned)
    assert absent["Value gap"] == "BC has no part `critic`"
    assert absent["Weights w"] == "not recorded (`weight/w` of `diagnose`; docs/diagnose.md)"
    assert absent["Ratio of policy and behaviour model"] == "not recorded (`ratio/rho` of `diagnose`; docs/diagnose.md)"


def test_quantities_are_those_of_all_transitions_in_order(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces as in one; Sf-AC's weights have mean 1 in each piece."""
    path = saved_run(tmp_path / "run", "sfac", "data.heldout=0.5") / "checkpoints" / "last.ckpt"
    whole = diagnosis.diagnose(path)
    monkeypatch.setattr(diagnosis, "PIECE", 50)
    pieces = diagnosis.diagnose(path)
    assert whole.quantities["behavior/log_prob"].shape == (2, 120)
    for name in ("actor/log_prob", "behavior/log_prob", "q/target", "value/v"):
        assert np.allclose(whole.quantities[name], pieces.quantities[name], atol=1e-6), name
    weight = pieces.quantities["weight/w"]
    assert np.allclose([weight[:, k::3].mean(-1) for k in range(3)], 1.0, atol=1e-5)
    monkeypatch.setattr(diagnosis, "MOST_TRANSITIONS", 50)
    assert diagnosis.diagnose(path).lengths.tolist() == [20, 20]  # whole episodes


@pytest.mark.parametrize("algo", ["iql", "td3_bc"])
def test_a_policy_at_its_bounds_is_seen(algo: str, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the numbers and of the page: at the checkpoint and, where evaluations recorded it, over time."""
    path = saved_run(tmp_path / "run", algo, seeds=(0,))
    monkeypatch.setattr(
        "brpo.algorithms.base.OfflineAlgorithm.act", lambda self, x: self.to_environment(torch.ones(1, 20, 1))
    )
    record(path, "none")
    diagnosed = diagnosis.diagnose(path / "checkpoints" / "last.ckpt")
    found = diagnosis.numbers(diagnosed, {})
    assert found["quantities"]["actor/boundary_share"]["mean"] == 1.0
    assert found["over_time"]["heldout/actor/boundary_share/mean"] == {"first": 1.0, "last": 1.0}
    assert diagnosis_page.subheading(diagnosed).endswith("100 % of the entries of the policy's actions there lie at a bound")
    axes = Figure().subplots()
    next(panel for panel in diagnosis_page.shown(diagnosed) if panel.title == "Shares at a clip or a bound").draw(
        axes, diagnosed
    )
    assert axes.lines[0].get_label() == "policy's action at a bound, held-out"
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [100.0, 100.0]


def test_ticks_are_few_and_short() -> None:
    """Updates are whole numbers, after two of them too; returns of many digits are counted in thousands or millions."""

    def labels(low: float, high: float, integer: bool = False) -> list[str]:
        axes = Figure().subplots()
        axes.set_xlim(low, high)
        diagnosis_panels.number_ticks(axes.xaxis, integer)
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert axes.xaxis.get_offset_text().get_text() == ""
        return axes.xaxis.get_major_formatter().format_ticks(ticks)

    assert labels(1.9, 2.1, integer=True) == ["2"]
    assert labels(0.9, 2.1, integer=True) == ["1", "2"]
    assert labels(-41_000.0, 1.0) == [
        "\N{MINUS SIGN}40k",
        "\N{MINUS SIGN}30k",
        "\N{MINUS SIGN}20k",
        "\N{MINUS SIGN}10k",
        "0",
    ]
    assert labels(0.0, 2e7) == ["0", "5M", "10M", "15M", "20M"]
    axes = Figure().subplots()
    diagnosis_panels.plot(axes, Curve(np.array([2.0]), np.array([1.0])), "black", "")
    assert axes.lines[0].get_marker() == "o"


def test_weights_far_from_one_fill_their_panel(datasets: Path, tmp_path: Path) -> None:
    """The dashed line at 1 stands only inside the range of the bins; else words say where 1 is."""
    found = diagnosis.diagnose(saved_run(tmp_path / "run", "iql", seeds=(0,)) / "checkpoints" / "last.ckpt")

    def drawn(values: np.ndarray) -> Any:
        axes = Figure().subplots()
        found.quantities["weight/w"] = values[None]
        diagnosis_panels.draw_weights("weight/w", "w")(axes, found)
        return axes

    far = drawn(np.linspace(0.0029, 0.0031, 20))
    assert far.get_xlim()[1] < 0.0032
    assert not far.lines
    assert far.texts[0].get_text().endswith("\n1 lies to the right")
    assert len(drawn(np.linspace(0.9, 1.2, 20)).lines) == 1


def test_one_episode_is_called_a_training_episode(datasets: Path, tmp_path: Path) -> None:
    found = diagnosis.diagnose(saved_run(tmp_path / "run", "iql", seeds=(0,)) / "checkpoints" / "last.ckpt")
    trained = replace(found, held_out=False)  # of one episode nothing is held out
    assert "20 transitions of 1 held-out episode\n" in diagnosis_page.subheading(found)
    assert "20 transitions of 1 training episode\n" in diagnosis_page.subheading(trained)
    assert "of 1 training episode (none are held out); " in diagnosis.markdown(diagnosis.numbers(trained, {}))
    assert "Fit of training actions over time" in diagnosis_page.absent(trained)


def test_returns_to_go_end_with_their_episodes() -> None:
    """Rewards 1, 2, 4 and 8, 16 in two episodes at discount 1/2: 4, 2 + 4/2, 1 + 4/2; 16, 8 + 16/2."""
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 100.0])  # the last is of an episode that is not asked for
    transitions: Any = SimpleNamespace(gather=lambda indices: SimpleNamespace(rewards=rewards[indices]))
    found = diagnosis.returns_to_go(transitions, np.array([3, 2]), 0.5)
    assert found.tolist() == [3.0, 4.0, 4.0, 16.0, 16.0]


def test_without_rollouts_the_value_stands_beside_the_returns_of_the_data(datasets: Path, tmp_path: Path) -> None:
    """Each Q of TD3+BC, which has no V, over the return-to-go of its own transition."""
    path = saved_run(tmp_path / "run", "td3_bc", seeds=(0,))
    found = diagnosis.diagnose(path / "checkpoints" / "last.ckpt")
    found.quantities["q/target"] = found.returns_to_go[None] + 3.0
    absent = diagnosis_page.absent(found)
    assert absent["Value gap"] == "no rollouts were made"
    (panel,) = (panel for panel in diagnosis_page.shown(found) if panel.title == "Value and return-to-go")
    axes = Figure().subplots()
    panel.draw(axes, found)
    points = axes.lines[0]
    assert (np.asarray(points.get_ydata()) - np.asarray(points.get_xdata())).tolist() == pytest.approx([3.0] * 20)
    assert "of the behaviour: no rollouts" in axes.get_xlabel()
    table = diagnosis.numbers(found, absent)
    mean = found.returns_to_go.mean()
    assert table["value"] == {
        "quantity": "q/target",
        "mean": pytest.approx(mean + 3.0),
        "mean_return_to_go": pytest.approx(mean),
    }
    assert f"return-to-go {diagnosis.number(float(mean))} (scaled rewards;" in diagnosis.markdown(table)
    (path / "metrics.csv").write_text("update,seed,value_gap\n10,0,1.5\n")
    rolled_out = diagnosis.diagnose(path / "checkpoints" / "last.ckpt")
    assert panel not in diagnosis_page.shown(rolled_out)
    assert panel.title not in diagnosis_page.absent(rolled_out)


def test_numbers_by_hand() -> None:
    row = diagnosis.describe("weight/w", np.array([[0.0, 1.0, 3.0, 4.0]]))
    assert (row["mean"], row["q50"], row["max"], row["zero_share"]) == (2.0, 2.0, 4.0, 0.25)
    assert row["effective_share"] == [pytest.approx(8**2 / (4 * 26))]
    assert diagnosis.describe("q/target", np.array([[1.0, math.inf]])) == {
        "finite_share": 0.5, "mean": 1.0, "q05": 1.0, "q25": 1.0, "q50": 1.0, "q75": 1.0, "q95": 1.0,
    }  # fmt: skip
    assert diagnosis.describe("weight/w", np.array([[math.nan]])) == {"finite_share": 0.0}
    curve = Curve(np.arange(5.0), np.array([1.0, 3.0, 5.0, 7.0, 10.0])).binned(3)
    assert (curve.updates.tolist(), curve.values.tolist()) == ([0.5, 2.5, 4.0], [2.0, 6.0, 10.0])


def test_the_ratio_of_the_series_and_its_clipped_share(datasets: Path, tmp_path: Path) -> None:
    found = diagnosis.diagnose(saved_run(tmp_path / "run", "sfac", seeds=(0,)) / "checkpoints" / "last.ckpt")
    assert found.series is not None
    found.quantities["ratio/t"] = np.array([[1.0, 0.5, 2.0, 1.25]])
    described = diagnosis.describe_series(found)
    assert described is not None
    assert described["clipped_share"] == 0.25  # the third leaves [0.5, 1.5]
    assert (described["order"], described["remainder"]) == (4, found.series.remainder)
    found.quantities["series/epsilon"] = np.array([[0.5, 0.4, 0.5, 0.1]])  # narrowed: the second and fourth leave theirs
    assert (described := diagnosis.describe_series(found)) is not None
    assert described["clipped_share"] == 0.75
    found.quantities["ratio/t"] = np.array(
        [[0.0, 1.0, 1e-9, 2.0]]
    )  # what weights of 0 make: below any range, as in training
    found.quantities["series/epsilon"] = np.array([[2.0, 2.0, 1.0, 1.0]])
    assert found.outside_share == 0.5


def test_what_cannot_be_diagnosed_is_one_line(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(path: Path) -> str:
        assert exit_code_of(lambda: cli.app(["diagnose", str(path)], standalone_mode=False)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    path = saved_run(tmp_path / "run", "bc")
    (tmp_path / "empty").mkdir()
    assert says(tmp_path / "empty").endswith("has no whole checkpoint. A run folder has checkpoints/last.ckpt.")
    stray = tmp_path / "a" / "b" / "last.ckpt"
    stray.parent.mkdir(parents=True)
    shutil.copy(path / "checkpoints" / "last.ckpt", stray)
    assert "is not inside a run folder" in says(stray)
    (path / "metrics.csv").write_text("update,seed\n1,0\n")
    assert diagnosis.read_value_gaps(RunFolder(path)) == {}  # as of a toy task
    rows = "update,seed,mode,episodes,value_gap\n1,0,sampled,3,-5\n2,0,mean,3,30\n3,0,mean,3,31\n"
    (path / "metrics.csv").write_text(rows)
    assert diagnosis.read_value_gaps(RunFolder(path))[0].values.tolist() == [30, 31]  # as the last one was evaluated
    (path / "metrics.csv").write_text("update,seed,value_gap\n1,0,x\n")
    assert "metrics.csv is not a table of ours: ValueError" in says(path)
    other = tmp_path / "data"
    write_dataset(other, DATASET, [random_episode(np.random.default_rng(5), 20) for _ in range(12)])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(other))
    assert f"The data set {DATASET} has changed since" in says(path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "none"))
    assert f"dataset={DATASET} is not on this machine and could not be downloaded" in says(path)


def test_other_bounds_of_actions_are_refused(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no part of the digest, and the same rows mean other actions under them."""
    path = saved_run(tmp_path / "run", "bc", seeds=(0,)) / "checkpoints" / "last.ckpt"

    def widened(config: dict[str, Any]) -> Any:
        datamodule = make_datamodule(config)
        datamodule._spec = replace(datamodule.spec, action_low=(-3.0,))
        return datamodule

    monkeypatch.setattr("brpo.training.make_datamodule", widened)
    with pytest.raises(
        UserError, match=r"bounds .* \(action_low \[-3\.0\], then .*\)\. Restore them to diagnose this run\."
    ):
        diagnosis.diagnose(path)


def test_a_missing_checkpoint_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.ckpt does not exist\. Give a run folder, .* or a checkpoint in one\."):
        diagnosis.diagnose(saved_runs.checkpoint_of(tmp_path / "none.ckpt", "last"))
    with pytest.raises(UserError, match=r"has no checkpoints/best\.ckpt: no evaluation has been made\. .*--checkpoint last"):
        saved_runs.checkpoint_of(tmp_path, "best")


def test_effective_shares_are_logged_of_weights_alone(tmp_path: Path) -> None:
    """Seed 0: all equal, so 1; seed 1: one of two has all the weight, so 1/2."""
    trainer: Any = FakeTrainer()
    values = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    quantities = {"weight/w": values, "ratio/rho": torch.full((1, 2), math.inf), "q/target": values}
    Recorder(RunFolder(tmp_path)).add_distributions(trainer, quantities, 5)
    shares = {name: value for name, value in trainer.log.scalars.items() if name.endswith("effective_share")}
    assert shares == {"heldout/weight/w/effective_share": pytest.approx(0.75)}


def test_boundary_share_of_the_policy() -> None:
    """Actions 0.995 and 0 of [-1, 1], in environment units [0, 4], at observations that are undone from their units."""
    batch = random_batch(size=2)
    seen = []

    def act(observations: torch.Tensor) -> torch.Tensor:
        seen.append(observations)
        return torch.tensor([[[3.99, 2.0], [2.0, 2.0]]])

    policy: Any = SimpleNamespace(
        observation_std=2.0, observation_mean=1.0, act=act, from_environment=lambda actions: actions / 2 - 1
    )
    assert boundary_share(policy, batch).tolist() == [[0.5, 0.0]]
    assert torch.equal(seen[0], 2.0 * batch.observations + 1.0)
