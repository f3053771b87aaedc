"""Reading a Minari data set: checking its episodes and laying them out as flat transitions."""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np

from brpo.datasets.catalog import find_dataset, one_line
from brpo.errors import UserError

_FIELDS = ("actions", "rewards", "terminations", "truncations")
BOUNDARY = 1e-5  # an action within this share of the half-range of a bound counts as a boundary action


@dataclass(frozen=True)
class Columns:
    """Where the fields of a transition stand in a row: observation, action, reward, terminated, then what follows."""

    observation: int
    action: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of observations, actions, rewards, terminated, next observations, next actions."""
        return (self.observation, self.action, 1, 1, self.observation, self.action)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The columns of each field, in the order of `widths`."""
        ends = np.cumsum(self.widths).tolist()
        return tuple(slice(end - width, end) for end, width in zip(ends, self.widths, strict=True))


@dataclass(frozen=True)
class Flat:
    """A data set in memory, in environment units except for actions, which are scaled to [-1, 1].

    Attributes:
        dataset_id: the Minari id.
        digest: SHA-256 over the contents of every episode.
        rows: transitions, float32, (transitions, sum of the columns' widths).
        columns: what the columns of `rows` are.
        lengths: transitions of each episode.
        returns: sum of the rewards of each episode.
        ended: per episode, 2 terminated, 1 truncated, 0 neither (the recording stops).
        action_low: lower bounds in environment units.
        action_high: upper bounds in environment units.
        clipped: number of action entries outside the bounds, which were clipped to them.
        boundary_share: share of action entries at a bound.
        metadata: the data set's own description.
    """

    dataset_id: str
    digest: str
    rows: np.ndarray
    columns: Columns
    lengths: np.ndarray
    returns: np.ndarray
    ended: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray
    clipped: int
    boundary_share: float
    metadata: dict[str, Any]

    @property
    def references(self) -> tuple[float | None, float | None]:
        """Returns that score 0 and 100; None where the data set has none, or no finite numbers."""
        low, high = (self.metadata.get(name) for name in ("ref_min_score", "ref_max_score"))
        if isinstance(low, int | float) and isinstance(high, int | float) and np.isfinite([low, high]).all():
            return float(low), float(high)
        return None, None

    @property
    def environment(self) -> str | None:
        """Specification of the evaluation environment as JSON, or of the recorded one, or None."""
        return self.metadata.get("eval_env_spec") or self.metadata.get("env_spec")


def load(dataset_id: str) -> Flat:
    """Read, check and flatten a data set.

    Raises:
        UserError: there is no such data set, or it is not one that can be trained on; names the episode and the field.
    """
    return read_folder(find_dataset(dataset_id), dataset_id)


def read_folder(folder: Path, dataset_id: str) -> Flat:
    """Read a data set from its folder (see `load`)."""
    dataset = _open(folder, dataset_id)
    actions_space = _check_action_space(dataset, dataset_id)
    episodes = [_check_episode(dataset_id, episode) for episode in _episodes(dataset, dataset_id)]
    if not episodes:
        raise UserError(f"{dataset_id} has no episodes.")
    for number, episode in enumerate(episodes):
        widths = episode["observations"].shape[1], episode["actions"].shape[1]
        expected = episodes[0]["observations"].shape[1], actions_space.shape[0]
        if widths != expected:
            raise UserError(
                f"{dataset_id}, episode {number}: observation and action have sizes {widths}, expected {expected}."
            )
    low, high = _action_bounds(actions_space, episodes)
    clipped, boundary = _scale_actions(episodes, low, high)
    return Flat(
        dataset_id=dataset_id,
        digest=_digest(episodes),
        rows=_flatten(episodes),
        columns=Columns(episodes[0]["observations"].shape[1], actions_space.shape[0]),
        lengths=np.array([len(episode["rewards"]) for episode in episodes]),
        returns=np.array([episode["rewards"].sum(dtype=np.float64) for episode in episodes]),
        ended=np.array([_ending(episode) for episode in episodes]),
        action_low=low,
        action_high=high,
        clipped=clipped,
        boundary_share=boundary,
        metadata=dict(dataset.storage.metadata),
    )


def _open(folder: Path, dataset_id: str) -> minari.MinariDataset:
    try:
        return minari.MinariDataset(folder / "data")
    except Exception as error:
        raise UserError(
            f"{dataset_id} cannot be opened in {folder} ({type(error).__name__}: {one_line(error)}). "
            f"Remove the folder and get the data set again."
        ) from error


def _check_action_space(dataset: minari.MinariDataset, dataset_id: str) -> gymnasium.spaces.Box:
    space = dataset.action_space
    if not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1):
        raise UserError(
            f"{dataset_id} has the action space {space}; only continuous actions (a one-dimensional Box) can be trained on."
        )
    return space


