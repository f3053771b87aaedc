import csv
import errno
import json
import os
import pwd
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard.writer import SummaryWriter

from brpo import files, results, resume, runs, training
from brpo.callbacks.recorder import Recorder
from brpo.datasets.catalog import data_roots
from brpo.engine.checkpoint_io import encode
from brpo.errors import UserError
from brpo.files import write_json
from tests.helpers import ROOT, compose_config, make_spec


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(config: dict, name: str | None = None, updates: int | None = 10) -> runs.RunFolder:
    folder = runs.RunFolder(Path(name)) if name else runs.new_run_folder(config, "iql")
    folder.create(config, ["algo=iql"])
    if updates is not None:
        content = {"state_dict": {}, "brpo": {"updates": updates}}
        (folder.checkpoints / "last.ckpt").write_bytes(encode(content))
    return folder


def test_without_a_home_folder_defaults_do_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without an entry in the system's list, as containers have them."""
    for name in ("HOME", "XDG_CACHE_HOME", "MINARI_DATASETS_PATH"):
        monkeypatch.delenv(name, raising=False)

    def getpwuid(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert files.user_cache() == tmp_path / f"brpo-{os.getuid()}"
    assert data_roots() == [ROOT / "data"]
    with pytest.raises(UserError, match="^run_dir=~/x names a home folder that is not known here. Write it without ~.$"):
        files.typed_path("run_dir", "~/x")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "~nobody-here/x")
    with pytest.raises(UserError, match="^MINARI_DATASETS_PATH=~nobody-here/x names a home folder"):
        data_roots()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_cache() == tmp_path / ".cache" / "brpo"
    assert files.typed_path("run_dir", "~/x") == tmp_path / "x"


def test_two_runs_get_two_folders(here: Path) -> None:
    config = compose_config("algo=iql")
    folders = {runs.new_run_folder(config, "iql").path for _ in range(20)}
    assert len(folders) == 20
    assert all(str(path).startswith("runs/iql/brpo-halfcheetah-medium-replay-v0/") for path in folders)


def test_a_folder_that_holds_a_run_is_refused(here: Path) -> None:
    config = compose_config("algo=iql", "run_dir=here")
    started(config, "here")
    with pytest.raises(UserError, match="run_dir=here already holds a run. Continue it with resume=auto"):
        runs.new_run_folder(config, "iql")


