"""Runs that begin with a pre-training: stopped anywhere they come to the same end, and the next one takes their model."""

import copy
import functools
import json
import multiprocessing
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from brpo import behavior, resume, training
from brpo.callbacks.checkpoints import Checkpoints
from brpo.callbacks.pretraining import Pretraining
from brpo.callbacks.recorder import Recorder
from brpo.callbacks.signals import Signals
from brpo.engine import checkpoint_io
from brpo.errors import Interrupted, TrainingDiverged, UserError
from brpo.runs import RunFolder
from tests.conftest import ROOT, Run
from tests.helpers import compose_config, make_algorithm, make_spec, shrink

UPDATES = 100  # of the pre-training
OPTIONS = [
    "algo=sfac", "dataset=tests/pendulum/tiny-v0", "batch_size=16", "eval.episodes=1", "trainer=cpu", "eval.every=40",
    "engine.chunk=15", "max_updates=40", f"algo.pretrain_updates={UPDATES}", "seeds=[0,3]",
    "data.normalize_observations=false",  # a made-up spec has other means
    *(f"algo.{part}.hidden=[16,16]" for part in ("actor", "critic", "value")),
]  # fmt: skip
Result = dict[str, Any]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


HELDOUT = "pretrain/heldout/behavior/log_prob/mean"


def run(folder: Path, *overrides: str, callback: dict[str, Any] | None = None) -> Result:
    """Train in this process; where the folder holds a run, continue it."""
    config = compose_config(*OPTIONS, f"run_dir={folder}", *overrides)
    config["callbacks"] = {"test": callback} if callback else {}
    found = resume.resume_in(RunFolder(folder)) if folder.exists() else None
    return training.train(config, [], found)


def last(folder: Path) -> dict[str, Any]:
    return checkpoint_io.read(folder / "checkpoints" / "last.ckpt")


