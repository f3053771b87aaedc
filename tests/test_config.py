import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from brpo import config
from brpo.errors import UserError
from brpo.exits import exit_code_of
from brpo.options import classes_above, known_options
from tests.helpers import ALGORITHMS, ROOT, algorithm_class, compose_config


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_composes_and_is_trusted(algo: str) -> None:
    composed = compose_config(f"algo={algo}")
    config.check_config(composed)
    config.check_trusted(composed["algo"])


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("conf/algo/*.yaml"), *ROOT.glob("conf/actor/*.yaml")]), ids=lambda path: path.stem
)
def test_every_option_of_an_algorithm_is_commented(path: Any) -> None:
    """Meaning, unit, source: on the line itself, above it, or where the same key stands first."""
    explained: set[str] = {"_target_", "_partial_"}
    lines = path.read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if match := re.match(r"\s*(\w+):", line):
            key = match[1]
            if "#" in line or above.lstrip().startswith("#"):
                explained.add(key)
            nested = line.rstrip().endswith(":")
            assert key in explained or nested, f"{path.name}: {line}"


@pytest.mark.parametrize("algo", ["bc", "iql", "sfac"])
@pytest.mark.parametrize("actor", sorted(path.stem for path in ROOT.glob("conf/actor/*.yaml")))
def test_one_option_takes_another_policy(algo: str, actor: str) -> None:
    """Options of the algorithm's own actor stay, what is typed wins, and Sf-AC's behaviour model follows."""
    composed = compose_config(f"algo={algo}", f"actor={actor}", "algo.actor.hidden=[8]")
    config.check_trusted(composed["algo"])
    chosen = composed["algo"]["actor"]
    assert (
        chosen["_target_"].lower().replace("gaussian", "").endswith(f"{actor.replace('_', '').replace('gaussian', '')}actor")
    )
    assert (chosen["hidden"], chosen["min_log_std"], chosen["_partial_"]) == ([8], -5.0, True)
    assert composed["algo"].get("behavior", chosen) == chosen
    assert "actor" not in composed


def test_the_behaviour_model_can_be_of_another_kind() -> None:
    algo = compose_config("algo=sfac", "actor=student_t", "actor@algo.behavior=mixture", "algo.behavior.components=2")[
        "algo"
    ]
    assert algo["actor"]["_target_"] == "brpo.modules.actors.StudentTActor"
    assert algo["behavior"] == {
        "_target_": "brpo.modules.actors.MixtureActor", "_partial_": True, "hidden": [256, 256], "activation": "relu",
        "min_log_std": -5.0, "max_log_std": 2.0, "components": 2, "state_dependent_std": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "family", "expectile"),
    [
        ("D4RL/antmaze/medium-diverse-v1", None, 0.9),
        ("mujoco/hopper/medium-v0", None, 0.7),
        ("mujoco/hopper/medium-v0", "antmaze", 0.9),
        ("mylab/logs-v0", "antmaze/umaze", 0.9),
        ("x/notantmaze/y-v0", None, 0.7),
    ],
)
def test_by_family(dataset: str, family: str | None, expectile: float) -> None:
    overrides = [f"dataset={dataset}", *([f"data.family={family}"] if family else [])]
    assert compose_config("algo=iql", *overrides)["algo"]["expectile"] == expectile


def test_toy_tasks_are_those_whose_id_begins_so() -> None:
    """A toy car has an environment."""
    modes = {dataset: compose_config(f"dataset={dataset}")["eval"]["mode"] for dataset in ("toy/moons", "mylab/toy-car-v0")}
    assert modes == {"toy/moons": "sampled", "mylab/toy-car-v0": "mean"}
    assert compose_config("dataset=mylab/car-v0", "data.family=toy")["eval"]["mode"] == "sampled"


def test_a_key_of_several_words_wants_them_all() -> None:
    """BDPO takes more updates on one of the toy tasks; rings that are none are not meant."""
    ids = ("toy/rings", "toy/moons", "mylab/rings-v0")
    assert [compose_config("algo=bdpo", f"dataset={dataset}")["max_updates"] for dataset in ids] == [15000, 5000, 20000]