def test_an_unwritable_folder_is_one_line(here: Path) -> None:
    (here / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*Choose another with run_dir=PATH"):
        runs.RunFolder(here / "file" / "run").create({}, [])


def test_one_process_at_a_time(here: Path) -> None:
    folder = started(compose_config(), "here")
    with folder.lock(), pytest.raises(UserError, match="Another process is training in here"), folder.lock():
        pass
    left, ours = (folder.checkpoints / f".last.ckpt.01234567.{pid}.tmp" for pid in (2**22 + 1, os.getpid()))
    table = folder.path / left.name.replace("last.ckpt", "metrics.csv")
    for path in (left, ours, table):
        path.touch()
    with folder.lock():  # free again, and rid of what a killed process was writing
        assert (left.exists(), table.exists(), ours.exists()) == (False, False, True)


def test_a_file_system_without_locks_is_no_obstacle(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    with started(compose_config(), "here").lock():
        pass
    assert "has no locks (No locks available); see that no other process trains in here" in capsys.readouterr().out


def test_a_checkpoint_can_be_named_from_its_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = started(compose_config(), "here").path.absolute()
    monkeypatch.chdir(folder / "checkpoints")
    assert resume.resume_from(Path("last.ckpt")).folder.path == folder


def test_the_config_comes_back(here: Path) -> None:
    config = compose_config("algo=iql")
    assert started(config, "here").read_config() == (config, ["algo=iql"])


@pytest.mark.parametrize("text", ["", "[1]", "a: 1", "\x00", "{", "!!python/object/apply:os.system ['true']"])
def test_other_config_files_are_refused(here: Path, text: str) -> None:
    (here / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="is no run folder"):
        runs.RunFolder(here).read_config()


def test_damaged_last_checkpoint_falls_back_to_the_one_before(here: Path) -> None:
    folder = started(compose_config(), "here", updates=20)
    (folder.checkpoints / "last.ckpt").replace(folder.checkpoints / "previous.ckpt")
    (folder.checkpoints / "last.ckpt").write_bytes(b"torn")
    found = resume.resume_in(folder)
    assert (found.checkpoint, found.updates) == (folder.checkpoints / "previous.ckpt", 20)
    assert "last.ckpt is torn" in found.notice
    assert "previous.ckpt from update 20" in found.notice
    (folder.checkpoints / "previous.ckpt").write_bytes(b"torn")
    (folder.checkpoints / "best.ckpt").write_bytes(encode({"state_dict": {}, "brpo": {"updates": 10}}))
    found = resume.resume_in(folder)
    assert (found.checkpoint, found.updates) == (folder.checkpoints / "best.ckpt", 10)
    (folder.checkpoints / "best.ckpt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"last.ckpt is torn.*has no whole checkpoint to continue from.*delete the folder"):
        resume.resume_in(folder)
    assert (folder.checkpoints / "last.ckpt").read_bytes() == b"torn"


def test_a_run_without_checkpoints_is_taken_as_finished_or_starts_anew(here: Path) -> None:
    folder = started(compose_config(), "here", updates=20)
    (folder.checkpoints / "last.ckpt").unlink()
    found = resume.resume_in(folder)
    assert (found.checkpoint, found.updates) == (None, -1)
    assert "has no checkpoint yet: it starts anew" in found.notice
    result = {"algo": "bc", "dataset": {}, "config": {}, "updates": 20, "final": {}}
    folder.result.write_text(json.dumps(result))
    found = resume.resume_in(folder)
    assert (found.checkpoint, found.updates) == (None, 20)
    for damaged in ("{}", "[]", '{"upd', json.dumps({**result, "updates": None}), json.dumps({**result, "updates": "x"})):
        folder.result.write_text(damaged)
        with pytest.raises(UserError, match="is not a result file of ours: .* to start anew"):
            resume.resume_in(folder)
    folder.result.unlink()
    folder.metrics.write_text("update,seed\n")  # of a run that was killed before its first checkpoint
    assert resume.resume_in(folder).updates == -1


def test_a_pretraining_counts_from_below_zero(here: Path) -> None:
    """15 of 20 updates were made, and the held-out rows looked at after 10; what was logged once at step 0 stays."""
    checkpoint = {"brpo": {"updates": -5, "pretrained": 15}, "callbacks": {"Evaluate": {"evaluated": -10}}}
    found = resume.Resumption.at(runs.RunFolder(here), here, checkpoint)
    assert (found.updates, found.ends["pretrain"], found.ends["pretrain/heldout"]) == (0, 15, 10)
    assert {found.ends[tag] for tag in ("evaluation", "evaluation_by_seed", "heldout")} == {-10}
    assert "from pre-training update 15" in found.notice


def test_resume_from_paths(here: Path) -> None:
    folder = started(compose_config(), "here")
    assert resume.resume_from(Path("here")).updates == 10
    assert resume.resume_from(folder.checkpoints / "last.ckpt").folder == folder
    with pytest.raises(UserError, match="resume=absent does not exist"):
        resume.resume_from(Path("absent"))
    (here / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no run to resume"):
        resume.resume_from(Path("empty"))
    (here / "loose.ckpt").write_bytes((folder.checkpoints / "last.ckpt").read_bytes())
    with pytest.raises(UserError, match="is not inside a run folder"):
        resume.resume_from(here / "loose.ckpt")


def test_auto_finds_the_newest_unfinished_run_of_the_same_configuration(here: Path) -> None:
    config = compose_config("algo=iql")
    assert resume.find_unfinished(config, "iql") is None
    names = [f"runs/iql/brpo-halfcheetah-medium-replay-v0/2026010{k}-000000-a" for k in (1, 2, 3, 4)]
    folders = [started(config, name) for name in names[:3]]
    started({**config, "batch_size": 8}, names[3])  # newer, but another configuration
    folders[2].result.write_text("{}")  # the newest one is finished
    assert resume.find_unfinished(config, "iql") == folders[1]
    assert resume.find_unfinished({**config, "max_updates": 99}, "iql") == folders[1]  # may differ
    for folder in folders[:2]:
        folder.result.write_text("{}")
    assert resume.find_unfinished(config, "iql") == folders[2]  # all finished: the newest is named


def test_metrics_are_written_whole(here: Path) -> None:
    path = here / "metrics.csv"
    runs.write_metrics(path, [{"update": 1, "score": 2.5}, {"update": 2, "score": None}])
    with path.open() as file:
        assert list(csv.DictReader(file)) == [{"update": "1", "score": "2.5"}, {"update": "2", "score": ""}]
    with pytest.raises(ValueError, match=r"different columns: \['update', 'score'\] and \['update', 'episodes', 'score'\]"):
        runs.write_metrics(path, [{"update": 1, "score": 2.5}, {"update": 2, "episodes": 10, "score": 1.0}])
    assert path.exists()  # as it was
    runs.write_metrics(path, [])
    assert not path.exists()


def test_events_are_cut_after_an_update_and_torn_ends_are_mended(here: Path) -> None:
    writer = SummaryWriter(str(here))
    for step in (10, 20, 30):
        writer.add_scalar("loss", step, step)
    writer.close()
    (path,) = here.glob("events.out.tfevents.*")
    path.write_bytes(path.read_bytes() + b"torn")
    runs.cut_events(here, 20, {})
    events = EventAccumulator(str(here))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 10.0), (20, 20.0)]


def test_evaluations_that_will_be_made_again_are_cut(here: Path) -> None:
    writer = SummaryWriter(str(here))
    for step in (10, 20):
        writer.add_scalar("loss", step, step)
        writer.add_scalar("evaluation/score", step, step)
        writer.add_scalar("heldout/w/mean", step, step)
        writer.add_scalar("pretrain/loss/w", step, step)
        writer.add_scalar("pretrain/heldout/w/mean", step, step)
    writer.close()
    runs.cut_events(here, 20, {"evaluation": 10, "heldout": 10, "pretrain": 20, "pretrain/heldout": 10})
    events = EventAccumulator(str(here))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20]
    assert [event.step for event in events.Scalars("evaluation/score")] == [10]
    assert [event.step for event in events.Scalars("heldout/w/mean")] == [10]
    assert [event.step for event in events.Scalars("pretrain/loss/w")] == [10, 20]
    assert [event.step for event in events.Scalars("pretrain/heldout/w/mean")] == [10]


def test_hyper_parameters_are_those_of_the_last_end(here: Path) -> None:
    """TensorBoard shows the first ones that it finds."""
    result = {"final": {"return": [1.0, 2.0]}, "updates": 20}
    results.log_hyperparameters(runs.RunFolder(here), {"max_updates": 20}, result)
    runs.cut_events(here, 20, resume.Resumption.at(runs.RunFolder(here), here, {"brpo": {"updates": 20}}).ends)
    events = EventAccumulator(str(here))
    events.Reload()
    assert (events.summary_metadata, events.Tags()["scalars"]) == ({}, [])


def test_taking_up_a_run_reads_the_checkpoint_anew_and_moves_a_damaged_one_away(here: Path) -> None:
    config = compose_config()
    folder = started(config, "here", updates=None)
    spec = make_spec()

    def checkpoint(updates: int) -> bytes:
        return encode({"state_dict": {}, "brpo": {"updates": updates, "spec": spec.to_dict()}})

    (folder.checkpoints / "previous.ckpt").write_bytes(checkpoint(10))
    (folder.checkpoints / "last.ckpt").write_bytes(b"torn")
    found = resume.take_up(resume.resume_in(folder), spec, config, [])
    assert (found.checkpoint, found.updates) == (folder.checkpoints / "previous.ckpt", 10)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"previous.ckpt", "damaged.ckpt"}
    # another process went on to 30 between the first look and the lock
    (folder.checkpoints / "last.ckpt").write_bytes(checkpoint(30))
    assert resume.take_up(found, spec, config, []).updates == 30
    # a checkpoint that was named is the one that is taken, though there is a newer one
    chosen = resume.resume_from(folder.checkpoints / "previous.ckpt")
    assert runs.RunFolder(Path("here")) == chosen.folder
    folder.result.write_text("{}")
    taken = resume.take_up(chosen, spec, config, [])
    assert not folder.result.exists()  # of an end that is none any more
    assert (taken.checkpoint, taken.updates) == (folder.checkpoints / "last.ckpt", 10)
    # and the one that a later resume takes, should this one be killed before it saves; the other is kept aside
    assert resume.resume_in(folder).updates == 10
    assert {path.name for path in folder.checkpoints.iterdir()} == {"last.ckpt", "abandoned.ckpt", "damaged.ckpt"}
    assert resume.resume_from(folder.checkpoints / "abandoned.ckpt").updates == 30
    # the best one, where no other is whole, takes the place of the last: the next evaluation may delete it
    (folder.checkpoints / "last.ckpt").write_bytes(b"torn")
    (folder.checkpoints / "best.ckpt").write_bytes(checkpoint(20))
    best = resume.take_up(resume.resume_in(folder), spec, config, [])
    assert (best.checkpoint, best.updates) == (folder.checkpoints / "last.ckpt", 20)
    (folder.checkpoints / "best.ckpt").unlink()
    assert resume.resume_in(folder).updates == 20
    other = make_spec(digest="1" * 64)
    with pytest.raises(UserError, match="has changed since .* Restore it, or start a new run"):
        resume.take_up(found, other, config, [])
    other = make_spec(action_high=(9.0,) * spec.action_dim)
    with pytest.raises(
        UserError, match=r"The bounds of the actions of .* have changed since .*\(action_high \[9.0.* then \["
    ):
        resume.take_up(found, other, config, [])


