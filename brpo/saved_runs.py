"""Evaluating what a run saved: from a checkpoint file to scores and films. The file is not trusted."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brpo import config as configuration
from brpo import resume, runs
from brpo.algorithms.base import OfflineAlgorithm
from brpo.console import say
from brpo.datasets.ids import is_toy
from brpo.engine import checkpoint_io, ranks
from brpo.errors import UserError
from brpo.evaluation import environments
from brpo.evaluation.kinds import MODES, kind_of
from brpo.evaluation.make import columns, make_evaluator
from brpo.evaluation.rollout import FIRST_SEED
from brpo.options import require_one_of, require_whole
from brpo.outside import import_own
from brpo.types import DataSpec


def load_algorithm(
    path: Path | str, acting: Mapping[str, Any] | None = None, seed: int | None = None
) -> tuple[OfflineAlgorithm, dict[str, Any]]:
    """The algorithm of a checkpoint with its weights, on the CPU, and its configuration.

    Args:
        path: the checkpoint; of a run folder the last one.
        acting: options of `algo.acting` other than those of the run: no weight depends on them.
        seed: one of the run's: the member of this seed alone. None: all of them.

    Raises:
        UserError: the checkpoint is damaged, or names classes that are not ours; or it knows no such way of acting, or has
            not that seed.
    """
    import_own()
    path = checkpoint_of(path, "last")
    checkpoint = checkpoint_io.read(path)
    try:
        config, spec = checkpoint["brpo"]["config"], DataSpec.from_dict(checkpoint["brpo"]["spec"])
        configuration.check_trusted(config["algo"])
        _act_otherwise(config["algo"], acting or {}, path)
        seeds, state = configuration.seed_list(config["seeds"]), checkpoint["state_dict"]
        if seed is not None and seed not in seeds:
            raise UserError(f"{path} has no seed {seed}. It has {', '.join(map(str, seeds))}.")
        own = seeds if seed is None else [seed]
        algorithm = configuration.build(config["algo"], spec, place="algo", seeds=own, max_updates=config["max_updates"])
        if seed is not None:
            place = seeds.index(seed)
            state = ranks.own_state(state, ranks.seed_axis(algorithm), slice(place, place + 1))
        algorithm.load_state_dict(state)
        algorithm.on_load_checkpoint(checkpoint)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"The checkpoint {path} does not fit this version of brpo ({error}).") from error
    return algorithm.eval(), config


def _act_otherwise(algo: dict[str, Any], acting: Mapping[str, Any], path: Path) -> None:
    known = algo.get("acting", {})
    if unknown := [name for name in acting if name not in known]:
        allowed = f"it has {', '.join(sorted(known))}" if known else "diffusion policies alone have a choice"
        raise UserError(f"The policy of {path} has no choice of {' or '.join(unknown)}: {allowed}. Leave it out.")
    if acting:
        algo["acting"] = {**known, **acting}


def checkpoint_of(run: Path | str, rule: str) -> Path:
    """The checkpoint of a run folder, `last` or `best`; a file as it is. Takes the one before a damaged `last`, and says so.

    Raises:
        UserError: there is none, or no such rule.
    """
    require_one_of(("last", "best"), checkpoint=rule)
    run = Path(run)
    if not run.exists():
        raise UserError(
            f"{run} does not exist. Give a run folder, runs/<algo>/<data set>/<time>-<id>, or a checkpoint in one."
        )
    if not run.is_dir():
        return run
    if rule == "best":
        path = run / "checkpoints" / "best.ckpt"
        if not path.exists():
            raise UserError(
                f"{run} has no checkpoints/best.ckpt: no evaluation has been made. Use the last one (--checkpoint last)."
            )
        return path
    path, _, notice = resume.newest_checkpoint(runs.RunFolder(run))
    if notice:
        say(notice)
    if path is None:
        raise UserError(f"{run} has no whole checkpoint. A run folder has checkpoints/last.ckpt.")
    return path


def folder_of(path: Path) -> runs.RunFolder:
    """The run folder of a checkpoint; of one that stands alone, the folder that it lies in."""
    place = path.resolve().parent
    return runs.RunFolder(place.parent if place.name == "checkpoints" else place)


def evaluate_checkpoint(
    path: Path | str,
    *,
    episodes: int | None = None,
    mode: str | None = None,
    first_seed: int | None = None,
    acting: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate the policies of a checkpoint, from the same starts as the evaluations of training unless told otherwise.

    Args:
        path: the checkpoint.
        episodes: of each seed, samples on a toy task; None: as the run's own evaluations.
        mode: `mean` or `sampled`; None: as the run's own evaluations.
        first_seed: of the environment, whose episodes start from it and the numbers after it; None: 10000, as in training.
        acting: options of `algo.acting` other than the run's own.

    Raises:
        UserError: the checkpoint cannot be used, or its environment is not here.
    """
    if mode is not None:
        require_one_of(MODES, mode=mode)
    if episodes is not None:
        require_whole(1, episodes=episodes)
    if first_seed is not None:
        require_whole(0, first_seed=first_seed)
    path = checkpoint_of(path, "last")
    algorithm, config = load_algorithm(path, acting)
    spec, seeds = algorithm.spec, configuration.seed_list(config["seeds"])
    sampled = is_toy(spec.dataset_id)
    options = {
        **config["eval"],
        **({"episodes": episodes} if episodes is not None else {}),
        **({"mode": mode} if mode else {}),
    }
    configuration.check_evaluation(spec.dataset_id, options["mode"])
    if sampled and first_seed is not None:
        raise UserError(f"{spec.dataset_id} has no episodes that could start from other seeds. Leave the first seed out.")
    first = FIRST_SEED if first_seed is None else first_seed
    if "candidates" in (acting or {}) and options["mode"] == "sampled":
        raise UserError("Candidates are chosen among where the mode is mean; sampled takes a plain sample. Leave them out.")
    eta = config["data"].get("eta", 0.0)  # runs from before there were toy tasks have none
    try:
        evaluator = make_evaluator(
            spec, len(seeds), episodes=options["episodes"], mode=options["mode"], eta=eta, first_seed=first
        )
    except environments.EnvironmentUnavailable as error:
        raise UserError(f"No rollouts: {error}.") from error
    with contextlib.closing(evaluator):
        rows = evaluator.evaluate(algorithm, seeds, algorithm.update_count)
    return {
        "algo": type(algorithm).__name__,
        "dataset": spec.dataset_id,
        "digest": spec.digest,
        "environment": None if sampled else environments.describe(spec.environment)["id"],
        "checkpoint": path.name,
        "update": algorithm.update_count,
        "moment": moment(algorithm, path),
        "episodes": options["episodes"],
        "mode": options["mode"],
        "first_seed": None if sampled else first,
        "rows": rows,
        "digits": kind_of(spec.dataset_id).digits,
    }


