import csv
import errno
import gzip
import itertools
import json
import os
import signal
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from brpo import launch, saved_runs
from brpo.callbacks.checkpoints import Checkpoints
from brpo.callbacks.evaluate import Evaluate
from brpo.callbacks.profile import Profile
from brpo.callbacks.progress import UpdateProgress
from brpo.callbacks.recorder import Recorder
from brpo.callbacks.signals import Signals
from brpo.engine.checkpoint_io import encode
from brpo.engine.ranks import Ranks
from brpo.errors import Interrupted, UserError
from brpo.evaluation.evaluate import RolloutEvaluator, RolloutSummary
from brpo.evaluation.kinds import kind_of
from brpo.evaluation.rollout import Rollouts
from brpo.runs import RunFolder
from tests.evaluation.test_evaluation import Countdown
from tests.helpers import compose_config, make_algorithm, make_spec, random_batch, shrink


def test_first_signal_is_noted_and_the_second_is_not_ours() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


def test_signals_take_their_place_again_when_a_training_starts() -> None:
    """Lightning has put a handler around ours by then."""
    with Signals() as signals:
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signals.on_train_start(cast(Any, None), None)
        assert signal.getsignal(signal.SIGTERM) == ours


def test_ignored_signals_stay_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_is_not_pythons_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python knows it as None, which it does not take back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "getsignal", lambda number: None)
            signals = Signals().__enter__()
        signals.__exit__()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Log:
    """Collects what a SummaryWriter is given."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}
        self.steps: dict[str, list[int]] = defaultdict(list)
        self.histograms: dict[str, np.ndarray] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name] = value
        self.steps[name].append(step)

    def _get_file_writer(self) -> "Log":
        return self

    def add_summary(self, event: Any, step: int) -> None:
        for value in event.value:
            self.add_scalar(value.tag, value.simple_value, step)

    def add_histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self.histograms[name] = values


class FakeTrainer:
    should_stop = False

    def __init__(self) -> None:
        self.log = Log()
        self.logger = type("Logger", (), {"experiment": self.log})()
        self.loggers = [self.logger]


def test_distributions_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    trainer: Any = FakeTrainer()
    values = torch.tensor([[0.0, 1.0, 2.0, 3.0, float("inf")], [4.0, 5.0, 6.0, 7.0, float("nan")]])
    Recorder(RunFolder(tmp_path)).add_distributions(trainer, {"w": values, "none": torch.full((1, 2), float("nan"))}, 5)
    assert trainer.log.scalars["heldout/w/finite_share"] == pytest.approx(0.8)
    assert trainer.log.scalars["heldout/w/mean"] == pytest.approx(3.5)
    assert trainer.log.scalars["heldout/w/q50"] == pytest.approx(3.5)
    assert sorted(trainer.log.histograms["heldout/w"].tolist()) == list(range(8))
    assert trainer.log.scalars["heldout/none/finite_share"] == 0
    assert "heldout/none" not in trainer.log.histograms


def row(update: int, seed: int, value: float, mode: str = "mean", episodes: int = 10) -> dict[str, Any]:
    return {"update": update, "seed": seed, "mode": mode, "episodes": episodes, "return_mean": value, "score": None}


def test_best_is_the_largest_mean_over_seeds_of_the_present_mode(tmp_path: Path) -> None:
    recorder = Recorder(RunFolder(tmp_path), mode="mean", episodes=10)
    assert recorder.best_update is None
    recorder.rows = [row(5, 0, 1.0), row(5, 1, 3.0), row(10, 0, 9.0), row(10, 1, -6.0), row(15, 0, 2.0), row(15, 1, 2.0)]
    assert recorder.best_update == 5  # means 2, 1.5 and 2; the first of equal ones
    recorder.rows += [row(20, 0, 99.0, mode="sampled"), row(25, 0, 99.0, episodes=1)]
    assert recorder.best_update == 5
    assert len(recorder.comparable) == 6
    assert [recorder.misses(update) for update in (5, 20, 25, 30)] == [False, True, True, False]
    recorder.rows = [row(5, 0, float("nan")), row(10, 0, -3.0), row(15, 0, -4.0)]
    assert recorder.best_update == 10  # NaN is no best


@pytest.mark.parametrize(("begun", "noted"), [([], False), ([{}], False), ([{"code": "a"}], True), ([{"code": "b"}], False)])
def test_other_code_than_the_run_began_with_is_named(
    begun: list[dict[str, str]], noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(RunFolder(tmp_path), mode="mean", episodes=10)
    recorder.parts, recorder.part = [*begun], {"code": "b"}
    recorder.on_fit_start(cast(Any, FakeTrainer()), SimpleNamespace(update_count=5))
    assert ("the method's code has changed" in capsys.readouterr().out) == noted
    assert recorder.parts == [*begun, {"update": 5, "code": "b"}]


def test_a_run_from_before_a_column_goes_on_with_it(tmp_path: Path) -> None:
    recorder = Recorder(RunFolder(tmp_path), mode="mean", episodes=10)
    recorder.rows = [row(5, 0, 1.0)]
    summary = RolloutSummary(0, 10, 2.0, None, 0.0, 2.0, 2.0, return_discounted=1.5, length=3.0, value_gap=None)
    recorder.add_evaluation(cast(Any, FakeTrainer()), [summary])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["return_mean"], first["return_discounted"]) == ("1.0", "")
    assert (second["return_mean"], second["return_discounted"]) == ("2.0", "1.5")


def test_a_best_checkpoint_of_another_judgement_is_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that goes on with other episodes, or went back, knows another best one, or none yet."""
    recorder = Recorder(RunFolder(tmp_path), episodes=5)
    recorder.rows = [row(10, 0, 1.0, episodes=5), row(20, 0, 2.0, episodes=10)]
    path = tmp_path / "best.ckpt"
    for update, stays in ((20, False), (10, True)):
        path.write_bytes(encode({"state_dict": {}, "brpo": {"updates": update}}))
        Checkpoints(tmp_path, recorder, Signals()).on_train_start(cast(Any, FakeTrainer()), make_algorithm("bc"))
        assert path.exists() == stays
        assert ("best.ckpt was deleted: update 20 is not the best" in capsys.readouterr().out) != stays
    path.write_bytes(b"torn")
    Checkpoints(tmp_path, recorder, Signals()).on_train_start(cast(Any, FakeTrainer()), make_algorithm("bc"))
    assert not path.exists()  # nothing goes on from it
    assert "best.ckpt is torn" in capsys.readouterr().out


