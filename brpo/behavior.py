"""Pre-trained behaviour models in files: one for each seed, found again by all that it was made from.

A file is a checkpoint (brpo/engine/checkpoint_io.py) with the weights of the pre-trained parts of one seed, and its
recipe. Every member's numbers are the same alone and in a group, so a group takes its members from files of any others.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brpo import code, resume
from brpo import config as configuration
from brpo.algorithms.base import OfflineAlgorithm
from brpo.console import say
from brpo.engine import checkpoint_io
from brpo.errors import UserError
from brpo.files import user_cache, write_atomically
from brpo.runs import RunFolder
from brpo.types import DataSpec

FORMAT = 2  # another number wherever the same recipe comes to other weights
# Options of `data` that change nothing for the model.
NOT_SEEN = ("storage", "family", "reward_scale", "reward_shift", "eta")
SEEN = ("observation_mean", "observation_std", "action_low", "action_high")  # the units that its inputs have

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """The pre-trained parts of one seed.

    Attributes:
        weights: by qualified name, without the seed axis.
        source: the file that they were read from; None where this run has trained them.
    """

    weights: dict[str, Tensor]
    source: str | None = None

    def digest(self) -> str:
        """SHA-256 of names, shapes and numbers."""
        digest = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()


def recipe(config: dict[str, Any], algorithm: OfflineAlgorithm, seed: int) -> Recipe:
    """All that the pre-trained parts of a seed depend on, beside code outside their classes: plain values."""
    algo, ranks, units = config["algo"], algorithm.ranks, algorithm.spec.to_dict()
    options = ("optimizer", "gradient_clip", "pretrain_updates", *algorithm.pretrain_options)
    return {
        "format": FORMAT,
        "algorithm": algo["_target_"],
        "parts": {part: algo.get(part) for part in algorithm.pretrained},
        "options": {name: algo.get(name) for name in options},
        "schedule": {part: algo["schedule"].get(part, "constant") for part in algorithm.pretrained},
        "learning_rates": {part: (algo.get("learning_rates") or {}).get(part) for part in algorithm.pretrained},
        "data": {name: value for name, value in config["data"].items() if name not in NOT_SEEN and value is not None}
        | {"digest": algorithm.spec.digest}
        | {name: units[name] for name in SEEN},
        "batch_size": config["batch_size"],
        "batches": ranks.world if ranks.averages else 1,  # in an update: with parallel=data each process has its own
        "precision": [config["trainer"]["precision"], config["engine"]["matmul_precision"]],
        "code": _code(algorithm),
        "seed": seed,
    }


def _code(algorithm: OfflineAlgorithm) -> str:
    """SHA-256 of the code of the algorithm's class, of those of its pre-trained parts, and of `brpo/functional/`.

    Who writes a `pretrain` or a network would else be given the model of the code before.
    """
    parts = [getattr(algorithm, name) for name in (*algorithm.pretrained, *algorithm.pretrained_also)]
    owners = [type(algorithm), *(type(module) for part in parts for module in part.modules())]
    kinds = {kind for owner in owners for kind in owner.__mro__} - set(OfflineAlgorithm.__mro__)
    ours = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
    return code.of_classes(ours, code.functions())


def cached_file(made_of: Recipe, dataset_id: str) -> Path:
    """Where the member of a recipe lies, or would."""
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return user_cache() / "behavior" / f"{dataset_id.replace('/', '-')}-seed{made_of['seed']}-{key}.ckpt"


def weights_of(algorithm: OfflineAlgorithm) -> dict[str, Tensor]:
    """The weights that pre-training makes, (seeds, ...) by qualified name: those of the module itself."""
    parts = (*algorithm.pretrained, *algorithm.pretrained_also)
    return {name: value for name, value in algorithm.named_parameters() if name.split(".")[0] in parts}


def members_of(algorithm: OfflineAlgorithm) -> list[Member]:
    """A copy of the pre-trained parts of every seed."""
    weights = {name: value.detach().cpu().clone() for name, value in weights_of(algorithm).items()}
    return [Member({name: value[k] for name, value in weights.items()}) for k in range(len(algorithm.seeds))]


@torch.no_grad()
def install(algorithm: OfflineAlgorithm, members: list[Member]) -> None:
    """Put members, one for each seed, in the place of the algorithm's own."""
    for name, value in weights_of(algorithm).items():
        value.copy_(torch.stack([member.weights[name] for member in members]))