def test_a_family_in_several_words() -> None:
    """BDPO's weight of the KL goes by the body and by the size of the maze."""
    for family, eta in (("mujoco/hopper", 0.2), ("halfcheetah", 0.05), ("antmaze/umaze", 0.5), ("antmaze", 0.2)):
        composed = compose_config("algo=bdpo", "algo/size=paper", "dataset=mylab/logs-v0", f"data.family={family}")
        assert composed["algo"]["eta"] == eta


def test_the_command_line_wins_over_the_family() -> None:
    composed = compose_config("algo=iql", "dataset=D4RL/antmaze/x-v0", "algo.expectile=0.6")
    assert composed["algo"]["expectile"] == 0.6


@pytest.mark.parametrize(("given", "seeds"), [(1, [0]), (3, [0, 1, 2]), ([3, 7], [3, 7])])
def test_seed_list(given: Any, seeds: list[int]) -> None:
    assert config.seed_list(given) == seeds


@pytest.mark.parametrize("given", [0, -1, 1.5, "a", [], [1, 1], [-1], [0.5], True, None])
def test_seed_list_refuses(given: Any) -> None:
    with pytest.raises(UserError, match="seeds=.* is not allowed; it must be a number n >= 1"):
        config.seed_list(given)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_updates=0", "max_updates=0 is not allowed; it must be a whole number >= 1"),
        ("max_updates=1.5", "max_updates=1.5 is not allowed; it must be a whole number >= 1."),
        ("data.heldout=half", "data.heldout=half is not allowed; it must be a share of the episodes in [0, 1)"),
        ("data.heldout=1", "data.heldout=1 is not allowed"),
        ("data.return_temperature=0", "data.return_temperature=0 is not allowed; it must be a number > 0, or null"),
        ("data.reward_shift=low", "data.reward_shift=low is not allowed; it must be a number"),
        ("data.normalize_observations=maybe", "data.normalize_observations=maybe is not allowed; it must be true or false"),
        ("max_updates=1e5", "max_updates=100000.0 is not allowed; it must be a whole number >= 1, as 100000."),
        ("batch_size=-2", "batch_size=-2 is not allowed"),
        ("eval.every=0", "eval.every=0 is not allowed"),
        ("eval.mode=greedy", "eval.mode=greedy is not allowed; it must be mean or sampled"),
        ("engine.chunk=abc", "engine.chunk=abc is not allowed"),
        ("engine.matmul_precision=low", "engine.matmul_precision=low is not allowed"),
        ("engine.threads=0", "engine.threads=0 is not allowed"),
        ("trainer.precision=16-mixed", "Use trainer.precision=bf16-mixed"),
        ("trainer.precision=64", "trainer.precision=64 is not allowed; it must be 32-true or bf16-mixed"),
        ("parallel=both", "parallel=both is not allowed; it must be one of auto, seeds, data"),
        ("data.family=3", "data.family=3 is not allowed; it must be null, or words like"),
        ("data.family=antmazee", "data.family=antmazee is not allowed; it must be null, or words like"),
        ("engine.name=jit", "engine.name=jit is not allowed; it must be one of auto, eager, compile, cudagraph"),
        ("engine.products=mkl", "engine.products=mkl is not allowed; it must be auto, blas or onednn"),
        (
            "+trainer.gradient_clip_val=1",
            "trainer.gradient_clip_val=1 is not allowed; it must be left out: algo.gradient_clip",
        ),
        ("+trainer.accumulate_grad_batches=2", "it must be left out: batch_size is for that"),
        ("+trainer.max_steps=10", "it must be left out: max_updates is for that"),
        ("+trainer.min_steps=10", "it must be left out: max_updates is for that"),
        ("+trainer.min_epochs=3", "it must be left out: max_updates is for that"),
        ("+trainer.limit_train_batches=0", "it must be left out: max_updates is for that"),
        ("+trainer.overfit_batches=1", "it must be left out: a data set with few episodes is for that"),
        ("+trainer.fast_dev_run=true", "it must be left out: trainer=smoke is for that"),
        ("engine.compiled=yes please", "engine.compiled=yes please is not allowed; it must be auto, true or false"),
        ("eval.processes=0", "eval.processes=0 is not allowed; it must be a whole number >= 1, or null"),
        ("engine.threads=true", "engine.threads=True is not allowed; it must be a whole number >= 1, or null"),
        ("run_dir=1", "run_dir=1 is not allowed; it must be a path"),
        ("eval=5000", "eval=5000 is not allowed"),
        ("~eval", "eval=None is not allowed; it must be a group or a mapping"),
        ("~algo._target_", "algo._target_=None is not allowed; it must be a class"),
        ("callbacks=1", "callbacks=1 is not allowed"),
        ("loggers=wandb", "loggers=wandb is not allowed; it must be a mapping of names to loggers"),
        ("+trainer.logger=true", "it must be left out: loggers is for that"),
        ("dataset=3", "dataset=3 is not allowed; it must be a Minari id"),
        ("+max_updats=3", "max_updats is no option. Known: algo, data, engine"),
        ("+eval.evry=3", "eval.evry is no option. Known: eval.every, eval.episodes"),
        ("~eval.every", "eval.every cannot be left out: give it a value, or take ~eval.every away."),
        ("~seeds", "seeds cannot be left out"),
        ("+engine.chunks=3", "engine.chunks is no option. Known: engine.name"),
        ("+data.foo=1", "data.foo is no option. Known: data.storage, data.normalize_observations"),
        ("+expectile=0.8", "loggers, profile, debug. Did you mean algo.expectile?"),
        ("+algo.seeds=[4,5]", "algo.seeds is no option: seeds is a key of its own, seeds=[4,5]."),
        ("+algo.max_updates=7", "algo.max_updates is no option: max_updates is a key of its own, max_updates=7."),
        ("+algo.spec=7", "algo.spec is no option: it is found from the data."),
        ("algo.optimizer.lr=abc", "algo.optimizer.lr=abc is not allowed; it must be a number >= 0."),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu is not allowed; it must be one of auto, cpu, gpu, cuda."),
        ("algo._target_=mine.Mine", "A run with it could be neither evaluated nor resumed"),
        (
            "algo._target_=brpo.algorithms.bc.Mine",
            "It cannot be imported: module 'brpo.algorithms.bc' has no attribute 'Mine'",
        ),
        ("profile=no", "profile=no is not allowed; it must be true or false"),
        ("debug=maybe", "debug=maybe is not allowed; it must be true or false"),
        ("algo.optimizer=null", "algo.optimizer=None is not allowed; it must be a mapping with a _target_"),
    ],
)
def test_check_config_refuses(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        config.check_config(compose_config(override))


def test_callbacks_and_loggers_are_the_users_own() -> None:
    config.check_config(compose_config("+callbacks.mine._target_=mine.Mine", "+loggers.mine._target_=mine.Mine"))


def test_compiled_updates_are_refused_under_bfloat16() -> None:
    with pytest.raises(UserError, match=r"engine\.compiled=true does not go together with trainer\.precision=bf16-mixed"):
        config.check_config(compose_config("engine.compiled=true", "trainer.precision=bf16-mixed"))
    config.check_config(compose_config("trainer.precision=bf16-mixed"))


def test_what_differs() -> None:
    stored = compose_config("algo=iql")
    wanted = compose_config("algo=iql", "algo.expectile=0.8", "batch_size=32", "max_updates=5", "eval.every=2")
    assert config.against_resuming(stored, wanted) == {
        "algo.expectile": "algo.expectile is 0.7 there and 0.8 here",
        "batch_size": "batch_size is 256 there and 32 here",
    }
    assert sorted(config.differing(stored, wanted)) == ["algo.expectile", "batch_size", "eval.every", "max_updates"]
    assert config.differing(stored, stored) == {}
    assert "algo._target_" in config.against_resuming(stored, compose_config("algo=bc"))
    assert config.differing(None, {"hidden": 3}) == {"hidden": "hidden is not set there and 3 here"}
    earlier = {**stored, "data": {key: value for key, value in stored["data"].items() if key != "return_temperature"}}
    assert config.against_resuming(earlier, stored) == {}  # a new option that is null changes nothing
    assert "data.return_temperature" in config.against_resuming(earlier, compose_config("data.return_temperature=0.1"))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "brpo.files.os.system",
        "brpo.runs.subprocess.run",
        "brpo.runs.subprocess.Popen",
        "brpo.cli.main",
        "brpo.nothing.Here",
        "torch.load",
        "torch.optim.Adam.step",
        "torch.hub.load",
        "brpoevil.Class",
        "",
        3,
        None,
    ],
)
def test_untrusted_targets_are_refused(target: Any) -> None:
    with pytest.raises(UserError, match="only classes of brpo and torch.optim are built from files"):
        config.check_trusted({"a": [{"_target_": target}]})