def test_an_interrupted_make_up_evaluation_is_not_trained_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is saved as `last`, so the evaluation stays the first thing to do."""

    algorithm = make_algorithm("bc")
    algorithm.update_count = 10
    recorder, signals = Recorder(RunFolder(tmp_path)), Signals()
    checkpoints = Checkpoints(tmp_path, recorder, signals)
    saved: list[str] = []
    content = encode({"state_dict": {}, "brpo": {"updates": 10}})
    trainer: Any = SimpleNamespace(save_checkpoint=lambda path: (saved.append(path.name), path.write_bytes(content)))
    signals.received = signal.SIGINT
    with pytest.raises(Interrupted, match="SIGINT before the first chunk of updates; there is nothing to save"):
        checkpoints.on_train_start(trainer, algorithm)
    (tmp_path / "last.ckpt").touch()  # what the run was resumed from
    with pytest.raises(Interrupted, match="SIGINT at update 10; saved .*last.ckpt"):
        checkpoints.on_train_start(trainer, algorithm)
    assert saved == []
    signals.received = None
    recorder.rows = [row(10, 0, 1.0, episodes=1)]
    (tmp_path / "best.ckpt").write_bytes(encode({"state_dict": {}, "brpo": {"updates": 5}}))
    checkpoints.on_train_start(trainer, algorithm)
    assert saved == ["best.ckpt"]  # the evaluation that was made up for is the best so far
    assert "was deleted" not in capsys.readouterr().out  # it is replaced


def test_a_signal_while_the_ranks_confer_stops_after_the_next_chunk(tmp_path: Path) -> None:
    """Stopping at once would leave the run without the checkpoint that the message promises."""

    class Conferring(Ranks):
        def any(self, flag: bool) -> bool:
            signals.received = signal.SIGTERM
            return flag

    algorithm, signals, saved = make_algorithm("bc"), Signals(), []
    checkpoints = Checkpoints(tmp_path, Recorder(RunFolder(tmp_path)), signals, Conferring(0, 1, "seeds"))
    trainer: Any = FakeTrainer()
    trainer.log.flush = lambda: None
    trainer.save_checkpoint = lambda path: (saved.append(path.name), path.touch())
    checkpoints.on_train_batch_end(trainer, algorithm, None, None, 0)
    assert saved == []
    with pytest.raises(Interrupted, match="SIGTERM at update 0; saved"):
        checkpoints.on_train_batch_end(trainer, algorithm, None, None, 1)
    assert saved == ["last.ckpt"]


def test_what_is_saved_when_and_in_which_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between evaluations each minute; at one the best first, and events before what says that they are there."""
    now, done = [0.0], []
    monkeypatch.setattr("brpo.callbacks.checkpoints.time", SimpleNamespace(monotonic=lambda: now[0]))
    algorithm, recorder, signals = make_algorithm("bc"), Recorder(RunFolder(tmp_path)), Signals()
    trainer: Any = FakeTrainer()
    trainer.log.flush = lambda: done.append("events")
    trainer.loggers.append(SimpleNamespace(save=lambda: done.append("logger")))
    trainer.save_checkpoint = lambda path: (done.append(path.name), path.touch())
    checkpoints = Checkpoints(tmp_path, recorder, signals, every_seconds=60.0)
    for now[0], saved in ((59.0, False), (60.0, True), (119.0, False), (120.0, True)):
        done.clear()
        checkpoints.on_train_batch_end(trainer, algorithm, None, None, 0)
        assert done == (["events", "logger", "last.ckpt"] if saved else [])
    algorithm.update_count, recorder.rows = 10, [row(10, 0, 1.0, episodes=1)]
    done.clear()
    signals.received = signal.SIGTERM
    with pytest.raises(Interrupted, match="SIGTERM at update 10; saved"):
        checkpoints.on_train_epoch_end(trainer, algorithm)
    assert done == ["best.ckpt", "events", "logger", "last.ckpt"]


