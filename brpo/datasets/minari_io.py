"""Reading a Minari data set: checking its episodes and laying them out as flat transitions."""

import hashlib
import io
import itertools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import minari
import numpy as np

from brpo.datasets.catalog import find_dataset, one_line
from brpo.datasets.transforms import Moments
from brpo.errors import UserError

_FIELDS = ("actions", "rewards", "terminations", "truncations")
_AT_ONCE = 250  # episodes read before the file is opened anew: HDF5 keeps what it has read of an open file's layout
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
class Summary:
    """What is known of a data set beside its rows.

    Attributes:
        digest: SHA-256 over the contents of every episode.
        columns: what the columns of the rows are.
        lengths: transitions of each episode.
        returns: sum of the rewards of each episode.
        ended: per episode, 2 terminated, 1 truncated, 0 neither (the recording stops).
        action_low: lower bounds in environment units.
        action_high: upper bounds in environment units.
        clipped: number of action entries outside the bounds, which were clipped to them.
        boundary_share: share of action entries at a bound.
        observation_mean: mean of each observation dimension over the transitions, float64.
        observation_std: standard deviation of each observation dimension, float64.
    """

    digest: str
    columns: Columns
    lengths: np.ndarray
    returns: np.ndarray
    ended: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray
    clipped: int
    boundary_share: float
    observation_mean: np.ndarray
    observation_std: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Flat(Summary):
    """A data set as flat transitions, in environment units except for actions, which are scaled to [-1, 1].

    Attributes:
        dataset_id: the Minari id.
        rows: transitions, float32, (transitions, sum of the columns' widths), one episode after another.
        metadata: the data set's own description.
    """

    dataset_id: str
    rows: np.ndarray
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


def check(dataset_id: str) -> Summary:
    """Read every episode of a data set, whatever its size, and keep none.

    Raises:
        UserError: as `load`.
    """
    dataset = open_dataset(find_dataset(dataset_id), dataset_id)
    with open(os.devnull, "wb") as nowhere:
        return stream(dataset, dataset_id, nowhere)


def read_folder(folder: Path, dataset_id: str) -> Flat:
    """Read a data set from its folder (see `load`)."""
    dataset = open_dataset(folder, dataset_id)
    memory = io.BytesIO()  # grows in place, so that the rows are never held twice
    summary = stream(dataset, dataset_id, memory)
    rows = np.frombuffer(memory.getbuffer(), np.float32).reshape(-1, sum(summary.columns.widths))
    return Flat(**vars(summary), dataset_id=dataset_id, rows=rows, metadata=dict(dataset.storage.metadata))


class Sink(Protocol):
    """Where rows go: a file, or memory."""

    def write(self, data: Any, /) -> Any:
        """Append the bytes of an array."""
        ...


def stream(dataset: minari.MinariDataset, dataset_id: str, sink: Sink) -> Summary:
    """Check the episodes one after another and write the rows of each; one episode is in memory at a time.

    Raises:
        UserError: the data set is not one that can be trained on; names the episode and the field.
    """
    space = _check_action_space(dataset, dataset_id)
    scan = _Scan(*_action_bounds(space, dataset, dataset_id))
    for episode in _checked_episodes(dataset, dataset_id, space.shape[0]):
        sink.write(scan.rows_of(episode))
    return scan.summary()