@pytest.mark.parametrize("node", [{"_args_": [1]}, {"_recursive_": False}, {"a": "${oc.env:HOME}"}])
def test_other_instructions_in_stored_configurations_are_refused(node: Any) -> None:
    with pytest.raises(UserError, match="The run's configuration"):
        config.check_trusted(node)


def test_lists_by_family_resolve_in_place() -> None:
    """As `--cfg job --resolve` does it."""
    config.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", overrides=["algo=bdpo", "dataset=toy/rings"])
    OmegaConf.resolve(composed)
    assert composed.algo.actor.input_frequencies == [1, 2, 4, 8]


def test_trusted_targets() -> None:
    config.check_trusted({"_target_": "torch.optim.Adam", "_partial_": True})
    config.check_trusted({"_target_": "brpo.algorithms.iql.IQL", "actor": {"_target_": "brpo.modules.actors.GaussianActor"}})


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["algo=iql", "eval.evry=3"], "error: Key 'evry' is not in struct: eval has episodes, every, mode, processes."),
        (
            ["algo.behavior.hidden=[8]"],
            "error: Key 'hidden' is not in struct: algo.behavior follows algo.actor.",
        ),
        (["epochs=3"], "error: Key 'epochs' is not in struct: the configuration has algo, batch_size, "),
        (["algo=iqll"], "error: In 'train': Could not find 'algo/iqll' Available options in 'algo': awac bc "),
    ],
)
def test_a_wrong_name_comes_with_the_right_ones(overrides: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: compose_config(*overrides)) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)
    assert "hydra" not in said
    assert "provider" not in said


