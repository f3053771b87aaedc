"""What `train.py` does with a composed configuration: check, find what to resume, train, say what came out."""

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from brpo import config as configuration
from brpo import resume as resuming
from brpo import runs
from brpo.console import say
from brpo.engine.strategy import several_processes
from brpo.errors import UserError
from brpo.evaluation.kinds import kind_of
from brpo.evaluation.scores import spread
from brpo.exits import in_one_line
from brpo.files import typed_path
from brpo.outside import import_own
from brpo.results import agreement
from brpo.training import train

RUN_KEYS = (*(key for key in configuration.KEYS if key not in configuration.USERS_OWN), "actor")  # a group

_MAY_CHANGE = (
    f"A resumed run may change only {', '.join(configuration.RESUME_MAY_CHANGE)}. Give the others as they were, or start a "
    "new run."
)
_LIKE = "Leave out what does not go together with its options, or start a run without like."


def launch(composed: DictConfig, overrides: list[str], on_folder: Callable[[Path], None] | None = None) -> dict[str, Any]:
    """Start or resume the run of a configuration; gives what `brpo.training.train` does.

    Args:
        composed: what Hydra composed.
        overrides: what was typed.
        on_folder: called with the run's folder once it is certain, before training.

    Raises:
        UserError: see `brpo.training.train`.
    """
    import_own()
    config = configuration.to_plain(composed)
    silence_other_ranks()
    _refuse_processes_in_sweep(config)
    _refuse_ablation_without_sweep()
    if composed.like is not None:
        return _launch_like(str(composed.like), config["resume"], overrides, on_folder)
    resume = config["resume"]
    resumption: resuming.Resumption | None = None
    if resume == "auto":
        configuration.check_config(config)
        resumption = _automatic(config)
        if resumption is not None:
            _keep_the_length(config, resumption.folder.read_config()[0], overrides)
    elif resume is not None:
        resumption = resuming.resume_from(typed_path("resume", str(resume)))
        config, overrides = _continued_config(resumption.folder, overrides)
        configuration.check_config(config)
        elsewhere = config["run_dir"] and typed_path("run_dir", config["run_dir"]).resolve()
        if elsewhere and elsewhere != resumption.folder.path.resolve():
            raise UserError(
                f"run_dir={config['run_dir']} is not where resume={resume} goes on: {resumption.folder.path}. Leave it out; "
                f"to keep that run as it is, copy its folder and resume the copy."
            )
    else:
        configuration.check_config(config)
    if resumption is not None:
        known = [stored for stored in (resumption.folder.read_config()[0], resumption.config) if stored]
        others: dict[str, str] = {}
        for stored in known:
            others |= configuration.against_resuming(stored, config)
        if others:
            values, path = ", ".join(others.values()), resumption.folder.path
            if "algo._target_" in others:  # and so most of its options
                there = str(configuration.flatten(known[0]).get("algo._target_")).split(".")[-2:][0]
                way = f"Type algo={there}, or another run_dir." if resume == "auto" else "Leave algo= out."
                raise UserError(f"{path} is a run of {there}, not of {configuration.algorithm_name(config)}. {way}")
            keeps = f" resume={path} goes on with the options that it was started with." if resume == "auto" else ""
            raise UserError(f"{path} was started with other values: {values}. {_MAY_CHANGE}{keeps}")
        if resumption.folder.result.exists() and resumption.updates >= config["max_updates"]:
            say(f"already finished: {resumption.folder.path} ({resumption.folder.result})")
            if on_folder is not None:
                on_folder(resumption.folder.path)
            return {**resumption.folder.read_result(), "run_dir": str(resumption.folder.path)}
        if resumption.checkpoint is None and resumption.updates >= 0:
            raise UserError(
                f"{resumption.folder.path} ended after {resumption.updates} updates and has no whole checkpoint to go on "
                f"from. Start a new run in another folder, or delete this one."
            )
        if resumption.updates > config["max_updates"]:
            raise UserError(
                f"max_updates={config['max_updates']} is below the {resumption.updates} updates that "
                f"{resumption.checkpoint} has made."
            )
        say(resumption.notice)
    result = train(config, overrides, resumption, on_folder)
    report(result)
    return result


def _launch_like(
    like: str, resume: str | None, overrides: list[str], on_folder: Callable[[Path], None] | None
) -> dict[str, Any]:
    """Start a run with the options of another one, and say how the results compare where that one is finished.

    Raises:
        UserError: there is no such run, or what was typed does not go together with its options.
    """
    if resume is not None:
        raise UserError(f"like={like} starts a run and resume={resume} goes on with one: type one of them.")
    folder = runs.RunFolder(typed_path("like", like))
    if not folder.holds_run():
        raise UserError(f"like={like} is no run folder: it has no config.yaml.")
    config, kept = _continued_config(folder, overrides, _LIKE)
    configuration.check_config(config)
    earlier = folder.read_result() if folder.result.exists() else None
    if earlier is not None and config["dataset"] == earlier["dataset"].get("id"):
        result = train(config, kept, on_folder=on_folder, digest=earlier["dataset"].get("digest"))
    else:
        result = train(config, kept, on_folder=on_folder)
    report(result)
    if earlier is not None:
        say(f"like {like}: {agreement(earlier, result)}")
    return result


def _refuse_processes_in_sweep(config: dict[str, Any]) -> None:
    if several_processes(config["trainer"]) and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            f"trainer.devices={config['trainer'].get('devices')} is not possible in a sweep, whose jobs have one process "
            f"and one device each. Leave it at 1: a sweep uses several GPUs by running several jobs."
        )