def _episodes(dataset: minari.MinariDataset, dataset_id: str) -> Iterator[tuple[int, minari.EpisodeData]]:
    """Episodes with their numbers; errors of the file format become errors of the user's input."""
    iterator, number = dataset.iterate_episodes(), -1
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


def _check_episode(dataset_id: str, numbered: tuple[int, minari.EpisodeData]) -> dict[str, np.ndarray]:
    """The fields of one episode as arrays, refused where they do not fit together."""
    number, episode = numbered
    where = f"{dataset_id}, episode {number}"
    fields: dict[str, np.ndarray] = {"observations": _flat_observations(episode.observations, where)}
    for name in _FIELDS:
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
    if fields["terminations"][:-1].any() or fields["truncations"][:-1].any():
        raise UserError(f"{where}: it is terminated or truncated before its last step.")
    return fields


def _flat_observations(observations: Any, where: str) -> np.ndarray:
    """Vector observations as they are; goal observations as observation + desired goal."""
    if isinstance(observations, dict):
        try:
            parts = [np.asarray(observations[name]) for name in ("observation", "desired_goal")]
        except KeyError as error:
            raise UserError(
                f"{where}: dict observations need the keys observation and desired_goal, got {sorted(observations)}."
            ) from error
        if parts[0].ndim != 2 or parts[1].ndim != 2 or len(parts[0]) != len(parts[1]):
            raise UserError(f"{where}: observation and desired_goal have the shapes {[p.shape for p in parts]}.")
        return np.concatenate(parts, axis=1)
    if not isinstance(observations, np.ndarray):
        raise UserError(
            f"{where}: the field observations is no array (got {type(observations).__name__}); "
            f"vectors and goal dictionaries can be trained on."
        )
    return observations


def _action_bounds(space: gymnasium.spaces.Box, episodes: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the action space; the extremes of the data where the space is unbounded."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        warnings.warn("The action space is unbounded; the extremes of the data stand in for its bounds.", stacklevel=2)
        data = np.concatenate([episode["actions"] for episode in episodes]).astype(np.float64)
        low = np.where(np.isfinite(low), low, data.min(0))
        high = np.where(np.isfinite(high), high, data.max(0))
    if not (low < high).all():
        raise UserError(f"The action bounds have no width: low {low.tolist()}, high {high.tolist()}.")
    return low, high


def _scale_actions(episodes: list[dict[str, np.ndarray]], low: np.ndarray, high: np.ndarray) -> tuple[int, float]:
    """Scale actions to [-1, 1] and clip them (adds the field `scaled`); count the clipped and the boundary entries."""
    clipped = boundary = entries = 0
    for episode in episodes:
        # float32 data may miss its float64 bound by one rounding, which is no error worth counting
        scaled = 2.0 * (episode["actions"].astype(np.float64) - low) / (high - low) - 1.0
        clipped += int((np.abs(scaled) > 1.0 + 1e-6).sum())
        scaled = np.clip(scaled, -1.0, 1.0)
        boundary += int((np.abs(scaled) >= 1.0 - BOUNDARY).sum())
        entries += scaled.size
        episode["scaled"] = scaled.astype(np.float32)
    return clipped, boundary / entries


def _ending(episode: dict[str, np.ndarray]) -> int:
    return 2 if episode["terminations"][-1] else int(bool(episode["truncations"][-1]))


def _flatten(episodes: list[dict[str, np.ndarray]]) -> np.ndarray:
    columns = Columns(episodes[0]["observations"].shape[1], episodes[0]["scaled"].shape[1])
    rows = np.empty((sum(len(episode["rewards"]) for episode in episodes), sum(columns.widths)), np.float32)
    start = 0
    for episode in episodes:
        stop = start + len(episode["rewards"])
        observation, action, reward, terminated, next_observation, next_action = (
            rows[start:stop, columns_of_field] for columns_of_field in columns.slices
        )
        observation[:], next_observation[:] = episode["observations"][:-1], episode["observations"][1:]
        action[:] = episode["scaled"]
        reward[:, 0], terminated[:, 0] = episode["rewards"], episode["terminations"]
        # The last transition of an episode has no next action; its own stands in. Only a truncated one ever uses it.
        next_action[:-1], next_action[-1] = episode["scaled"][1:], episode["scaled"][-1]
        start = stop
    return rows


def _digest(episodes: list[dict[str, np.ndarray]]) -> str:
    """SHA-256 over names, types, shapes and bytes of every field of every episode, in order."""
    digest = hashlib.sha256()
    for episode in episodes:
        for name in ("observations", *_FIELDS):
            array = np.ascontiguousarray(episode[name])
            digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
            digest.update(array.data if array.size else b"")
    return digest.hexdigest()
