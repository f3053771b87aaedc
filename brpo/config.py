"""Configuration: the one resolver, building objects from nodes, and checks that need the whole configuration."""

import importlib
import inspect
import re
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from brpo.datasets.ids import is_toy
from brpo.errors import UserError
from brpo.evaluation.kinds import MODES
from brpo.options import OptionRefused, classes_above, in_words, is_number, known_options, meant
from brpo.outside import VARIABLE, own_packages
from brpo.sweeps.plan import sweep_jobs

KEYS = (
    "algo", "data", "engine", "trainer", "dataset", "seeds", "max_updates", "batch_size", "eval", "behavior", "parallel",
    "run_dir", "resume", "callbacks", "loggers", "profile", "debug",
)  # fmt: skip
DATA = (
    "storage", "normalize_observations", "reward_scale", "reward_shift", "return_temperature", "heldout", "eta", "family",
)  # fmt: skip
EVALUATION = ("every", "episodes", "processes", "mode")
ENGINE = ("name", "chunk", "threads", "matmul_precision", "products", "backend", "compiled")
USERS_OWN = ("callbacks", "loggers")  # code of the user's, which no file is trusted to name
# What a resumed run may change. Everything else would make its result one of no configuration.
RESUME_MAY_CHANGE = (
    "max_updates", "eval", "engine", "parallel", "trainer", "profile", "debug", "resume", "run_dir", *USERS_OWN,
    "data.storage",
)  # fmt: skip
ENGINES = ("auto", "eager", "compile", "cudagraph")
PARALLEL = ("auto", "seeds", "data")
FAMILIES = (  # words of data set ids that by_family knows
    "default", "mujoco", "antmaze", "kitchen", "toy", "hopper", "halfcheetah", "walker2d", "umaze", "medium", "large",
    "diverse", "replay", "expert",
)  # fmt: skip
# Options of Lightning's trainer that manual optimization refuses too late or does not heed, or that move the end of a
# training without its knowing, and what stands for them.
NOT_THE_TRAINERS = {
    "gradient_clip_val": "algo.gradient_clip",
    "accumulate_grad_batches": "batch_size",
    "max_steps": "max_updates",
    "fast_dev_run": "trainer=smoke",
    "max_epochs": "max_updates",
    "min_steps": "max_updates",
    "min_epochs": "max_updates",
    "limit_train_batches": "max_updates",
    "overfit_batches": "a data set with few episodes",
    "logger": "loggers",
    "callbacks": "callbacks",
    "default_root_dir": "run_dir",
    "strategy": "parallel",
}
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
TRUSTED_MODULES = ("brpo", "torch.optim")


def by_family(table: Any, *, _root_: Any) -> Any:
    """The value of the data set's family: of the first key that is a word of `data.family`, else of the data set id.

    A key of several words, `toy/rings`, is that of data sets with all of them.

    Raises:
        UserError: the family is not in the table, which has no `default` either.
    """
    words = set(family_words(str(_root_.dataset), _root_.data.family))
    for key in table:
        if words.issuperset(_words(str(key))):
            return _value(table[key])
    if "default" not in table:
        raise UserError(f"No value for the family of {_root_.dataset}; known: {', '.join(map(str, table))}.")
    return _value(table["default"])


def family_words(dataset: str, chosen: str | None) -> list[str]:
    """The words that `by_family` goes by: those of `data.family`, else of the data set id.

    `toy` in an id means the two-dimensional tasks, whose ids begin with it: mylab/toy-car-v0 is an environment.
    """
    words = _words(str(chosen or dataset))
    return words if chosen or is_toy(dataset) else [word for word in words if word != "toy"]


def _value(found: Any) -> Any:
    """A list as a node of its own: `--cfg job --resolve` could not put another one in its place."""
    return OmegaConf.create(found) if isinstance(found, list) else found


