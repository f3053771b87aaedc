"""A Minari data set as flat transitions: its episodes laid out row by row, and what is known of all of them."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import minari
import numpy as np

from brpo.console import say
from brpo.datasets import episodes
from brpo.datasets.catalog import find_dataset
from brpo.datasets.transforms import Moments
from brpo.errors import UserError

UNBOUNDED = 1e15  # a bound this far away is none: some spaces have the largest float32
TERMINATED, TRUNCATED = 2, 1  # how an episode ended, in `ended`; 0: the recording stops
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
class DatasetSummary:
    """What is known of a data set beside its rows.

    Attributes:
        digest: SHA-256 over the contents of every episode.
        columns: what the columns of the rows are.
        lengths: transitions of each episode.
        returns: sum of the rewards of each episode.
        gross: the largest sum of an episode's rewards by magnitude: what the rounding of returns is relative to.
        ended: per episode, `TERMINATED`, `TRUNCATED` or 0 for neither (the recording stops).
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
    gross: float
    ended: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray
    clipped: int
    boundary_share: float
    observation_mean: np.ndarray
    observation_std: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Flat(DatasetSummary):
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


def check(dataset_id: str) -> DatasetSummary:
    """Read every episode of a data set, whatever its size, and keep none.

    Raises:
        UserError: as `load`.
    """
    dataset = episodes.open_dataset(find_dataset(dataset_id), dataset_id)
    with open(os.devnull, "wb") as nowhere:
        return stream(dataset, dataset_id, nowhere)


def read_folder(folder: Path, dataset_id: str) -> Flat:
    """Read a data set from its folder (see `load`)."""
    dataset = episodes.open_dataset(folder, dataset_id)
    memory = io.BytesIO()  # grows in place, so that the rows are never held twice
    summary = stream(dataset, dataset_id, memory)
    rows = np.frombuffer(memory.getbuffer(), np.float32).reshape(-1, sum(summary.columns.widths))
    return Flat(**vars(summary), dataset_id=dataset_id, rows=rows, metadata=dict(dataset.storage.metadata))


class Sink(Protocol):
    """Where rows go: a file, or memory."""

    def write(self, data: Any, /) -> Any:
        """Append the bytes of an array."""
        ...


def stream(dataset: minari.MinariDataset, dataset_id: str, sink: Sink) -> DatasetSummary:
    """Check the episodes one after another and write the rows of each; one episode is in memory at a time.

    Raises:
        UserError: the data set is not one that can be trained on; names the episode and the field.
    """
    space = episodes.check_action_space(dataset, dataset_id)
    scan = _Scan(*_action_bounds(space, dataset, dataset_id))
    for episode in episodes.checked_episodes(dataset, dataset_id, space.shape[0]):
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
        self.gross = 0.0
        self.ended: list[int] = []
        self.clipped = self.boundary = 0

    def rows_of(self, episode: dict[str, np.ndarray]) -> np.ndarray:
        """The rows of the next episode, (transitions, sum of the columns' widths)."""
        _update_digest(self.digest, episode)
        self.lengths.append(len(episode["rewards"]))
        self.returns.append(float(episode["rewards"].sum(dtype=np.float64)))
        self.gross = max(self.gross, float(np.abs(episode["rewards"], dtype=np.float64).sum()))
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

    def summary(self) -> DatasetSummary:
        """What is known after the last episode."""
        return DatasetSummary(
            digest=self.digest.hexdigest(),
            columns=Columns(len(self.moments.mean), len(self.low)),
            lengths=np.array(self.lengths),
            returns=np.array(self.returns),
            gross=self.gross,
            ended=np.array(self.ended),
            action_low=self.low,
            action_high=self.high,
            clipped=self.clipped,
            boundary_share=self.boundary / (sum(self.lengths) * len(self.low)),
            observation_mean=self.moments.mean,
            observation_std=self.moments.std,
        )


def _action_bounds(
    space: gymnasium.spaces.Box, dataset: minari.MinariDataset, dataset_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the action space; the extremes of the data, found in a pass of their own, where it is unbounded."""
    low, high = (np.where(np.abs(bound) < UNBOUNDED, bound.astype(np.float64), np.inf) for bound in (space.low, space.high))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        say("note: the action space is unbounded; the extremes of the data stand in for its bounds")
        data_low, data_high = np.full_like(low, np.inf), np.full_like(high, -np.inf)
        for episode in episodes.checked_episodes(dataset, dataset_id, len(low)):
            data_low = np.minimum(data_low, episode["actions"].min(0))
            data_high = np.maximum(data_high, episode["actions"].max(0))
        low, high = np.where(np.isfinite(low), low, data_low), np.where(np.isfinite(high), high, data_high)
    if not (low < high).all():
        raise UserError(f"The action bounds have no width: low {low.tolist()}, high {high.tolist()}.")
    return low, high


def _ending(episode: dict[str, np.ndarray]) -> int:
    if episode["terminations"][-1]:
        return TERMINATED
    return TRUNCATED if episode["truncations"][-1] else 0


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
    for name in ("observations", *episodes.FIELDS):
        array = np.ascontiguousarray(episode[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.data if array.size else b"")