def test_a_run_keeps_its_reference_returns(here: Path) -> None:
    """Else its scores would be in two units. Where there were none, they may come."""
    config = compose_config()
    folder = started(config, "here", updates=None)

    def take_up(stored: tuple[float | None, float | None], now: tuple[float | None, float | None]) -> None:
        specs = [make_spec(reference_min=low, reference_max=high) for low, high in (stored, now)]
        content = {"state_dict": {}, "brpo": {"updates": 10, "spec": specs[0].to_dict()}}
        (folder.checkpoints / "last.ckpt").write_bytes(encode(content))
        resume.take_up(resume.resume_in(folder), specs[1], config, [])

    take_up((0.0, 1.0), (0.0, 1.0))
    take_up((None, None), (0.0, 1.0))
    with pytest.raises(UserError, match=r"The reference returns of .*\(\(0.0, 2.0\) score 0 and 100, then \(0.0, 1.0\)"):
        take_up((0.0, 1.0), (0.0, 2.0))


def test_versions_and_result(here: Path) -> None:
    found = runs.versions()
    assert {"python", "torch", "lightning", "gymnasium", "minari"} <= set(found)
    write_json(here / "result.json", {"versions": found})
    assert json.loads((here / "result.json").read_text())["versions"] == found


def test_the_final_evaluation_is_that_of_the_last_update(here: Path) -> None:
    """A run that went on where its environment is absent has none."""
    recorder, config = Recorder(runs.RunFolder(here)), compose_config("seeds=1")
    recorder.rows = [{"update": 10, "seed": 0, "mode": "mean", "episodes": 1, "return_mean": 3.0, "return_cvar": 2.0}]
    for updates, final, cvar in ((10, [3.0], [2.0]), (20, None, None)):
        result = results.summarize(config, make_spec(), recorder, updates, {}, None)
        assert (result["final"]["return"], result["cvar"], result["best"]["return"]) == (final, cvar, [3.0])


def test_a_refused_run_leaves_no_environments_behind(here: Path, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    evaluator = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(training, "_evaluator", lambda *_: evaluator)
    config = compose_config("algo=bc", "dataset=tests/pendulum/tiny-v0", "trainer=cpu", "engine=cudagraph")
    with pytest.raises(UserError, match="engine=cudagraph is not possible here"):
        training.train(config, [])
    assert closed == [True]
    assert list(here.iterdir()) == []