class _Scan:
    """Turns episodes into rows, and keeps what is to be known of all of them: sums, and three numbers an episode."""

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = low, high
        self.digest = hashlib.sha256()
        self.moments = Moments()
        self.lengths: list[int] = []
        self.returns: list[float] = []
        self.ended: list[int] = []
        self.clipped = self.boundary = 0

    def rows_of(self, episode: dict[str, np.ndarray]) -> np.ndarray:
        """The rows of the next episode, (transitions, sum of the columns' widths)."""
        _update_digest(self.digest, episode)
        self.lengths.append(len(episode["rewards"]))
        self.returns.append(float(episode["rewards"].sum(dtype=np.float64)))
        self.ended.append(_ending(episode))
        rows = _flatten(episode, self._scaled(episode["actions"]))
        self.moments.add(rows[:, : episode["observations"].shape[1]])
        return rows

    def _scaled(self, actions: np.ndarray) -> np.ndarray:
        """Actions scaled to [-1, 1] and clipped, float32; counts the clipped and the boundary entries."""
        # float32 data may miss its float64 bound by one rounding, which is no error worth counting
        scaled = 2.0 * (actions.astype(np.float64) - self.low) / (self.high - self.low) - 1.0
        self.clipped += int((np.abs(scaled) > 1.0 + 1e-6).sum())
        scaled = np.clip(scaled, -1.0, 1.0)
        self.boundary += int((np.abs(scaled) >= 1.0 - BOUNDARY).sum())
        return scaled.astype(np.float32)

    def summary(self) -> Summary:
        """What is known after the last episode."""
        return Summary(
            digest=self.digest.hexdigest(),
            columns=Columns(len(self.moments.mean), len(self.low)),
            lengths=np.array(self.lengths),
            returns=np.array(self.returns),
            ended=np.array(self.ended),
            action_low=self.low,
            action_high=self.high,
            clipped=self.clipped,
            boundary_share=self.boundary / (sum(self.lengths) * len(self.low)),
            observation_mean=self.moments.mean,
            observation_std=self.moments.std,
        )


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


def _check_action_space(dataset: minari.MinariDataset, dataset_id: str) -> gymnasium.spaces.Box:
    space = dataset.action_space
    if not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1):
        raise UserError(
            f"{dataset_id} has the action space {space}; only continuous actions (a one-dimensional Box) can be trained on."
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


def _checked_episodes(dataset: minari.MinariDataset, dataset_id: str, action_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The fields of every episode, refused where they do not fit together or not with the first episode."""
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


def _action_bounds(
    space: gymnasium.spaces.Box, dataset: minari.MinariDataset, dataset_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the action space; the extremes of the data, found in a pass of their own, where it is unbounded."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        warnings.warn("The action space is unbounded; the extremes of the data stand in for its bounds.", stacklevel=2)
        data_low, data_high = np.full_like(low, np.inf), np.full_like(high, -np.inf)
        for episode in _checked_episodes(dataset, dataset_id, len(low)):
            data_low = np.minimum(data_low, episode["actions"].min(0))
            data_high = np.maximum(data_high, episode["actions"].max(0))
        low, high = np.where(np.isfinite(low), low, data_low), np.where(np.isfinite(high), high, data_high)
    if not (low < high).all():
        raise UserError(f"The action bounds have no width: low {low.tolist()}, high {high.tolist()}.")
    return low, high


def _ending(episode: dict[str, np.ndarray]) -> int:
    return 2 if episode["terminations"][-1] else int(bool(episode["truncations"][-1]))


def _flatten(episode: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
    """The rows of an episode, with these actions."""
    columns = Columns(episode["observations"].shape[1], actions.shape[1])
    rows = np.empty((len(actions), sum(columns.widths)), np.float32)
    observation, action, reward, terminated, next_observation, next_action = (
        rows[:, columns_of_field] for columns_of_field in columns.slices
    )
    observation[:], next_observation[:] = episode["observations"][:-1], episode["observations"][1:]
    action[:] = actions
    reward[:, 0], terminated[:, 0] = episode["rewards"], episode["terminations"]
    # The last transition of an episode has no next action; its own stands in. Only a truncated one ever uses it.
    next_action[:-1], next_action[-1] = actions[1:], actions[-1]
    return rows


def _update_digest(digest: Any, episode: dict[str, np.ndarray]) -> None:
    """Add names, types, shapes and bytes of every field of an episode."""
    for name in ("observations", *_FIELDS):
        array = np.ascontiguousarray(episode[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.data if array.size else b"")