def _words(dataset_id: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", dataset_id.lower())


def register_resolvers() -> None:
    """Make `${by_family:{...}}` and `${sweep_jobs:}` known to OmegaConf (again, where they are already)."""
    OmegaConf.register_new_resolver("by_family", by_family, replace=True)
    OmegaConf.register_new_resolver("sweep_jobs", sweep_jobs, replace=True)


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain, resolved containers: what checkpoints and result files hold.

    Without `like`: the options that it stands for are there themselves.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    for key in ("hydra", "like"):
        plain.pop(key, None)
    return plain  # type: ignore[return-value]


def build(node: Any, *arguments: Any, place: str, **keywords: Any) -> Any:
    """Instantiate the node that stands at `place` of the configuration.

    Raises:
        UserError: the class refuses an option, or does not know it.
    """
    try:
        return instantiate(node, *arguments, _convert_="all", **keywords)
    except InstantiationException as error:
        raise _as_user_error(error, node, place) from error


def _as_user_error(error: InstantiationException, node: Any, place: str) -> Exception:
    cause: BaseException = error
    while cause.__cause__ is not None and isinstance(cause, InstantiationException):
        cause = cause.__cause__
    target = str(node.get("_target_", "")) if hasattr(node, "get") else ""
    if isinstance(cause, OptionRefused):
        return cause.of(place)
    if isinstance(cause, ValueError):
        return UserError(str(cause))
    if isinstance(cause, TypeError):
        words, classes = in_words(cause), classes_above(_class_of(target))
        owner = words.partition(" ")[0]
        if owner not in [each.__name__ for each in classes]:  # of what the class was about to build
            return UserError(f"{target}: {words}.")
        own = f"{classes[0].__name__}{words.removeprefix(owner)}"  # and not a base class
        return UserError(f"{own}. {known_options(classes)}")
    return UserError(" ".join(str(cause).split()))


def _class_of(target: str) -> Any:
    """What a target names; None where there is nothing."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def dotted_key(override: str) -> str:
    """The key of an override, `algo.optimizer.lr` of `+algo.optimizer.lr=1`."""
    return override.lstrip("+~").split("=")[0]


def algorithm_name(config: Any) -> str:
    """The name of the algorithm's module, `sfac`."""
    return str(config["algo"]["_target_"]).split(".")[-2:][0]


def seed_list(seeds: Any) -> list[int]:
    """`n` as [0, ..., n-1]; a list as it is.

    Raises:
        UserError: no whole numbers of at least 0, none at all, or one twice.
    """
    allowed = "a number n >= 1 for seeds 0..n-1, or a list of different whole numbers >= 0, as in seeds=[3,7]"
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds >= 1:
        return list(range(seeds))
    if isinstance(seeds, list) and seeds:
        whole = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63 for seed in seeds)
        if whole and len(set(seeds)) == len(seeds):
            return list(seeds)
    raise UserError(f"seeds={seeds} is not allowed; it must be {allowed}.")


