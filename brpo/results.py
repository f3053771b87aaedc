"""What a run leaves for readers: the content of `result.json`, and the page of hyper-parameters."""

import contextlib
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from brpo import config as configuration
from brpo import runs
from brpo.callbacks.recorder import Recorder
from brpo.engine.ranks import Ranks
from brpo.evaluation import environments
from brpo.evaluation.scores import spread
from brpo.types import DataSpec


class RunLogger(TensorBoardLogger):
    """TensorBoard's events in the run folder; `config.yaml` already holds what `hparams.yaml` would."""

    def save(self) -> None:
        """Nothing beyond the events."""


def summarize(
    config: dict[str, Any],
    spec: DataSpec,
    recorder: Recorder,
    updates_made: int,
    engine: dict[str, Any],
    commit: str | None,
) -> dict[str, Any]:
    """The content of `result.json`.

    Args:
        config: the plain configuration.
        spec: what is known about the data.
        recorder: the evaluations and clocks.
        updates_made: by all parts of the run.
        engine: what made them, see `describe_engine`.
        commit: of the code, as it was when this part of the run began.
    """
    environment = None
    with contextlib.suppress(environments.EnvironmentUnavailable):
        environment = environments.describe(spec.environment)["id"]
    seeds = configuration.seed_list(config["seeds"])
    rows, kind = recorder.comparable, recorder.kind
    updates = sorted({row["update"] for row in rows})

    def at(update: int | None, key: str) -> list[Any] | None:
        by_seed = {row["seed"]: row.get(key) for row in rows if row["update"] == update}
        values = [by_seed.get(seed) for seed in seeds]
        return None if None in values else values

    def mean_over_training(key: str) -> list[Any] | None:
        table = [at(update, key) for update in updates]
        if not table or any(row is None for row in table):
            return None
        return [float(value) for value in np.mean(np.array(table, dtype=float), axis=0)]

    def reported(update: int | None) -> dict[str, Any]:
        return {name: at(update, column) for name, column in kind.reported.items()}

    return {
        "algo": configuration.algorithm_name(config),
        "dataset": {"id": spec.dataset_id, "digest": spec.digest, "references": [spec.reference_min, spec.reference_max]},
        "env": {"id": environment, "version": runs.versions().get("gymnasium")},
        "seeds": seeds,
        "updates": updates_made,
        "checkpoint_rule": kind.rule,
        "final": reported(updates_made),  # null where the last part had no environment
        "best": {**reported(recorder.best_update), "update": recorder.best_update},
        "auc": {name: mean_over_training(column) for name, column in kind.reported.items()},
        "worst_episode": at(updates_made, "return_worst"),
        "cvar": at(updates_made, "return_cvar"),
        "evaluation": {"mode": config["eval"]["mode"], "episodes": config["eval"]["episodes"]},
        "engine": engine,
        "updates_per_second": updates_made / recorder.train_seconds if recorder.train_seconds else None,
        "wall_seconds": recorder.wall_seconds(),
        "cpu_seconds": recorder.cpu_seconds(),
        "parts": recorder.parts,
        "versions": runs.versions(),
        "git": commit,
        "config": config,
    }


def agreement(earlier: dict[str, Any], later: dict[str, Any]) -> str:
    """What two results were made from alike and what not, and whether their final numbers are the same, in words."""
    same, other = [], []

    def compare(what: str, equal: bool, details: str = "") -> None:
        (same if equal else other).append(what if equal or not details else f"{what} ({details})")

    compare("data", all(earlier["dataset"].get(key) == later["dataset"][key] for key in ("id", "digest")))
    codes = [[part.get("code") for part in result.get("parts") or [{}]] for result in (earlier, later)]
    unchanged = codes[0][-1:] * len(codes[0]) == codes[0]
    compare("code", unchanged and codes[0][-1] == codes[1][-1], "" if codes[0][-1] else "there not known")
    packages = dict.fromkeys((*earlier.get("versions", {}), *later["versions"]))
    versions = [(name, *(result.get("versions", {}).get(name, "none") for result in (earlier, later))) for name in packages]
    changed = [f"{name} {there} there and {here} here" for name, there, here in versions if there != here]
    compare("versions", not changed, ", ".join(changed))
    compare("device", (earlier.get("engine") or {}).get("device") == later["engine"]["device"])
    keys = [key for key in configuration.differing(earlier["config"], later["config"]) if key not in ("run_dir", "resume")]
    compare("options", not keys, ", ".join(keys))
    parts = [f"the same {', '.join(same)}" if same else "", f"other {', other '.join(other)}" if other else ""]
    known = {name: values for name, values in later["final"].items() if values is not None and earlier["final"].get(name)}
    if known and all(earlier["final"][name] == values for name, values in known.items()):
        parts.append("the final numbers are the same to the last digit")
    else:
        parts += [
            f"final {name} {spread(earlier['final'][name], 2)} there and {spread(values, 2)} here"
            for name, values in known.items()
        ]
    return "; ".join(filter(None, parts))


def describe_engine(name: str, device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """What made the updates: engine, GPU or number of CPU threads, processes."""
    threads = f"{device.type}, {torch.get_num_threads()} thread(s)"
    return {
        "name": name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
        "processes": ranks.world,
        "parallel": ranks.mode if ranks.world > 1 else None,
    }


def log_hyperparameters(folder: runs.RunFolder, config: dict[str, Any], result: dict[str, Any]) -> None:
    """Hyper-parameters with the final metrics, for TensorBoard's HPARAMS page."""
    metrics = {f"final/{name}": float(np.mean(values)) for name, values in result["final"].items() if values is not None}
    logger = RunLogger(folder.path, name="", version="", default_hp_metric=False)
    parameters = {key: value for key, value in configuration.flatten(config).items() if key != "run_dir"}
    logger.log_hyperparams({key: str(value) if isinstance(value, list) else value for key, value in parameters.items()},
                           metrics or None, step=result["updates"])  # fmt: skip
    logger.finalize("success")