def same_weights(a: Path, b: Path) -> bool:
    left, right = last(a)["state_dict"], last(b)["state_dict"]
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def steps(folder: Path, tag: str) -> list[int]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    # Sorted: the parts of a run that one process makes within a second have files of no order.
    return sorted(event.step for event in events.Scalars(tag)) if tag in events.Tags()["scalars"] else []


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> tuple[Path, Path, Result]:
    """A run that nobody disturbs, the cache that it filled, and its result."""
    root = tmp_path_factory.mktemp("fresh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(data_root))
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        result = run(root / "run")
    return root / "run", root / "cache", result


def test_the_next_run_takes_the_model_and_ends_the_same(
    fresh: tuple[Path, Path, Result], datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    first, cached, result = fresh
    assert steps(first, "pretrain/loss/behavior") == [10, 20, 25, 40, 55, 60, 70, 85, 100]  # counted back from 0
    assert steps(first, HELDOUT) == [20, 60, 100]
    assert steps(first, "loss/behavior") == [15, 30, 40]
    assert steps(first, "series/remainder") == [0]
    assert steps(first, "evaluation/score") == [40]
    files = sorted(map(str, (cached / "brpo" / "behavior").iterdir()))
    assert [re.sub("-[0-9a-f]{16}.ckpt", "", Path(file).name) for file in files] == [
        "tests-pendulum-tiny-v0-seed0", "tests-pendulum-tiny-v0-seed3",
    ]  # fmt: skip
    assert result["behavior"]["files"] == [None, None]

    monkeypatch.setenv("XDG_CACHE_HOME", str(cached))
    second = run(tmp_path / "second")
    assert f"behaviour model: taken from {files[0]}, {files[1]}" in capsys.readouterr().out
    assert steps(tmp_path / "second", "pretrain/loss/behavior") == []
    assert second["behavior"] == {"files": files, "digests": result["behavior"]["digests"]}
    assert json.loads((tmp_path / "second" / "result.json").read_text())["behavior"] == second["behavior"]
    assert same_weights(first, tmp_path / "second")


def test_sigkill_in_the_pretraining_then_resume_is_bit_exact(
    cli: Run,
    fresh: tuple[Path, Path, Result],
    datasets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    """`fresh` does not look at the cache; nor does a resumed run, whose model is in its checkpoint."""
    kill = ["+callbacks.kill._target_=tests.helpers.Stop", "+callbacks.kill.at=-30", "+callbacks.kill.kill=true"]
    typed = [*OPTIONS, "behavior=fresh", f"run_dir={tmp_path / 'run'}", *kill]
    killed = cli(*typed, PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(tmp_path / "own"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert f"behaviour model: trained for {UPDATES} updates first" in killed.stdout
    assert re.search(rf"^behavior \d+/{UPDATES} ", killed.stdout, re.MULTILINE)
    assert (last(tmp_path / "run")["brpo"]["updates"], last(tmp_path / "run")["brpo"]["pretrained"]) == (-40, 60)
    assert not (tmp_path / "own" / "brpo").exists()

    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh[1]))
    assert resume.resume_in(RunFolder(tmp_path / "run")).notice.endswith("last.ckpt from pre-training update 60.")
    result = run(tmp_path / "run", "behavior=fresh")
    assert "behaviour model" not in capsys.readouterr().out
    assert result["behavior"] == fresh[2]["behavior"]
    assert same_weights(fresh[0], tmp_path / "run")
    for tag in ("pretrain/loss/behavior", HELDOUT, "loss/behavior", "series/remainder", "evaluation/score"):
        assert steps(tmp_path / "run", tag) == steps(fresh[0], tag), tag


def test_bdpo_killed_in_its_pretraining_resumes_exactly_and_the_next_run_skips_it(
    cli: Run, datasets: Path, tmp_path: Path, cache: Path, capsys: Any
) -> None:
    """Its behaviour model, the average of it, and the actor that starts as a copy of that."""
    own = [
        "algo=bdpo", "algo.pretrain_updates=45", "max_updates=15", "eval.every=15", "seeds=[0,3]", "engine.chunk=5",
        "algo.critic_only=5", "algo.samples=1", "algo.critic.critics=2", "algo.actor.hidden=[16,16]",
    ]  # fmt: skip
    whole = run(tmp_path / "whole", *own, "behavior=fresh")
    assert steps(tmp_path / "whole", "pretrain/heldout/behavior/denoising_error/mean") == [15, 30, 45]
    kill = ["+callbacks.kill._target_=tests.helpers.Stop", "+callbacks.kill.at=-10", "+callbacks.kill.kill=true"]
    killed = cli(*OPTIONS, *own, "behavior=fresh", f"run_dir={tmp_path / 'run'}", *kill, PYTHONPATH=str(ROOT))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert last(tmp_path / "run")["brpo"]["updates"] == -15
    assert run(tmp_path / "run", *own, "behavior=fresh")["behavior"] == whole["behavior"]
    assert same_weights(tmp_path / "whole", tmp_path / "run")

    capsys.readouterr()
    second = run(tmp_path / "second", *own)
    assert "behaviour model: taken from" in capsys.readouterr().out
    assert second["behavior"]["digests"] == whole["behavior"]["digests"]
    assert steps(tmp_path / "second", "pretrain/loss/behavior") == []
    assert same_weights(tmp_path / "whole", tmp_path / "second")


@pytest.mark.parametrize(("at", "taken_up"), [(-90, None), (0, -40), (15, 0)])
def test_a_run_that_ends_around_the_end_of_its_pretraining_resumes_exactly(
    at: int, taken_up: int | None, fresh: tuple[Path, Path, Result], datasets: Path, tmp_path: Path, cache: Path
) -> None:
    """Before the first checkpoint; after the last pre-training update and before it is saved; and soon after."""
    with pytest.raises(KeyError, match="stopped"):
        run(tmp_path / "run", callback={"_target_": "tests.helpers.Stop", "at": at})
    found = resume.resume_in(RunFolder(tmp_path / "run"))
    assert (last(tmp_path / "run")["brpo"]["updates"] if found.checkpoint else None) == taken_up
    assert run(tmp_path / "run")["behavior"]["digests"] == fresh[2]["behavior"]["digests"]
    assert same_weights(fresh[0], tmp_path / "run")
    for tag in ("pretrain/loss/behavior", HELDOUT, "loss/behavior", "series/remainder"):
        assert steps(tmp_path / "run", tag) == steps(fresh[0], tag), tag


def test_divergence_and_signals_in_the_pretraining(datasets: Path, tmp_path: Path, cache: Path) -> None:
    """The last good checkpoint is named, and nothing reaches the cache; a signal says where it came."""
    with pytest.raises(TrainingDiverged, match="behavior of seed 0 became NaN .* at pre-training update 20.*last.ckpt"):
        run(tmp_path / "run", "eval.every=10", callback={"_target_": "tests.helpers.PoisonBehavior"})
    assert last(tmp_path / "run")["brpo"]["updates"] == -80
    assert not cache.exists()
    signals, algorithm = Signals(), make_algorithm("sfac", "algo.pretrain_updates=10")
    algorithm.begin_pretraining()
    signals.received = signal.SIGTERM
    checkpoints = Checkpoints(tmp_path, Recorder(RunFolder(tmp_path)), signals)
    checkpoints.last.touch()  # what the run was resumed from
    with pytest.raises(Interrupted, match="SIGTERM at pre-training update 0; saved"):
        checkpoints.on_train_start(None, algorithm)  # type: ignore[arg-type]


# --- Which file is taken, without a run -------------------------------------------------------------------------------


composed = functools.cache(compose_config)


def prepared(*overrides: str, algo: str = "sfac", **spec: Any) -> Pretraining:
    """What a run does before it begins, with small networks."""
    config = copy.deepcopy(composed(f"algo={algo}", "algo.pretrain_updates=4", "seeds=[0]", *overrides))
    shrink(config["algo"])
    algorithm = training.make_algorithm(config["algo"], make_spec(**spec), seeds=config["seeds"], max_updates=10)
    return Pretraining(config, algorithm)


def store(pretraining: Pretraining) -> list[Path]:
    """As after its pre-training."""
    pretraining._store(behavior.members_of(pretraining.algorithm))
    algorithm, recipes = pretraining.algorithm, pretraining._recipes()
    return [behavior.cached_file(recipe, algorithm.spec.dataset_id) for recipe in recipes]


def found(pretraining: Pretraining) -> bool:
    pretraining.look_up()
    return pretraining.members is not None


@pytest.mark.parametrize(
    ("overrides", "spec", "hit"),
    [
        (["algo.temperature=1", "max_updates=77", "data.storage=memmap", "engine=eager"], {}, True),
        (["data.reward_scale=2", "data.eta=0.1"], {}, True),
        (["algo.behavior_training=fixed"], {}, True),
        (["algo.actor.max_log_std=1"], {}, False),
        (["algo.optimizer.lr=1e-3"], {}, False),
        (["algo.pretrain_updates=5"], {}, False),
        (["algo.gradient_clip=1"], {}, False),
        (["++algo.schedule.behavior=cosine"], {}, False),
        (["batch_size=17"], {}, False),
        (["seeds=[1]"], {}, False),
        (["data.heldout=0.1"], {}, False),
        (["data.normalize_observations=false"], {}, False),
        (["data.return_temperature=0.1"], {}, False),
        (["trainer.precision=bf16-mixed"], {}, False),
        ([], {"digest": "1" * 64}, False),
        ([], {"action_high": (7.0, 7.0)}, False),
        (["behavior=fresh"], {}, False),
    ],
)
def test_a_model_is_found_by_what_it_depends_on(overrides: list[str], spec: dict, hit: bool, cache: Path) -> None:
    store(prepared())
    assert found(prepared(*overrides, **spec)) == hit


def test_a_group_takes_its_members_from_files_of_others(cache: Path, capsys: Any) -> None:
    group = prepared("seeds=[0,1,5]")
    store(group)
    other = prepared("seeds=[5,0]")
    assert found(other)
    other.begin()
    ours, theirs = behavior.weights_of(other.algorithm), behavior.weights_of(group.algorithm)
    assert all(torch.equal(ours[name], theirs[name][[2, 0]]) for name in ours)
    assert not other.algorithm.pretraining
    assert "taken from" in capsys.readouterr().out
    more = prepared("seeds=[0,2]")
    assert not found(more)
    more.begin()
    assert more.algorithm.update_count == int(more.algorithm.updates) == -4
    assert "the cache has 1 of 2 seeds; all are trained" in capsys.readouterr().out


def test_a_torn_or_stale_file_is_named_trained_anew_and_replaced(cache: Path, capsys: Any) -> None:
    (path,) = store(prepared())
    good = path.read_bytes()
    stale = checkpoint_io.read(path)
    stale["brpo"]["recipe"]["batch_size"] = 1
    other = copy.deepcopy(checkpoint_io.read(path))
    del other["state_dict"]["behavior.log_std"]
    for content, message in (
        (good[:-100], "is torn"),
        (checkpoint_io.encode(stale), "was made with other values: batch_size"),
        (checkpoint_io.encode(other), "is another network: behavior.log_std is not there"),
        (checkpoint_io.encode({"state_dict": {}, "brpo": {"recipe": 3}}), "was made with other values"),
        (checkpoint_io.encode({"state_dict": {}, "brpo": {"recipe": stale, "spec": 1}}), "was made with other values"),
    ):
        path.write_bytes(content)
        assert not found(prepared())
        said = capsys.readouterr().out
        assert message in said
        assert "It is not used." in said
        store(prepared())
        assert found(prepared())
    path.write_bytes(good)
    store(prepared())
    assert path.read_bytes() == good  # a good one stays


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(cache: Path, capsys: Any) -> None:
    cache.write_text("a file")
    store(prepared())
    assert "cannot be stored in" in capsys.readouterr().out


def test_a_pretraining_that_was_resumed_with_other_options_is_not_stored(cache: Path, capsys: Any) -> None:
    """It is a mixture, which no recipe is the recipe of."""
    pretraining = prepared()
    pretraining.load_state_dict(
        {"provenance": None, "begun_with": {**pretraining._conditions(), "precision": ["bf16-mixed"]}}
    )
    store(pretraining)
    assert "is not stored: its pre-training was resumed with other options" in capsys.readouterr().out
    assert not list(cache.rglob("*.ckpt"))
    pretraining.load_state_dict({"provenance": None, "begun_with": pretraining._conditions()})
    store(pretraining)
    assert len(list(cache.rglob("*.ckpt"))) == 1


def write_often(path: Path) -> None:
    pretraining = prepared()
    for _ in range(40):
        (recipe,) = pretraining._recipes()
        behavior.write(path, behavior.members_of(pretraining.algorithm)[0], recipe, pretraining.algorithm.spec)


def test_two_processes_that_write_one_file_do_not_clash(cache: Path) -> None:
    """Whoever reads meets a whole one."""
    (path,) = store(prepared())
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    pretraining = prepared()
    while any(writer.is_alive() for writer in writers):
        assert behavior.has(path, pretraining._recipes()[0], pretraining.algorithm)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_model_that_the_user_names(fresh: tuple[Path, Path, Result], cache: Path, capsys: Any) -> None:
    """A run folder or a file of the cache, whatever its number of updates; a file of one seed serves several."""
    folder, cached, _ = fresh
    small = ["algo.actor.hidden=[16,16]", "algo.behavior_training=fixed", "algo.pretrain_updates=0"]
    sizes: dict[str, Any] = {"observation": 3, "action": 1, "action_low": (-2.0,), "action_high": (2.0,)}
    (file,) = (cached / "brpo" / "behavior").glob("*seed3*")
    stored = last(folder)["state_dict"]["behavior.log_std"]
    for path, seeds in ((folder, [3, 0]), (folder / "checkpoints" / "last.ckpt", [0]), (file, [3, 8])):
        pretraining = prepared(*small, f"behavior={path}", f"seeds={seeds}", **sizes)
        assert found(pretraining)
        pretraining.begin()
        if path != file:
            assert torch.equal(pretraining.algorithm.behavior.log_std, stored[[[0, 3].index(seed) for seed in seeds]])
        else:
            assert torch.equal(*pretraining.algorithm.behavior.log_std)
        assert pretraining.provenance is not None
        assert len(pretraining.provenance["files"]) == len(seeds)
    said = capsys.readouterr().out
    assert said.count("trained on other data, tests/pendulum/tiny-v0") == 3  # the spec's is another
    assert said.count("is one model for 2 seeds") == 1
    assert "return_temperature" not in said
    for path in (folder, file):
        assert found(prepared(*small, f"behavior={path}", "data.return_temperature=0.2", **sizes))
        said = capsys.readouterr().out
        assert "was fitted with data.return_temperature=None, this run has 0.2" in said
    for changes, overrides, message in (
        (
            {},
            [f"behavior={folder}", "algo.actor.max_log_std=1"],
            "another algo.behavior: max_log_std is .* there and .* here",
        ),
        ({}, [f"behavior={folder}", "seeds=[0,9]"], r"has the seeds \[0, 3\] and not \[9\]"),
        ({"observation_mean": (1.0,) * 3}, [f"behavior={folder}"], "in other units: observation_mean differ"),
        ({}, ["behavior=nowhere"], "behavior=nowhere does not exist"),
        ({}, [f"behavior={folder.parent}"], "has no whole checkpoint"),
        ({}, ["behavior=auto"], "algo.pretrain_updates=0 leaves behavior at its random weights"),
    ):
        with pytest.raises(UserError, match=message):
            prepared(*small, *overrides, **{**sizes, **changes}).look_up()


def test_a_run_of_diffusion_cloning_serves_bdpo(tmp_path: Path, cache: Path, capsys: Any) -> None:
    """Its weights and their average; another noise schedule or number of steps is refused, of cached files too."""
    cloning = compose_config("algo=diffusion_bc")
    shrink(cloning["algo"])
    source: Any = make_algorithm("diffusion_bc", seeds=(0, 4), dtype=torch.float32)
    source.actor_target.follow(make_algorithm("diffusion_bc", seeds=(7, 8), dtype=torch.float32).actor, 0.5)
    path = tmp_path / "cloning.ckpt"
    brpo = {"updates": 3, "spec": make_spec().to_dict(), "config": cloning}
    path.write_bytes(checkpoint_io.encode({"state_dict": source.state_dict(), "brpo": brpo}))
    taker = prepared(f"behavior={path}", "seeds=[4]", algo="bdpo")
    taker.look_up()
    assert f"note: behavior={path} is of a run that has made 3 of its 50000 updates" in capsys.readouterr().out
    taker.begin()
    bdpo: Any = taker.algorithm
    for ours, theirs in ((bdpo.behavior, source.actor), (bdpo.behavior_target, source.actor_target)):
        for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(left[0], right[1])
    assert not torch.equal(*(next(module.parameters()) for module in (bdpo.behavior, bdpo.behavior_target)))

    (cached,) = store(prepared(algo="bdpo"))
    for named in (path, cached):
        for override, differs in (("algo.actor.noise_schedule=cosine", "noise_schedule"), ("algo.actor.steps=1", "steps")):
            with pytest.raises(UserError, match=rf"has another algo\.actor: {differs} is .* there and .* here"):
                prepared(f"behavior={named}", override, algo="bdpo").look_up()
    assert found(prepared(f"behavior={cached}", "algo.behavior_polyak=0.1", algo="bdpo"))
    for named, kind in ((path, "DiffusionBC"), (cached, "BDPO")):
        with pytest.raises(
            UserError, match=rf"is of {kind}, which has no algo.behavior that SfAC could take. Give a run of SfAC"
        ):
            prepared(f"behavior={named}", "algo.pretrain_updates=4").look_up()


def test_a_model_that_is_not_finished_or_has_no_place(tmp_path: Path, cache: Path) -> None:
    algorithm, path = make_algorithm("sfac"), tmp_path / "x.ckpt"
    brpo = {"updates": -3, "spec": make_spec().to_dict()}
    for content, message in ((brpo, "has not finished its pre-training"), ({}, "does not fit this version of brpo")):
        path.write_bytes(checkpoint_io.encode({"state_dict": algorithm.state_dict(), "brpo": content}))
        with pytest.raises(UserError, match=message):
            prepared(f"behavior={path}").look_up()
    config = compose_config("algo=bc", f"behavior={path}")
    with pytest.raises(UserError, match="BC has no behaviour model that could be taken from there"):
        Pretraining(config, make_algorithm("bc")).look_up()


def as_it_is(base: type) -> type:
    class Mine(base):
        def pretrain(self, batch: Any) -> None:
            self.descend("behavior", self.behavior_loss(batch))

    return Mine


def commented(base: type) -> type:
    class Mine(base):
        """Says more."""

        def pretrain(self, batch: Any) -> None:
            """And more."""
            # And more.
            self.descend("behavior", self.behavior_loss(batch))

    return Mine


def changed(base: type) -> type:
    class Mine(base):
        def pretrain(self, batch: Any) -> None:
            self.descend("behavior", 2.0 * self.behavior_loss(batch))

    return Mine


def test_a_model_of_other_code_is_not_taken() -> None:
    """Who changes a loss, and runs the same command again, wants the model of the new one."""
    codes = []
    for make in (as_it_is, commented, changed):
        algorithm = make_algorithm("sfac", "algo.pretrain_updates=3")
        algorithm.__class__ = make(type(algorithm))
        codes.append(behavior.recipe(compose_config(*OPTIONS), algorithm, 0)["code"])
    assert codes[0] == codes[1] != codes[2]


def test_a_model_of_another_function_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    algorithm = make_algorithm("sfac", "algo.pretrain_updates=3")
    codes = []
    for number, source in enumerate(
        ("def f(x):\n    return x\n", "def f(x):\n    # one\n    return x\n", "def f(x):\n    return -x\n")
    ):
        file = tmp_path / f"{number}.py"
        file.write_text(source)
        monkeypatch.setattr("brpo.code.functions", lambda file=file: [file])
        codes.append(behavior.recipe(compose_config(*OPTIONS), algorithm, 0)["code"])
    assert codes[0] == codes[1] != codes[2]