def write(path: Path, member: Member, made_of: Recipe, spec: DataSpec) -> None:
    """Write a member, atomically: processes that write the same one at once do not meet.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.unsqueeze(0).clone() for name, value in member.weights.items()}
    content = {"recipe": made_of, "digest": member.digest(), "updates": 0, "spec": spec.to_dict()}
    seeds = torch.tensor([made_of["seed"]])
    write_atomically(path, checkpoint_io.encode({"state_dict": {"seeds": seeds, **state}, "brpo": content}))


def read_cached(path: Path, made_of: Recipe, algorithm: OfflineAlgorithm) -> Member:
    """The member of a recipe out of its file.

    Raises:
        UserError: the file is torn, altered, or of another recipe.
    """
    checkpoint = checkpoint_io.read(path)
    with _of_this_version(path):
        other = configuration.differing(checkpoint["brpo"].get("recipe"), made_of)
        if other:
            raise UserError(f"The behaviour model {path} was made with other values: {', '.join(other.values())}.")
        return Member(_own_weights(path, checkpoint["state_dict"], algorithm, 0), str(path))


def has(path: Path, made_of: Recipe, algorithm: OfflineAlgorithm) -> bool:
    """Whether there is a good file of a recipe."""
    try:
        read_cached(path, made_of, algorithm)
    except UserError:
        return False
    return True


def read_chosen(path: Path, config: dict[str, Any], algorithm: OfflineAlgorithm) -> list[Member]:
    """The members for the algorithm's seeds out of what the user named: a run folder, a checkpoint, or a cached file.

    A file with one seed serves all seeds.

    Args:
        path: what was named.
        config: the configuration of the run.
        algorithm: that takes the members.

    Raises:
        UserError: there is nothing of the kind, or it holds another model; says which.
    """
    checkpoint, path = _read_any(path)
    with _of_this_version(path):
        return _chosen_members(path, checkpoint["brpo"], checkpoint["state_dict"], config, algorithm)


def _chosen_members(
    path: Path, ours: dict[str, Any], state: dict[str, Tensor], config: dict[str, Any], algorithm: OfflineAlgorithm
) -> list[Member]:
    algo = config["algo"]
    if int(ours["updates"]) < 0:
        raise UserError(f"behavior={path} has not finished its pre-training. Finish that run first: resume={path}.")
    made_of = ours.get("recipe", {})
    stored = {**made_of["parts"], **made_of["options"]} if made_of else ours.get("config", {}).get("algo", {})
    maker = str(made_of.get("algorithm") or ours.get("config", {}).get("algo", {}).get("_target_"))
    lacking = [part for part in algorithm.pretrained if stored.get(part) is None and algo.get(part) is not None]
    if maker != algo["_target_"] and lacking:
        mine = type(algorithm).__name__
        raise UserError(
            f"behavior={path} is of {maker.rpartition('.')[2]}, which has no algo.{lacking[0]} that {mine} could take. "
            f"Give a run of {mine}, or behavior=fresh to train one."
        )
    for option in (*algorithm.pretrained, *algorithm.pretrained_by):
        other = configuration.differing(stored.get(option), algo.get(option))
        if other:
            raise UserError(
                f"behavior={path} has another algo.{option}: {', '.join(other.values())}. Give the same values, or "
                f"behavior=fresh to train one."
            )
    _check_units(path, ours["spec"], algorithm.spec)
    data = made_of["data"] if made_of else ours["config"]["data"]
    theirs, mine = data.get("return_temperature"), config["data"]["return_temperature"]
    if theirs != mine:
        say(f"note: behavior={path} was fitted with data.return_temperature={theirs}, this run has {mine}")
    made, length = int(ours["updates"]), ours.get("config", {}).get("max_updates", 0)
    if maker != algo["_target_"] and made < length:  # the model is what that run trains
        say(f"note: behavior={path} is of a run that has made {made} of its {length} updates")
    held, wanted = state["seeds"].tolist(), algorithm.seeds.tolist()
    missing = [seed for seed in wanted if seed not in held]
    if missing and len(held) > 1:
        raise UserError(
            f"behavior={path} has the seeds {held} and not {missing}. Give seeds that it has, or one of one seed."
        )
    if len(wanted) > len(held):
        say(f"note: behavior={path} is one model for {len(wanted)} seeds: no spread over them has its share in it")
    positions = [held.index(seed) if seed in held else 0 for seed in wanted]
    return [Member(_own_weights(path, state, algorithm, k), str(path)) for k in positions]


@contextlib.contextmanager
def _of_this_version(path: Path) -> Iterator[None]:
    """A file that has not what we look for is one of another version, or none of ours."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"The behaviour model {path} does not fit this version of brpo ({error!r}).") from error


def _read_any(path: Path) -> tuple[dict[str, Any], Path]:
    """A checkpoint and its path: of a run folder the newest whole one."""
    if not path.exists():
        raise UserError(f"behavior={path} does not exist. Give a run folder, a checkpoint, auto or fresh.")
    if not path.is_dir():
        return checkpoint_io.read(path), path
    found, checkpoint, notice = resume.newest_checkpoint(RunFolder(path))
    if found is None or checkpoint is None:
        raise UserError(f"{notice} behavior={path} has no whole checkpoint. A run folder has checkpoints/last.ckpt.".strip())
    if notice:
        say(notice)
    return checkpoint, found


def _check_units(path: Path, stored: dict[str, Any], spec: DataSpec) -> None:
    ours = spec.to_dict()
    other = [name for name in SEEN if stored.get(name) != ours[name]]
    if other:
        raise UserError(
            f"behavior={path} was trained in other units: {', '.join(other)} differ. Use the data set and the "
            f"data.normalize_observations that it was trained with, or behavior=fresh."
        )
    if stored["digest"] != spec.digest:
        say(f"note: behavior={path} was trained on other data, {stored['dataset_id']}")


def _own_weights(path: Path, state: dict[str, Tensor], algorithm: OfflineAlgorithm, position: int) -> dict[str, Tensor]:
    """The weights of one member, copied out of a state for several."""
    weights = {}
    modules = {name.split(".")[0] for name in state}
    aliases = {} if modules >= set(algorithm.pretrained) else algorithm.pretrained_as
    for name, own in weights_of(algorithm).items():
        module, _, rest = name.partition(".")
        theirs = f"{aliases.get(module, module)}.{rest}"
        held = state.get(theirs)
        if held is None or held.shape[1:] != own.shape[1:] or held.dtype != own.dtype:
            found = "not there" if held is None else tuple(held.shape[1:])
            raise UserError(
                f"The behaviour model {path} is another network: {name} is {found}, and {tuple(own.shape[1:])} here. "
                f"Give the options that it was trained with, or behavior=fresh."
            )
        weights[name] = held[position].clone()
    return weights
