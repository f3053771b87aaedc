"""The episodes of a Minari data set, one after another, each checked."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np

from brpo.datasets.catalog import one_line
from brpo.errors import UserError
from brpo.evaluation.environments import CONTINUOUS, is_continuous
from brpo.types import goal_keys

FIELDS = ("actions", "rewards", "terminations", "truncations")  # beside the observations
_AT_ONCE = 250  # episodes read before the file is opened anew: HDF5 keeps what it has read of an open file's layout


def open_dataset(folder: Path, dataset_id: str) -> minari.MinariDataset:
    """Open a data set: its metadata are read, its episodes are not.

    Raises:
        UserError: the folder holds no data set, or a damaged one.
    """
    try:
        return minari.MinariDataset(folder / "data")
    except Exception as error:
        raise UserError(
            f"{dataset_id} cannot be opened in {folder} ({type(error).__name__}: {one_line(error)}). "
            f"Remove the folder and get the data set again."
        ) from error


def check_action_space(dataset: minari.MinariDataset, dataset_id: str) -> gymnasium.spaces.Box:
    """The action space.

    Raises:
        UserError: it is not continuous.
    """
    space = dataset.action_space
    if not is_continuous(space):
        raise UserError(
            f"{dataset_id} has the action space {space}; only continuous actions ({CONTINUOUS}) can be trained on."
        )
    return space


def _episodes(dataset: minari.MinariDataset, dataset_id: str) -> Iterator[tuple[int, minari.EpisodeData]]:
    """Episodes with their numbers; errors of the file format become errors of the user's input."""
    parts = (dataset.episode_indices[start : start + _AT_ONCE] for start in range(0, dataset.total_episodes, _AT_ONCE))
    iterator, number = itertools.chain.from_iterable(map(dataset.iterate_episodes, parts)), -1
    while True:
        number += 1
        try:
            episode = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise UserError(
                f"{dataset_id}, episode {number}: it cannot be read, the file is truncated, damaged or lacks a field "
                f"({type(error).__name__}: {one_line(error)})."
            ) from error
        yield number, episode


def checked_episodes(dataset: minari.MinariDataset, dataset_id: str, action_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The fields of every episode, one after another.

    Raises:
        UserError: they do not fit together or not with the first episode, or cannot be read;
            names the episode and the field.
    """
    expected = None
    for number, episode in _episodes(dataset, dataset_id):
        fields = _check_episode(dataset_id, (number, episode))
        widths = fields["observations"].shape[1], fields["actions"].shape[1]
        expected = expected or (widths[0], action_size)
        if widths != expected:
            raise UserError(
                f"{dataset_id}, episode {number}: observation and action have sizes {widths}, expected {expected}."
            )
        yield fields
    if expected is None:
        raise UserError(f"{dataset_id} has no episodes.")


def _check_episode(dataset_id: str, numbered: tuple[int, minari.EpisodeData]) -> dict[str, np.ndarray]:
    """The fields of one episode as arrays, refused where they do not fit together."""
    number, episode = numbered
    where = f"{dataset_id}, episode {number}"
    fields: dict[str, np.ndarray] = {"observations": _flat_observations(episode.observations, where)}
    for name in FIELDS:
        value = getattr(episode, name)
        if not isinstance(value, np.ndarray):
            raise UserError(f"{where}: the field {name} is missing or no array (got {type(value).__name__}).")
        fields[name] = value
    steps = len(fields["rewards"])
    if steps == 0:
        raise UserError(f"{where}: it is empty (0 transitions).")
    expected = {"observations": steps + 1, "actions": steps, "terminations": steps, "truncations": steps}
    for name, length in expected.items():
        if len(fields[name]) != length:
            raise UserError(
                f"{where}: the field {name} has {len(fields[name])} rows, expected {length} for {steps} rewards."
            )
    for name, dimensions in (("observations", 2), ("actions", 2), ("rewards", 1), ("terminations", 1), ("truncations", 1)):
        value = fields[name]
        if value.ndim != dimensions:
            raise UserError(f"{where}: the field {name} has the shape {value.shape}, expected {dimensions} axes.")
        if not (np.issubdtype(value.dtype, np.number) or value.dtype == bool):
            raise UserError(f"{where}: the field {name} holds {value.dtype}, expected numbers.")
        with np.errstate(over="ignore"):
            finite = np.isfinite(value.astype(np.float32))  # training is in float32
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            raise UserError(f"{where}: the field {name} holds NaN, infinity or a number beyond float32 at step {row}.")
    for name in ("terminations", "truncations"):
        if not np.isin(fields[name], (0, 1)).all():
            raise UserError(f"{where}: the field {name} holds {np.unique(fields[name]).tolist()}, expected 0 and 1.")
    if fields["terminations"][:-1].any() or fields["truncations"][:-1].any():
        raise UserError(f"{where}: it is terminated or truncated before its last step.")
    return fields


def _flat_observations(observations: Any, where: str) -> np.ndarray:
    """Vector observations as they are; goal observations joined, see `goal_keys`."""
    if isinstance(observations, dict):
        try:
            parts = {name: np.asarray(observations[name]) for name in goal_keys(observations)}
        except KeyError as error:
            raise UserError(
                f"{where}: dict observations need the keys observation and desired_goal, got {sorted(observations)}."
            ) from error
        shapes = {name: part.shape for name, part in parts.items()}
        if any(part.ndim != 2 for part in parts.values()) or len({shape[0] for shape in shapes.values()}) > 1:
            raise UserError(f"{where}: its observations have the shapes {shapes}, expected vectors of as many steps.")
        return np.concatenate(list(parts.values()), axis=1)
    if not isinstance(observations, np.ndarray):
        raise UserError(
            f"{where}: the field observations is no array (got {type(observations).__name__}); "
            f"vectors and goal dictionaries can be trained on."
        )
    return observations