@pytest.mark.parametrize(
    ("typed", "places"),
    [
        ("temperature=1", "algo.temperature"),
        ("lr=1e-3", "algo.optimizer.lr"),
        ("seed=0", "seeds"),
        ("algo.lr=1e-3", "algo.optimizer.lr"),
        ("chunk=5", "engine.chunk"),
        ("hidden=[8]", "algo.actor.hidden or algo.critic.hidden or algo.value.hidden"),
        ("algo.actor.hiden=[8]", "algo.actor.hidden"),
        ("algo.optimzer.lr=1", "algo.optimizer"),
        ("dataste=toy/moons", "dataset"),
        ("algo.critic.critcs=5", "algo.critic.critics"),
        ("algo.regularizer.divergence=kl", "algo.divergence"),
    ],
)
def test_a_key_in_the_wrong_place_comes_with_the_right_one(
    typed: str, places: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(lambda: compose_config(typed)) == 2
    assert capsys.readouterr().err.endswith(f". Did you mean {places}?\n")


def test_an_option_that_wants_a_plus(capsys: pytest.CaptureFixture[str]) -> None:
    """The algorithm's file does not name it; whether its class takes it is seen when it is built."""
    assert exit_code_of(lambda: compose_config("algo.learning_rates.actor=1")) == 2
    assert capsys.readouterr().err.endswith(". What it takes besides wants a plus: +algo.learning_rates=...\n")
    for elsewhere in ("model=iql", "data.nope=1"):  # no class, and no key of the kind
        assert exit_code_of(lambda elsewhere=elsewhere: compose_config(elsewhere)) == 2
        said = capsys.readouterr().err
        assert said.endswith(".\n") and "Did you mean" not in said


def test_what_a_slip_says_imports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder may name any target, and is composed before its targets are checked."""
    for target in ("a_module_that_is_not_there.X", ".a.b", "${nope}"):
        assert exit_code_of(lambda target=target: compose_config(f"algo._target_={target}", "algo.nope=1")) == 2
        assert "Key 'nope' is not in struct: algo has " in capsys.readouterr().err


def test_an_argument_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: compose_config("algo.actor.hidden=[8,")) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: algo.actor.hidden=[8, cannot be read: no viable alternative at input '[8,'")
    assert said.endswith("""and quotes in the value around spaces, = and brackets that are no list: 'run_dir="a=b"'.""")
    compose_config('run_dir="a=b(1)"')


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."), torch.AcceleratorError("CUDA error: out of memory"), MemoryError(),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), None,
    ],
)  # fmt: skip
def test_memory_that_runs_out_is_no_traceback(error: Exception | None, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        if error is not None:
            raise error
        torch.empty(10**15)

    assert exit_code_of(run) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: memory ran out: .*[^.]\. A training wants less with fewer seeds, .*\n", said)
    other = RuntimeError("The size of tensor a must match")

    def fail() -> None:
        raise other

    with pytest.raises(RuntimeError, match="must match"):
        exit_code_of(fail)


def test_a_slip_in_a_file_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slip.yaml").write_text("algo:\n  discount: 0.9\n   polyak: 1\n")

    def read() -> None:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            compose("slip")

    assert exit_code_of(read) == 2
    place = f"{tmp_path / 'slip.yaml'}, line 3, column 10"
    assert capsys.readouterr().err == f"error: {place}: mapping values are not allowed here.\n"


def test_options_lists_what_can_be_typed() -> None:
    names = known_options(classes_above(algorithm_class("iql")))
    assert names.startswith("Known options: actor, critic, value, expectile, ")
    assert not {"spec", "seeds", "max_updates"} & set(re.findall(r"\w+", names))


@pytest.mark.parametrize(
    ("algo", "dataset", "expected"),
    [
        ("iql", "mujoco/hopper/medium-v0", {"expectile": 0.7, "inverse_temperature": 3.0, "max_weight": 100.0}),
        ("iql", "D4RL/antmaze/umaze-v1", {"expectile": 0.9, "inverse_temperature": 10.0, "max_weight": 100.0}),
        ("iql", "D4RL/kitchen/complete-v2", {"expectile": 0.7, "inverse_temperature": 0.5}),
        ("iql", "mujoco/hopper/medium-v0", {"schedule": {"actor": "cosine"}}),
        ("td3_bc", "mujoco/hopper/medium-v0", {"q_coefficient": 2.5, "target_noise": 0.2, "target_noise_clip": 0.5}),
        ("td3_bc", "mujoco/hopper/medium-v0", {"policy_delay": 2}),
        ("awac", "mujoco/hopper/medium-v0", {"omega": "exp", "max_weight": 100.0}),
        ("sql", "mujoco/hopper/medium-v0", {"omega": "sparse", "max_weight": 100.0}),
        ("eql", "mujoco/hopper/medium-v0", {"sharpness": 10.0, "max_exponent": 5.0, "max_weight": 100.0}),
        ("xql", "mujoco/hopper/medium-v0", {"max_exponent": 7.0, "huber_delta": 20.0, "subtract_max": True}),
        ("sfac", "mujoco/hopper/medium-v0", {"max_weight": 100.0, "max_ratio": 20.0, "schedule": {"actor": "cosine"}}),
        ("bdpo", "D4RL/antmaze/umaze-v1", {"discount": 0.995, "over_samples": "max"}),
        ("bdpo", "mujoco/hopper/medium-v0", {"discount": 0.99, "over_samples": "mean"}),
    ],
)
def test_values_of_the_papers(algo: str, dataset: str, expected: dict[str, Any]) -> None:
    """A slip of a digit in conf/algo changes what is learned without a word."""
    options = compose_config(f"algo={algo}", f"dataset={dataset}")["algo"]
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize("algo", ["awac", "eql", "iql", "sfac", "sql", "td3_bc", "xql"])
def test_what_all_baselines_have_in_common(algo: str) -> None:
    config = compose_config(f"algo={algo}", "dataset=mujoco/hopper/medium-v0")
    options = config["algo"]
    assert (config["batch_size"], options["discount"], options["polyak"]) == (256, 0.99, 0.005)
    assert (options["optimizer"]["lr"], options["critic"]["critics"], options["critic"]["hidden"]) == (3e-4, 2, [256, 256])


def test_rewards_by_family() -> None:
    """AntMaze's are shifted by -1, or times 100 under BDPO; returns of the others span 1000."""

    def rewards(*overrides: str) -> tuple[Any, float]:
        data = compose_config(*overrides)["data"]
        return data["reward_scale"], data["reward_shift"]

    assert rewards("algo=iql", "dataset=D4RL/antmaze/umaze-v1") == (1.0, -1.0)
    assert rewards("algo=bdpo", "dataset=D4RL/antmaze/umaze-v1") == (100.0, 0.0)
    assert rewards("algo=iql", "dataset=mujoco/hopper/medium-v0") == ("return_range", 0.0)
    assert rewards("algo=iql", "dataset=toy/moons") == (1.0, 0.0)