def _refuse_ablation_without_sweep() -> None:
    if not HydraConfig.initialized() or HydraConfig.get().mode == RunMode.MULTIRUN:
        return
    if swept := dict(HydraConfig.get().sweeper.get("params") or {}):
        raise UserError(f"+sweep= varies {', '.join(map(str, swept))} from job to job: type -m before it, or leave it out.")


def silence_other_ranks() -> None:
    """Where several processes train together, rank 0 speaks."""
    if rank_zero_only.rank:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (as long as the process)


def _automatic(config: dict[str, Any]) -> resuming.Resumption | None:
    """`resume=auto`: the run in run_dir, else the newest unfinished one like this; None starts a run."""
    if config["run_dir"]:
        folder = runs.RunFolder(typed_path("run_dir", config["run_dir"]))
        found = folder if folder.holds_run() else None
    else:
        found = resuming.find_unfinished(config, configuration.algorithm_name(config))
    if found is None:
        say("resume=auto: no run to continue, starting one")
        return None
    return resuming.resume_in(found)


def _keep_the_length(config: dict[str, Any], stored: dict[str, Any], overrides: list[str]) -> None:
    """`resume=auto` goes on to the end that a run was started with, unless another is typed; all else must be the same."""
    if "max_updates" in stored and "max_updates" not in map(key_of, overrides):
        _keep(config, "max_updates", stored["max_updates"])


def _continued_config(
    folder: runs.RunFolder, overrides: list[str], advice: str = _MAY_CHANGE
) -> tuple[dict[str, Any], list[str]]:
    """`resume=PATH` continues that run: its own overrides, then the ones just typed, which are kept for the next time.

    The run's file decides what is composed: only keys of a run are taken from it (Hydra's own could import code while it
    composes), and nothing but our classes may come out. Callbacks and loggers are the user's: they must be typed again.
    """
    stored, typed_then = folder.read_config()
    _check_trusted(stored)
    if not isinstance(typed_then, list) or not all(isinstance(item, str) for item in typed_then):
        raise UserError(f"{folder.config} has no list of overrides; it is not one of ours.")
    kept = []
    for item in typed_then:
        key = key_of(item)
        if key in configuration.USERS_OWN:
            say(f"note: {item} is left out; type it again if the run is to go on with it")
        elif key == "sweep":
            continue  # what the sweep set for this job stands beside it
        elif key not in RUN_KEYS:
            raise UserError(f"{folder.config} holds the override {item!r}; a run has only {', '.join(RUN_KEYS)}.")
        elif key not in ("resume", "run_dir"):
            kept.append(item)
    typed = [item for item in overrides if key_of(item) not in ("resume", "like")]
    try:
        config = configuration.to_plain(compose("train", overrides=[*kept, *typed]))
    except HydraException as error:
        raise UserError(
            f"{folder.path} was started with: {' '.join(kept) or 'no options'}. Together with what was just typed "
            f"({' '.join(typed)}) this gives no configuration: {in_one_line(error)} A run that was started with "
            f"--config-dir wants it again. {advice}"
        ) from error
    _keep_defaults(config, stored, kept, typed)
    _check_trusted(config)
    return config, [*kept, *(item for item in typed if key_of(item) not in ("run_dir", *configuration.USERS_OWN))]


def _check_trusted(config: dict[str, Any]) -> None:
    configuration.check_trusted({key: value for key, value in config.items() if key not in configuration.USERS_OWN})


def _keep_defaults(config: dict[str, Any], stored: dict[str, Any], kept: list[str], typed: list[str]) -> None:
    """Options that nobody has typed stay as they were, since defaults may have changed after the run was started."""
    before = configuration.flatten(stored)
    today = configuration.flatten(configuration.to_plain(compose("train", overrides=kept)))
    names = tuple(configuration.dotted_key(item).rpartition("@")[2] + "." for item in typed)
    for key, value in configuration.flatten(config).items():
        chosen = f"{key}.".startswith(names) or value != today.get(key, ...)  # of a group, such as algo/size, by its values
        if not chosen and key in before and key not in ("resume", "run_dir") and key_of(key) in RUN_KEYS:
            _keep(config, key, before[key])


def _keep(config: dict[str, Any], key: str, stored: Any) -> None:
    """Set a dotted key to what a run was started with, and say so where that is another value."""
    *parents, name = key.split(".")
    node = functools.reduce(dict.__getitem__, parents, config)
    if node[name] != stored:
        say(f"note: {key}={stored}, as the run was started; today's default is {node[name]}")
        node[name] = stored


def key_of(override: str) -> str:
    """The top-level key of an override, `algo` of `+algo.optimizer.lr=1` and of `algo/size=paper`."""
    return re.split(r"[.=@/]", override.lstrip("+~"))[0]


def report(result: dict[str, Any]) -> None:
    """The last lines that a user sees."""
    kind, scored = kind_of(result["dataset"]["id"]), False
    for name in ("final", "best"):
        numbers = {key: result[name][key] for key in kind.reported if result[name][key] is not None}
        if not numbers:
            continue
        scored = True
        text = f"{name}: " + ", ".join(f"{kind.words[k]} {_over_seeds(v, kind.digits)}" for k, v in numbers.items())
        if name == "best":
            text += f" (at update {result['best']['update']})"
        say(text)
    say(
        f"{result['updates_per_second'] or 0:.0f} updates/s, {result['wall_seconds']:.0f} s; {result['run_dir']}/result.json"
    )
    if not scored:
        run = result["run_dir"]
        say(f"no scores; what was learned: brpo diagnose {run}; what it may be worth: brpo estimate {run}")


def _over_seeds(values: list[float], digits: int) -> str:
    return spread(values, digits) + (f" ({len(values)} seeds)" if len(values) > 1 else "")