def check_config(config: dict[str, Any]) -> None:
    """Refuse values that would fail later, or silently mean something else.

    Raises:
        UserError: names the key, the value and what is allowed.
    """

    def require(key: str, value: Any, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"{key}={value} is not allowed; it must be {allowed}.")

    for key in ("algo", "data", "engine", "trainer", "eval"):
        require(key, config.get(key), isinstance(config.get(key), dict), f"a group or a mapping, as in {key}.name=value")
    target = config["algo"].get("_target_")
    require("algo._target_", target, isinstance(target, str), "a class, as that of conf/algo/iql.yaml is")
    for group, known in (("", KEYS), ("data.", DATA), ("eval.", EVALUATION), ("engine.", ENGINE)):
        node = config[group.removesuffix(".")] if group else config
        for key in sorted(set(node) - set(known)):
            names = ", ".join(f"{group}{name}" for name in known)
            elsewhere = meant(f"{group}{key}", flatten(config))
            raise UserError(f"{group}{key} is no option. Known: {names}.{elsewhere}")
        if lacking := [f"{group}{key}" for key in known if key not in node]:
            raise UserError(f"{lacking[0]} cannot be left out: give it a value, or take ~{lacking[0]} away.")
    for key in ("seeds", "max_updates", "spec"):  # what an algorithm is given beside its node
        if key in config["algo"]:
            typed = f"{key}={config['algo'][key]}".replace(" ", "")
            instead = f"{key} is a key of its own, {typed}" if key in KEYS else "it is found from the data"
            raise UserError(f"algo.{key} is no option: {instead}.")
    for key in ("profile", "debug"):
        require(key, config[key], isinstance(config[key], bool), "true or false")
    optimizer = config["algo"].get("optimizer", {"_target_": ""})
    named = isinstance(optimizer, dict) and "_target_" in optimizer
    require("algo.optimizer", optimizer, named, "a mapping with a _target_, as conf/algo has one")
    rate = optimizer.get("lr", 0)
    require("algo.optimizer.lr", rate, is_number(rate) and rate >= 0, "a number >= 0")
    for key in USERS_OWN:
        node = config[key]
        require(key, node, node is None or isinstance(node, dict), f"a mapping of names to {key}")
    for key in ("run_dir", "resume"):
        require(key, config[key], config[key] is None or isinstance(config[key], str), "a path")
    engine = config["engine"]["name"]
    require("engine.name", engine, engine in ENGINES, f"one of {', '.join(ENGINES)}")
    require("parallel", config["parallel"], config["parallel"] in PARALLEL, f"one of {', '.join(PARALLEL)}")
    family = config["data"]["family"]
    known = family is None or (isinstance(family, str) and set(_words(family)) <= set(FAMILIES))
    require("data.family", family, known, f"null, or words like mujoco/hopper, of: {', '.join(FAMILIES)}")
    for key, value in (
        ("max_updates", config["max_updates"]),
        ("batch_size", config["batch_size"]),
        ("eval.every", config["eval"]["every"]),
        ("eval.episodes", config["eval"]["episodes"]),
        ("engine.chunk", config["engine"]["chunk"]),
    ):
        exponential = isinstance(value, float) and value >= 1 and value.is_integer()  # 1e5 is a float
        written = f", as {value:.0f}" if exponential else ""
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(key, value, whole and value >= 1, f"a whole number >= 1{written}")
    for key, value in (
        ("eval.processes", config["eval"]["processes"]),
        ("engine.threads", config["engine"]["threads"]),
    ):
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(key, value, value is None or (whole and value >= 1), "a whole number >= 1, or null")
    precision = config["engine"]["matmul_precision"]
    require("engine.matmul_precision", precision, precision in ("highest", "high", "medium"), "highest, high or medium")
    products = config["engine"]["products"]
    require("engine.products", products, products in ("auto", "blas", "onednn"), "auto, blas or onednn")
    compiled = config["engine"]["compiled"]
    require("engine.compiled", compiled, compiled == "auto" or isinstance(compiled, bool), "auto, true or false")
    mode = config["eval"]["mode"]
    require("eval.mode", mode, mode in MODES, "mean or sampled")
    behavior = config["behavior"]
    require("behavior", behavior, isinstance(behavior, str) and behavior != "", "auto, fresh, or the path of a run or file")
    dataset, scale = config["dataset"], config["data"]["reward_scale"]
    require("dataset", dataset, isinstance(dataset, str), "a Minari id or a toy task")
    if is_toy(dataset) and family and "toy" not in _words(family) and (mode != "sampled" or scale != 1):
        raise UserError(
            f"data.family={family} brings eval.mode={mode} and data.reward_scale={scale}, which are not allowed on "
            f"{dataset}: leave it out."
        )
    check_evaluation(dataset, mode)
    heldout, shift = config["data"]["heldout"], config["data"]["reward_shift"]
    normalize = config["data"]["normalize_observations"]
    require("data.heldout", heldout, is_number(heldout) and 0 <= heldout < 1, "a share of the episodes in [0, 1)")
    require("data.reward_shift", shift, is_number(shift), "a number")
    require("data.normalize_observations", normalize, isinstance(normalize, bool), "true or false")
    temperature = config["data"]["return_temperature"]
    require("data.return_temperature", temperature, temperature is None or (is_number(temperature) and temperature > 0),
            "a number > 0, or null")  # fmt: skip
    eta = config["data"]["eta"]
    require("data.eta", eta, is_number(eta) and eta > 0, "a number > 0")
    same_units = scale == 1 or not is_toy(dataset)
    require("data.reward_scale", scale, same_units, "1 on a toy task: temperatures and data.eta are in units of the energy")
    seed_list(config["seeds"])
    trainer = config["trainer"]
    accelerator = trainer.get("accelerator", "auto")
    require("trainer.accelerator", accelerator, accelerator in ACCELERATORS, f"one of {', '.join(ACCELERATORS)}")
    for name, ours in NOT_THE_TRAINERS.items():
        require(f"trainer.{name}", trainer.get(name), name not in trainer, f"left out: {ours} is for that")
    if str(trainer.get("precision")) in ("16-mixed", "16", "16-true"):
        raise UserError(
            f"trainer.precision={trainer['precision']} is not allowed: float16 needs a gradient scaler and overflows in "
            f"density ratios. Use trainer.precision=bf16-mixed."
        )
    require("trainer.precision", trainer.get("precision"), trainer.get("precision") in ("32-true", "bf16-mixed"),
            "32-true or bf16-mixed")  # fmt: skip
    if compiled is True and trainer["precision"] != "32-true":
        raise UserError(
            f"engine.compiled=true does not go together with trainer.precision={trainer['precision']}: gradients of "
            f"densities, which stay in float32, come out wrong. Use engine.compiled=auto or false."
        )
    check_own_classes(config)