def test_numbers_of_a_run_and_its_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over the updates of a chunk and over the seeds; the pre-training's time is no part of the speed."""
    now = 100.0
    clocks = SimpleNamespace(
        monotonic=lambda: now, process_time=lambda: 1000.0 + now / 2
    )  # of which much was before the run
    monkeypatch.setattr("brpo.callbacks.recorder.time", clocks)
    trainer: Any = FakeTrainer()
    algorithm = make_algorithm("bc", seeds=(0, 1))
    algorithm.pretrain_updates = 20
    recorder = Recorder(RunFolder(tmp_path), constants={"data/share": 0.5})
    recorder.on_fit_start(trainer, algorithm)
    recorder.on_train_start(trainer, algorithm)
    for start, stop, seconds in ((-20, -10, 5.0), (0, 10, 2.0)):
        recorder.on_train_batch_start(trainer, algorithm, (start, stop), 0)
        now += seconds
        algorithm.history = [(start + k, {"q": torch.tensor([1.0, 3.0]) + 4 * k}) for k in range(2)]
        recorder.on_train_batch_end(trainer, algorithm, None, (start, stop), 0)
    numbers = {
        "return_std": 0.0,
        "return_worst": 0.0,
        "return_cvar": 0.0,
        "return_discounted": 0.0,
        "length": 1.0,
        "value_gap": None,
    }
    recorder.add_evaluation(trainer, [RolloutSummary(k, 10, 3.0 + k, None, **numbers) for k in (0, 1)])
    scalars, steps = trainer.log.scalars, trainer.log.steps
    assert (scalars["pretrain/q"], steps["pretrain/q"], scalars["pretrain/speed/updates_per_second"]) == (4.0, [10], 2.0)
    assert (scalars["q"], steps["q"], scalars["speed/updates_per_second"]) == (4.0, [10], 5.0)
    assert (scalars["evaluation/return_mean"], scalars["evaluation_by_seed/return_mean/1"]) == (3.5, 4.0)
    assert not {"evaluation/score", "evaluation/value_gap"} & set(scalars)
    assert [(row["updates_per_second"], row["wall_seconds"]) for row in recorder.rows] == [(5.0, 7.0)] * 2
    assert steps["data/share"] == [0]

    state, now = recorder.state_dict(), 200.0
    resumed = Recorder(RunFolder(tmp_path), constants={"data/share": 0.5})
    resumed.load_state_dict(state)
    now += 3.0
    resumed.on_fit_start(trainer, algorithm)
    resumed.on_train_start(trainer, algorithm)
    assert (resumed.train_seconds, resumed.wall_seconds(), resumed.cpu_seconds()) == (2.0, 10.0, 5.0)
    assert (resumed.rows, len(resumed.parts), steps["data/share"]) == (recorder.rows, 2, [0])


