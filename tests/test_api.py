"""Training from Python, and the mistakes that are made there."""

import csv
import shutil
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import brpo
from brpo import api, diagnosis, estimates, export, saved_runs
from brpo.errors import UserError
from brpo.evaluation import environments
from brpo.reports.report import report

TINY = ("dataset=tests/pendulum/tiny-v0", "trainer=smoke")


def test_train_resume_and_take_up_the_run(datasets: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = api.train("algo=bc", "seeds=[4,7]", f"run_dir={run}", *TINY)
    assert first["run_dir"] == str(run)
    assert len(first["final"]["score"]) == 2
    again = api.train(f"resume={run}")
    assert again == first  # finished: the same file
    for damaged in ('{"updates": 2', "[]"):
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copytree(run, tmp_path / "copy", dirs_exist_ok=True)
        (tmp_path / "copy" / "result.json").write_text(damaged)
        with pytest.raises(UserError, match="result.json is not a result file of ours"):
            api.train(f"resume={tmp_path / 'copy'}")
    assert saved_runs.load_algorithm(str(run))[0].seeds.tolist() == [4, 7]
    evaluated = saved_runs.evaluate_checkpoint(str(run), episodes=1, mode="sampled")
    assert [row.seed for row in evaluated["rows"]] == [4, 7]
    starts = [saved_runs.evaluate_checkpoint(run, mode="mean", first_seed=first)["rows"] for first in (None, 10_000, 20_000)]
    assert starts[0] == starts[1] != starts[2]
    assert len(estimates.estimate(str(run), updates=2).points[-1]) == 2
    assert export.export(str(run), str(tmp_path / "policy.pt2"), seed=7).provenance["seed"] == 7
    assert diagnosis.diagnose(str(run)).seeds == [4, 7]
    assert "tests/pendulum/tiny-v0" in report([str(run)]).markdown()
    with pytest.raises(UserError, match="checkpoint=final is not allowed; it must be last or best"):
        saved_runs.checkpoint_of(run, "final")
    with pytest.raises(UserError, match="mode=deterministic is not allowed; it must be mean or sampled"):
        saved_runs.evaluate_checkpoint(run, mode="deterministic")
    with pytest.raises(UserError, match="episodes=0 is not allowed"):
        saved_runs.evaluate_checkpoint(run, episodes=0)


@pytest.mark.parametrize(
    ("with_scores", "scored", "rows"),
    [
        ((True, True), [2, 4, 6], [("2", "1"), ("4", "2"), ("6", "2")]),
        ((True, False), [2, 4], [("2", "1"), ("4", "1")]),
        ((False, False), [], []),
        ((False, True), [6], [("6", "2")]),
    ],
)
def test_an_evaluation_of_another_kind_takes_the_place_of_the_last_one(
    with_scores: tuple[bool, bool],
    scored: list[int],
    rows: list[tuple[str, str]],
    datasets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In TensorBoard as in metrics.csv; where there is no environment, nothing is lost and nothing doubled."""
    run, make = tmp_path / "run", environments.maker

    def maker(*arguments: Any, **options: Any) -> Any:
        if not here:
            raise environments.EnvironmentUnavailable("none here")
        return make(*arguments, **options)

    monkeypatch.setattr(environments, "maker", maker)
    here, then = with_scores
    api.train("algo=bc", *TINY, "max_updates=4", "eval.every=2", "engine.chunk=2", "eval.episodes=1", f"run_dir={run}")
    here = then
    api.train(f"resume={run}", "max_updates=6", "eval.episodes=2")
    events = EventAccumulator(str(run))
    events.Reload()
    tags = {"heldout/actor/log_prob/mean": [2, 4, 6], **({"evaluation/score": scored} if scored else {})}
    assert {tag: sorted(event.step for event in events.Scalars(tag)) for tag in tags} == tags
    table = (run / "metrics.csv").read_text().splitlines() if rows else []
    assert [(row["update"], row["episodes"]) for row in csv.DictReader(table)] == rows


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algo=bcc", "Could not find 'algo/bcc'"),
        ("max_updates=2.5", "max_updates=2.5 is not allowed"),
        ("+sweep=divergence", "is not for one run"),
        ("-m", "is not for one run"),
        ("hydra.verbose=true", "is not for one run"),
        ("resume=none/such", "none/such"),
        (
            "+callbacks.mine._target_=collections.OrderedDict",
            "callbacks.mine is of OrderedDict; it must be of a class on Lightning's Callback",
        ),
        (
            "+loggers.mine._target_=collections.OrderedDict",
            "loggers.mine is of OrderedDict; it must be of a class on Lightning's Logger",
        ),
    ],
)
def test_refusals_are_errors_of_the_user(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        api.train("trainer=smoke", override)


def test_a_backend_is_refused_before_there_is_a_folder(datasets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for backend, says in (("foo", "engine.backend=foo is unknown"), (5, "engine.backend=5 is not allowed")):
        with pytest.raises(UserError, match=says):
            api.train("algo=bc", "engine=compile", f"engine.backend={backend}", f"run_dir={folder}", *TINY)
    assert not (folder / "config.yaml").exists()


def test_a_run_may_be_made_in_a_thread(datasets: Path, tmp_path: Path) -> None:
    """Where Python lets nobody handle signals."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(api.train("algo=bc", f"run_dir={tmp_path / 'run'}", *TINY))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert isinstance(found[0], dict), found[0]


def test_the_package_knows_its_version() -> None:
    assert brpo.__version__ == metadata.version("brpo")
    with pytest.raises(AttributeError, match="module 'brpo' has no attribute 'nothing'"):
        _ = brpo.nothing