class Untrusted(UserError):
    """A class that no file may name."""


def check_own_classes(config: dict[str, Any]) -> None:
    """Refuse at the start what no file is trusted to name, and so no run could be evaluated or resumed with.

    Raises:
        UserError: names the target, and where an algorithm belongs.
    """
    try:
        check_trusted({key: value for key, value in config.items() if key not in USERS_OWN})
    except Untrusted as error:
        raise UserError(
            f"{error} A run with it could be neither evaluated nor resumed: an algorithm and its parts lie below brpo/, or "
            f"in a package of yours that you name in the shell, {VARIABLE}=PACKAGE (docs/extending.md, 'Outside the clone')."
        ) from error


def check_evaluation(dataset: str, mode: str) -> None:
    """Refuse to judge a toy task's policy by its mean.

    Raises:
        UserError: names the mode and what is allowed.
    """
    if is_toy(dataset) and mode != "sampled":
        raise UserError(f"eval.mode={mode} is not allowed on {dataset}, which compares samples; it must be sampled.")


def differing(stored: Any, wanted: Any) -> dict[str, str]:
    """What differs: dotted keys, sorted, to words that give both values. What is not there counts as null.

    So a new option that is null by default, which changes nothing, leaves earlier runs and files as good as they were.
    """
    left, right = flatten(stored), flatten(wanted)
    keys = sorted(key for key in {**left, **right} if left.get(key) != right.get(key))
    return {k: f"{k or 'it'} is {left.get(k, 'not set')} there and {right.get(k, 'not set')} here" for k in keys}


def against_resuming(stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, str]:
    """What differs between a run's configuration and that which is to go on with it, and may not."""
    return {key: words for key, words in differing(stored, wanted).items() if not resume_may_change(key)}


def resume_may_change(key: str) -> bool:
    """Whether a resumed run may have another value of a dotted key."""
    return key in RESUME_MAY_CHANGE or key.split(".")[0] in RESUME_MAY_CHANGE


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaves; lists are leaves."""
    if isinstance(node, dict) and node:
        result: dict[str, Any] = {}
        for key, value in node.items():
            result.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
        return result
    return {prefix: node}


def check_trusted(node: Any) -> None:
    """Refuse a configuration out of a file that names anything but classes of brpo, torch.optim and `BRPO_IMPORT`.

    The name must lie in one of these packages and resolve to a class defined there: `brpo.files.os.system` does not.

    Raises:
        UserError: names the target.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                _check_target(value)
            else:
                check_trusted(value)
        unknown = [key for key in node if isinstance(key, str) and key.startswith("_")]
        if set(unknown) - {"_target_", "_partial_"}:
            other = sorted(set(unknown) - {"_target_", "_partial_"})
            raise UserError(f"The run's configuration has the keys {other}; only _target_ and _partial_ may be.")
    elif isinstance(node, list):
        for value in node:
            check_trusted(value)
    elif isinstance(node, str) and "${" in node:
        raise UserError(f"The run's configuration holds the interpolation {node!r}; it must be resolved.")


def _check_target(target: Any) -> None:
    packages = (*TRUSTED_MODULES, *own_packages())
    refusal = Untrusted(
        f"The run's configuration names {target!r}; only classes of {' and '.join(TRUSTED_MODULES)} are built from files, "
        f"and those of packages that {VARIABLE} names in the shell."
    )
    if not isinstance(target, str) or not target.startswith(tuple(f"{package}." for package in packages)):
        raise refusal
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever is wrong with code of the user's own
        raise UserError(f"{refusal} It cannot be imported: {' '.join(str(error).split())}.") from error
    home = getattr(found, "__module__", "")
    if not (inspect.isclass(found) and f"{home}.".startswith(tuple(f"{package}." for package in packages))):
        raise refusal
