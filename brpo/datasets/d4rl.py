"""D4RL's flat files, HDF5 or NPZ with the same arrays, as Minari data sets."""

import json
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.namespace import create_namespace, list_local_namespaces

from brpo.datasets import catalog
from brpo.datasets.transforms import Moments
from brpo.errors import UserError
from brpo.evaluation import environments

AXES = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1}
OPTIONAL = {"timeouts": 1, "next_observations": 2}
Bounds = tuple[float | Sequence[float], float | Sequence[float]]
_ROUNDING = 1e-5  # next_observations may be stored in another precision than observations


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        folder: of the new data set.
        rows: of the file.
        jumps: episodes that end where `next_observations` is not what the next row observes, without a flag in the file.
        lengths: transitions of each episode.
        returns: sum of the rewards of each episode.
        terminated: whether each episode terminated; the others are truncated.
        space: of the actions.
        extremes: smallest and largest entry of each action dimension in the file, (2, dimensions).
        clipped: action entries outside its bounds.
        moments: of the observations in the file, in its precision.
    """

    folder: Path
    rows: int
    jumps: int
    lengths: np.ndarray
    returns: np.ndarray
    terminated: np.ndarray
    space: gymnasium.spaces.Box
    extremes: np.ndarray
    clipped: int
    moments: Moments


def import_file(
    file: Path,
    dataset_id: str,
    *,
    env: str | None = None,
    references: tuple[float, float] | None = None,
    bounds: Bounds | None = None,
    max_steps: int | None = None,
) -> Imported:
    """Write a flat file as a Minari data set below the first root, where downloads go too. All of it is written, or nothing.

    Args:
        file: HDF5 or NPZ; arrays `observations`, `actions`, `rewards`, `terminals`, and `timeouts` and
            `next_observations` where it has them, a row for each transition; a single column may stand without its axis.
        dataset_id: of the new data set.
        env: registered Gymnasium id of the environment for evaluation; its action space has the bounds.
        references: the returns that score 0 and 100.
        bounds: of each action dimension, or one for all; without `env` only.
        max_steps: longest episode, of a file without `timeouts`, or with none that is true.

    Raises:
        UserError: the file is not of this kind, or the id or an option does not suit.
    """
    root = _check_id(dataset_id)
    if references is not None and not (np.isfinite(references).all() and references[0] < references[1]):
        raise UserError(f"The reference returns are {references}; two numbers are needed, the smaller one scores 0.")
    arrays = _read(file)
    space = _action_space(file, arrays, env, bounds)
    extremes = np.stack([arrays["actions"].min(0), arrays["actions"].max(0)])
    moments = Moments()
    moments.add(arrays["observations"])
    _refuse_other_units(file, arrays["actions"], extremes, space)
    ends, jumps = _ends(file, arrays, max_steps)
    episodes = list(_episodes(arrays, ends))
    if not episodes:
        raise UserError(f"{file} has {len(arrays['rewards'])} rows and no transition with a known next observation.")
    _write(root, dataset_id, episodes, env=env, space=space, references=references, source=file.name)
    return Imported(
        folder=root / dataset_id,
        rows=len(arrays["rewards"]),
        jumps=jumps,
        lengths=np.array([len(episode.rewards) for episode in episodes]),
        returns=np.array([np.sum(episode.rewards, dtype=np.float64) for episode in episodes]),
        terminated=np.array([episode.terminations[-1] for episode in episodes]),
        space=space,
        extremes=extremes,
        clipped=sum(int(_outside(np.asarray(episode.actions), space).sum()) for episode in episodes),
        moments=moments,
    )


def _write(
    root: Path,
    dataset_id: str,
    episodes: list[EpisodeBuffer],
    *,
    env: str | None,
    space: gymnasium.spaces.Box,
    references: tuple[float, float] | None,
    source: str,
) -> None:
    """Let Minari write it, apart until it is complete."""
    catalog.make_root(root)
    _check_room(root, episodes)
    seen = np.asarray(episodes[0].observations)
    with catalog.made_apart(dataset_id, root) as place:
        if place is None:
            raise UserError(f"{dataset_id} is there by now, in {root / dataset_id}.")
        with catalog.minari_root(place), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Minari's, of fields that need not be given
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                episodes,
                eval_env=env,
                observation_space=gymnasium.spaces.Box(-np.inf, np.inf, seen.shape[1:], seen.dtype.type),
                action_space=space,
                description=f"Imported from the flat file {source} by brpo.",
            )
            if references:  # not among the arguments: Minari takes them with an environment alone, and then builds it
                dataset.storage.update_metadata({"ref_min_score": references[0], "ref_max_score": references[1]})
            namespace = parse_dataset_id(dataset_id)[0]
            if namespace and namespace not in list_local_namespaces():
                create_namespace(namespace)


def _check_id(dataset_id: str) -> Path:
    """The root that takes the data set; refuses an id that cannot be new."""
    catalog.check_new_id(dataset_id)
    try:
        parse_dataset_id(dataset_id)  # stricter: a namespace has two characters at least
    except ValueError as error:
        raise UserError(f"{dataset_id} is no id for Minari: {catalog.one_line(error)}") from error
    return catalog.data_roots()[0]


def _check_room(root: Path, episodes: list[EpisodeBuffer]) -> None:
    """HDF5 does not survive a disk that fills up: h5py prints thousands of lines, and the process dies."""
    fields = (part for one in episodes for part in (one.observations, one.actions, one.rewards))
    needed = 1.3 * sum(np.asarray(field).nbytes for field in fields) + 16_000 * len(episodes)  # what Minari's layout takes
    if needed > (free := shutil.disk_usage(root).free):
        raise UserError(f"The data set takes about {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free below {root}.")


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, each checked."""
    names = AXES | OPTIONAL
    if not file.is_file():
        raise UserError(f"{file} is no file. Give one in HDF5 or NPZ.")
    kind = _kind(file)
    try:
        if kind == "NPZ":
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in names if name in archive}
        else:
            with h5py.File(file, "r") as archive:
                arrays = {name: np.asarray(archive[name][()]) for name in names if name in archive}  # type: ignore[index]
    except Exception as error:  # of h5py, zipfile and numpy; a group where an array should be
        raise UserError(f"{file} cannot be read as {kind} ({type(error).__name__}: {catalog.one_line(error)}).") from error
    if missing := [name for name in AXES if name not in arrays]:
        raise UserError(f"{file} lacks {', '.join(missing)}; at its root it needs the arrays {', '.join(AXES)}.")
    for name, array in arrays.items():
        arrays[name] = array = _with_axes(array, names[name])
        _check_array(f"{file}: the array {name}", name, array, rows=len(np.atleast_1d(arrays["rewards"])))
    widths = [arrays[name].shape[1] for name in ("observations", "next_observations") if name in arrays]
    if widths[0] != widths[-1]:
        raise UserError(f"{file}: the array next_observations has {widths[-1]} entries in a row, observations {widths[0]}.")
    if not np.issubdtype(arrays["observations"].dtype, np.floating):
        arrays["observations"] = arrays["observations"].astype(np.float32)  # its space has no bounds
    return arrays