def make_evaluate(recorder: Recorder, signals: Signals) -> Evaluate:
    evaluator = RolloutEvaluator(Rollouts(Countdown, 2, 2, seed=3), "mean")
    batch = random_batch(seeds=2, spec=SPEC, dtype=torch.float32)
    return Evaluate(evaluator, recorder, signals, seeds=[0, 1], every=10, batch=batch)


SPEC = make_spec(observation=1, action=1)


def test_evaluation_is_made_once_for_each_update_and_given_up_on_a_signal(tmp_path: Path) -> None:
    trainer: Any = FakeTrainer()
    algorithm = make_algorithm("bc", spec=SPEC, seeds=(0, 1), dtype=torch.float32)
    recorder, signals = Recorder(RunFolder(tmp_path)), Signals()
    callback = make_evaluate(recorder, signals)
    algorithm.update_count = 10
    signals.received = signal.SIGINT
    callback.on_train_epoch_end(trainer, algorithm)
    assert (recorder.rows, callback.state_dict()) == ([], {"evaluated": 0})
    signals.received = None
    callback.on_train_start(trainer, algorithm)  # what a resumed run does first
    assert [(row["update"], row["seed"], row["return_mean"]) for row in recorder.rows] == [(10, 0, 3.5), (10, 1, 3.5)]
    assert callback.state_dict() == {"evaluated": 10}
    callback.on_train_epoch_end(trainer, algorithm)
    assert len(recorder.rows) == 2
    recorder.episodes = 2  # a resumed run may judge in another way: what it has evaluated last gets a row of that kind
    callback.on_train_start(trainer, algorithm)
    assert [row["episodes"] for row in recorder.rows] == [2, 2]
    algorithm.update_count = 15  # stopped between two evaluations
    callback.on_train_start(trainer, algorithm)
    assert [row["update"] for row in recorder.rows] == [10, 10]
    callback.teardown(trainer, algorithm, "fit")


def test_the_pretraining_is_looked_at_once_for_each_interval(tmp_path: Path) -> None:
    """Also where a killed run had saved its update and not come to it; no rollout before the training."""
    trainer: Any = FakeTrainer()
    algorithm = make_algorithm("sfac", "algo.pretrain_updates=20", spec=SPEC, seeds=(0, 1), dtype=torch.float32)
    algorithm.begin_pretraining()
    recorder = Recorder(RunFolder(tmp_path))
    callback = make_evaluate(recorder, Signals())
    callback.on_train_start(trainer, algorithm)
    assert (trainer.log.scalars, callback.state_dict()) == ({}, {"evaluated": -20})
    for update in (-10, 0):
        algorithm.update_count = update
        resumed = make_evaluate(recorder, Signals())
        resumed.load_state_dict(callback.state_dict())
        resumed.on_train_start(trainer, algorithm)
        callback.on_train_epoch_end(trainer, algorithm)
        assert resumed.state_dict() == callback.state_dict() == {"evaluated": update}
    resumed.on_train_start(trainer, algorithm)
    assert {tag.rpartition("/")[0] for tag in trainer.log.scalars} == {"pretrain/heldout/behavior/log_prob"}
    assert trainer.log.steps["pretrain/heldout/behavior/log_prob/mean"] == [10, 10, 20, 20]
    assert recorder.rows == []