def columns_of(path: Path, acting: Mapping[str, Any]) -> list[str]:
    """Names of the numbers that `evaluate_checkpoint` will have for each seed.

    Raises:
        UserError: the checkpoint cannot be used.
    """
    return columns(load_algorithm(path, acting)[0].spec.dataset_id)


def moment(algorithm: OfflineAlgorithm, path: Path) -> str:
    """How far the training in a checkpoint has come, in words; says where the policy is not what a run ends with."""
    made = algorithm.moment(algorithm.update_count)
    if algorithm.update_count < 0:
        return f"{made} of {algorithm.pretrain_updates}: the policy has not been trained yet"
    if algorithm.update_count >= algorithm.max_updates:
        return made
    finished = folder_of(path).result.exists()  # an earlier checkpoint, then
    return f"{made} of {algorithm.max_updates}" + ("" if finished else ": not finished")


def film(path: Path, *, mode: str, max_frames: int, acting: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Film one episode of each seed into the run's `videos/`, without a screen; gives each file when it is there.

    Raises:
        UserError: the environment cannot be rendered here.
    """
    import imageio.v2 as imageio

    require_one_of(MODES, mode=mode)
    algorithm, config = load_algorithm(path, acting)
    seeds = configuration.seed_list(config["seeds"])
    try:
        env = environments.maker(algorithm.spec.environment, render=True)()
    except environments.EnvironmentUnavailable as error:
        raise UserError(f"No video: {error}.") from error
    folder = folder_of(path).videos
    folder.mkdir(exist_ok=True)
    with contextlib.closing(env):
        for member, seed in enumerate(seeds):
            file = folder / f"{path.stem}-{mode}-seed{seed}.mp4"
            act = functools.partial(_act_as, algorithm, member, len(seeds), mode)
            try:
                with imageio.get_writer(file, fps=int(env.metadata.get("render_fps", 30)), macro_block_size=2) as opened:
                    video: Any = opened
                    for frame in _frames(env, act, max_frames):
                        video.append_data(frame)
            except Exception as error:
                file.unlink(missing_ok=True)
                raise UserError(
                    f"No video: the environment cannot be rendered here ({type(error).__name__}: {error}). On a machine "
                    f"without a screen set MUJOCO_GL=egl or MUJOCO_GL=osmesa and install that library."
                ) from error
            yield file


def _act_as(
    algorithm: OfflineAlgorithm, member: int, seeds: int, mode: str, observation: np.ndarray, step: int
) -> np.ndarray:
    """The action of one member (all of them act; one is taken)."""
    observations = torch.as_tensor(observation, dtype=torch.float32).expand(seeds, 1, -1)
    return algorithm.act(observations, deterministic=mode == "mean", step=step)[member, 0].numpy()


def _frames(env: Any, act: Any, max_frames: int) -> Any:
    observation, _ = env.reset(seed=FIRST_SEED)
    for step in range(max_frames):
        yield env.render()
        observation, _, terminated, truncated, _ = env.step(act(observation, step))
        if terminated or truncated:
            return