def _kind(file: Path) -> str:
    """By the content: `np.savez` adds a suffix, others do not."""
    with file.open("rb") as opened:  # a file that may not be read is not of another kind
        if h5py.is_hdf5(file):
            return "HDF5"
        if zipfile.is_zipfile(opened):
            return "NPZ"
    raise UserError(
        f"{file} is neither HDF5 nor NPZ, or it is damaged. How a table becomes one: docs/use.md, Training on your own data."
    )


def _with_axes(array: np.ndarray, axes: int) -> np.ndarray:
    """A single column with or without its own axis, as `axes` wants it; anything else as it is."""
    if axes == 1 and array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    return array[:, None] if axes == 2 and array.ndim == 1 else array


def _check_array(where: str, name: str, array: np.ndarray, rows: int) -> None:
    """Refuse an array that has no numbers to train on."""
    axes = (AXES | OPTIONAL)[name]
    if array.ndim != axes or array.size == 0:
        raise UserError(f"{where} has the shape {array.shape}, expected {axes} axes and a row at least.")
    if len(array) != rows:
        raise UserError(f"{where} has {len(array)} rows, expected {rows}, as many as there are rewards.")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:  # complex, or longdouble
        raise UserError(f"{where} holds {array.dtype}, expected whole or floating-point numbers of 64 bits at most.")
    if name == "actions" and not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{where} holds {array.dtype}; only continuous actions, floating-point numbers, can be trained on.")
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32, copy=False))  # training is in float32
    bad = np.flatnonzero(~finite.reshape(rows, -1).all(1))
    if len(bad):
        raise UserError(
            f"{where} holds NaN, infinity or a number beyond float32 in {len(bad)} of {rows} rows, the first is "
            f"row {bad[0]} (of 0 to {rows - 1}). Leave such rows out, and set timeouts in the row "
            f"before each: an episode ends there."
        )
    if name in ("terminals", "timeouts") and not np.isin(array, (0, 1)).all():
        raise UserError(f"{where} holds {np.unique(array)[:5].tolist()}, expected 0 and 1.")