def test_value_gap_by_hand() -> None:
    """Q is 9 and half the action, whose mode is 2; three and four rewards of 2 * 1 + 1 at discount 0.5: 5.25 and 5.625.

    The episode of three steps is cut off: an eighth of Q there is what would have followed.
    """

    class Policy:
        spec = make_spec(observation=1, action=1, reward_scale=2.0, reward_shift=1.0, reference_min=0.0, reference_max=7.0)
        discount, device = 0.5, "cpu"

        def act(self, observations: torch.Tensor, deterministic: bool, step: int) -> torch.Tensor:
            return torch.full((1, 2, 1), 2.0 if deterministic else 0.0)

        def from_environment(self, actions: torch.Tensor) -> torch.Tensor:
            return actions / 2

        def value_estimate(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            assert observations.squeeze(-1).tolist() in ([[0, 0]], [[3, 4]])  # the first ones, the last ones
            return 9.0 + actions.squeeze(-1) + 4 * observations.squeeze(-1)

    rollouts = Rollouts(Countdown, 1, 2, seed=3)
    for mode, value, following in (("mean", 10.0, 22 / 8), ("sampled", 9.0, 21 / 8)):
        (summary,) = RolloutEvaluator(rollouts, mode).evaluate(Policy(), [7], 10)
        assert summary.value_gap == pytest.approx(value - (5.25 + following + 5.625) / 2)
        assert summary.return_discounted == pytest.approx((1.75 + 1.875) / 2)
        assert (summary.seed, summary.return_mean, summary.return_worst, summary.return_cvar) == (7, 3.5, 3.0, 3.0)
        assert (summary.score, summary.return_std, summary.length) == (50.0, 0.5, 3.5)
    rollouts.close()


def saved(tmp_path: Path, **changes: Any) -> Path:
    """A checkpoint of an untrained BC on Countdown's sizes."""
    config = compose_config("algo=bc")
    shrink(config["algo"])
    algorithm = make_algorithm("bc", spec=SPEC, dtype=torch.float32)
    content = {"config": {**config, **changes}, "spec": SPEC.to_dict(), "updates": 3}
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(encode({"state_dict": algorithm.state_dict(), "brpo": content}))
    return path


def test_films_are_written_frame_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import imageio.v2 as imageio

    class Pictures(Countdown):
        metadata: Any = {"render_fps": 10}  # noqa: RUF012

        def render(self) -> Any:
            return np.full((32, 48, 3), 8 * self.step_number, np.uint8)

    monkeypatch.setattr(saved_runs.environments, "maker", lambda specification, render: Pictures)
    (file,) = saved_runs.film(saved(tmp_path), mode="mean", max_frames=5)
    assert file == tmp_path / "run" / "videos" / "last-mean-seed0.mp4"
    reader: Any = imageio.get_reader(file)
    assert reader.count_frames() == 5
    assert reader.get_meta_data()["fps"] == 10


def test_an_environment_that_cannot_be_rendered_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Blind(Countdown):
        def render(self) -> Any:
            raise RuntimeError("no display")

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(saved_runs.environments, "maker", lambda specification, render: Blind)
    with pytest.raises(UserError, match="cannot be rendered here .*no display.*MUJOCO_GL=egl"):
        list(saved_runs.film(saved(tmp_path), mode="mean", max_frames=5))
    assert len(closed) == 1
    assert list((tmp_path / "run" / "videos").iterdir()) == []


def test_a_checkpoint_that_names_foreign_code_is_not_built(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    algo = {"_target_": "os.mkdir", "path": str(marker)}
    with pytest.raises(UserError, match=r"names 'os\.mkdir'; only classes of brpo and torch\.optim"):
        saved_runs.load_algorithm(saved(tmp_path, algo=algo))
    assert not marker.exists()


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    algorithm = make_algorithm("sfac")
    algorithm.max_updates, algorithm.pretrain_updates = 10, 5
    words = {-3: "pre-training update 2 of 5: the policy has not been trained yet", 4: "update 4 of 10: not finished"}
    for update, expected in {**words, 10: "update 10"}.items():
        algorithm.update_count = update
        assert saved_runs.moment(algorithm, tmp_path / "last.ckpt") == expected
    (tmp_path / "result.json").touch()
    algorithm.update_count = 4
    assert saved_runs.moment(algorithm, tmp_path / "best.ckpt") == "update 4 of 10"


def test_a_checkpoint_of_other_sizes_is_one_line(tmp_path: Path) -> None:
    config = compose_config("algo=bc")
    with pytest.raises(UserError, match="does not fit this version of brpo"):
        saved_runs.load_algorithm(saved(tmp_path, algo=config["algo"]))


def test_lines_of_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The end of the pre-training is shown; of the chunk before an evaluation only the line with its score."""
    recorder: Any = SimpleNamespace(chunk_rate=10.0, last_score=lambda: "score 3.0")
    progress = UpdateProgress(recorder, max_updates=20, every_seconds=0.0)
    module: Any = SimpleNamespace(update_count=0, pretrain_updates=5, pretrained=("behavior",))
    trainer: Any = SimpleNamespace(is_last_batch=True)
    progress.on_train_batch_end(trainer, module, None, (-5, 0), 0)
    progress.on_train_epoch_end(trainer, module)
    for module.update_count, trainer.is_last_batch in ((10, False), (20, True)):
        progress.on_train_batch_end(trainer, module, None, (module.update_count - 10, module.update_count), 0)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["behavior 5/5", "update 10/20"]
    progress.on_train_epoch_end(trainer, module)
    assert capsys.readouterr().out == "update 20/20  10/s  score 3.0  0 s left\n"


def test_progress_without_an_environment_shows_the_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the newest held-out batch, once there is one; it never says that a score is to come."""
    recorder = Recorder(RunFolder(tmp_path))
    recorder.chunk_rate = 10.0
    progress = UpdateProgress(recorder, max_updates=20, every_seconds=0.0, scored=False)
    module: Any = SimpleNamespace(update_count=10, pretrain_updates=0, pretrained=())
    trainer: Any = SimpleNamespace(is_last_batch=False)
    progress.on_train_batch_end(trainer, module, None, (0, 10), 0)
    assert capsys.readouterr().out == "update 10/20  10/s  1 s left\n"
    log: Any = FakeTrainer()
    recorder.add_distributions(log, {"q/target": torch.ones(1, 2), "actor/log_prob": torch.tensor([[1.0, 2.0]])}, 10)
    progress.on_train_epoch_end(trainer, module)
    assert capsys.readouterr().out == "update 10/20  10/s  heldout/actor/log_prob 1.500  1 s left\n"


@pytest.mark.parametrize("saved_before", [False, True])
def test_a_checkpoint_that_cannot_be_written_says_what_is_there(saved_before: bool, tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    checkpoints = Checkpoints(folder, Recorder(RunFolder(tmp_path)), Signals())
    if saved_before:
        checkpoints.last.touch()
    trainer: Any = SimpleNamespace(save_checkpoint=full)
    with pytest.raises(UserError) as raised:
        checkpoints._write(trainer, folder / "best.ckpt")
    said = str(raised.value)
    assert said.startswith(f"The checkpoint {folder / 'best.ckpt'} cannot be written (No space left on device); ")
    assert (f"{folder / 'last.ckpt'} of before is intact" in said) == saved_before
    assert ("no checkpoint had been written yet" in said) != saved_before
    assert f"resume={tmp_path}" in said
    assert ("resume=COPY" in said) == saved_before


def test_profile_traces_a_chunk_that_is_as_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One trace that Perfetto and TensorBoard read, and a table: of the second chunk, the third under a CUDA graph.

    Of those that train all parts; of the last one where there are too few.
    """
    trainer: Any = SimpleNamespace(is_global_zero=True)
    for name, updates, after, warms_up, traced in (
        ("three", 30, 0, 1, "updates 10 to 20"),
        ("graph", 40, 0, 2, "updates 20 to 30"),
        ("late", 60, 20, 1, "updates 30 to 40"),
        ("too late", 30, 20, 1, "updates 20 to 30"),
        ("cut", 40, 0, 2, "updates 30 to 40"),  # 10 to 15 and 15 to 20, round an evaluation, are no whole chunks
        ("one", 10, 0, 1, "updates 0 to 10"),
    ):
        module: Any = SimpleNamespace(
            device=torch.device("cpu"), max_updates=updates, asked=set(), runner=SimpleNamespace(warms_up=warms_up)
        )
        profile = Profile(tmp_path / name)
        ends = [*range(0, updates + 1, 10), 15] if name == "cut" else range(0, updates + 1, 10)
        for start, stop in itertools.pairwise(sorted(ends)):
            profile.on_train_batch_start(trainer, module, (start, stop), 0)
            torch.ones(3).add(start)
            module.asked = {(1, 0), (5, after)}  # known once an update was made
            profile.on_train_batch_end(trainer, module, None, (start, stop), 0)
        assert (tmp_path / name / "summary.txt").read_text().startswith(traced)
        (trace,) = (tmp_path / name).glob("*.pt.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        assert sum(event.get("name") == "aten::add" for event in events) == 1
    assert f"profile of the {traced}" in capsys.readouterr().out


@pytest.mark.parametrize("score", [None, [3.0]])
def test_a_run_without_scores_ends_with_where_to_look(score: list[float] | None, capsys: pytest.CaptureFixture[str]) -> None:
    none = dict.fromkeys(kind_of("lab/heat-v0").reported)
    result = {"final": {**none, "score": score}, "best": {**none, "update": None}, "dataset": {"id": "lab/heat-v0"}}
    launch.report({**result, "updates_per_second": 5.0, "wall_seconds": 2.0, "run_dir": "run"})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "5 updates/s, 2 s; run/result.json"
        if score
        else "no scores; what was learned: brpo diagnose run; what it may be worth: brpo estimate run"
    )