def _action_space(file: Path, arrays: dict[str, np.ndarray], env: str | None, bounds: Bounds | None) -> gymnasium.spaces.Box:
    """The environment's; else the given bounds, or [-1, 1] where no action lies outside."""
    actions = arrays["actions"]
    if env is not None:
        if bounds is not None:
            raise UserError(
                "Bounds of actions come from the environment or are given: leave out --env or --action-low/-high."
            )
        sizes = arrays["observations"].shape[1], actions.shape[1]
        try:
            made = environments.maker(json.dumps({"id": env}), sizes=sizes)()
        except environments.EnvironmentUnavailable as error:
            raise UserError(f"--env {env}: {catalog.one_line(error)}.") from error
        space: Any = made.action_space  # continuous, or there is no such maker
        made.close()
        return space
    low, high = (_bound(side, actions.shape[1]) for side in bounds or (-1.0, 1.0))
    if not (good := np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        bad = int(np.argmin(good))
        raise UserError(
            f"The bounds of action dimension {bad} are {low[bad]} and {high[bad]}; "
            f"two numbers are needed, the lower one first."
        )
    if bounds is None and np.abs(actions).max() > 1.0 + 1e-6:
        raise UserError(
            f"{file} has actions from {actions.min():.6g} to {actions.max():.6g}, outside [-1, 1]. Their bounds are needed: "
            f"name the environment (--env ENV_ID) or give them (--action-low X --action-high Y)."
        )
    return gymnasium.spaces.Box(low.astype(actions.dtype), high.astype(actions.dtype), dtype=actions.dtype.type)


def _bound(typed: float | Sequence[float], dimensions: int) -> np.ndarray:
    """One number for each action dimension."""
    numbers = np.atleast_1d(np.asarray(typed, np.float64))
    if len(numbers) not in (1, dimensions):
        raise UserError(
            f"Bounds of {len(numbers)} action dimensions are given ({numbers.tolist()}), and the actions have {dimensions}: "
            f"give one number for each, or one for all."
        )
    return np.broadcast_to(numbers, dimensions)


def _outside(actions: np.ndarray, space: gymnasium.spaces.Box) -> np.ndarray:
    return (actions < space.low - 1e-6) | (actions > space.high + 1e-6)


def _refuse_other_units(file: Path, actions: np.ndarray, extremes: np.ndarray, space: gymnasium.spaces.Box) -> None:
    """Refuse bounds in other units than the data's, which leave no entry inside."""
    for dimension in np.flatnonzero(_outside(actions, space).all(0)):
        (least, most), low, high = extremes[:, dimension], space.low[dimension], space.high[dimension]
        raise UserError(
            f"{file}: every entry of action dimension {dimension}, from {least:.6g} to {most:.6g}, lies outside its bounds "
            f"{low:.6g} and {high:.6g}. Bounds are in the units of the data."
        )


def _ends(file: Path, arrays: dict[str, np.ndarray], max_steps: int | None) -> tuple[np.ndarray, int]:
    """The last row of every episode, and how many of them only `next_observations` shows."""
    ends, rows = arrays["terminals"].astype(bool), len(arrays["rewards"])
    if "timeouts" in arrays:
        if max_steps is not None and arrays["timeouts"].any():
            raise UserError(f"{file} has timeouts, which say where episodes end; leave out --max-steps.")
        ends |= arrays["timeouts"].astype(bool)
    elif max_steps is None:
        raise UserError(
            f"{file} has no timeouts, as D4RL's -v0 files; name the longest episode: --max-steps N (often 1000)."
        )
    ends[-1] = True  # trailing rows are an episode that was cut off
    jumps = np.zeros(rows, bool)
    if "next_observations" in arrays:
        follows = np.isclose(arrays["next_observations"][:-1], arrays["observations"][1:], rtol=_ROUNDING, atol=_ROUNDING)
        jumps[:-1] = ~follows.all(1) & ~ends[:-1]
        if jumps.sum() > rows / 2:
            raise UserError(
                f"{file} has no trajectories: in {jumps.sum()} of {rows} rows next_observations is not what the next row "
                f"observes, and no end is marked."
            )
        ends |= jumps
    if max_steps is not None:
        row = np.arange(rows)
        start = np.maximum.accumulate(np.where(np.append(True, ends[:-1]), row, 0))  # of the episode of each row
        limit = (row - start + 1) % max_steps == 0
        return np.flatnonzero(ends | limit), int((jumps & ~limit).sum())
    return np.flatnonzero(ends), int(jumps.sum())


def _episodes(arrays: dict[str, np.ndarray], ends: np.ndarray) -> Iterator[EpisodeBuffer]:
    """The episodes, one after another. Minari wants an observation more than actions: what follows the last one.

    It stands in `next_observations`. Without it, one that terminated repeats its last observation, from which nobody
    bootstraps; one that was cut off loses its last transition, and is left out where it had no other.
    """
    observations, following = arrays["observations"], arrays.get("next_observations")
    for start, end in zip(np.append(0, ends[:-1] + 1), ends, strict=True):
        terminated = bool(arrays["terminals"][end])
        if following is None and not terminated:
            steps = slice(start, end)
            seen = observations[start : end + 1]
        else:
            steps = slice(start, end + 1)
            last = observations[end] if following is None else following[end].astype(observations.dtype)
            seen = np.concatenate([observations[steps], last[None]])
        count = len(seen) - 1
        if count:
            last_step = np.arange(count) == count - 1
            yield EpisodeBuffer(
                observations=seen,  # type: ignore[arg-type]  # Minari's annotation has no arrays; its storage takes them
                actions=arrays["actions"][steps],  # type: ignore[arg-type]
                rewards=arrays["rewards"][steps],  # type: ignore[arg-type]
                terminations=last_step & terminated,
                truncations=last_step & (not terminated),
            )
