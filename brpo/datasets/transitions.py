"""Transitions to draw batches from: on the training device, or in a file."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from brpo.datasets.minari_io import Columns, DatasetSummary
from brpo.datasets.row_cache import RowFile
from brpo.datasets.transforms import Units
from brpo.functional import streams
from brpo.types import Batch


class EpisodeDraw(NamedTuple):
    """Draws a transition through its episode: the episode by its share of all draws, then one of its transitions uniformly.

    Attributes:
        until: share of the draws that fall on an episode or one before it, float64 (episodes,); the last is 1.
        begins: index of the first transition of each episode, int64 (episodes,).
        lengths: transitions of each, int64 (episodes,).
    """

    until: Tensor
    begins: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, lengths: np.ndarray, weights: np.ndarray) -> "EpisodeDraw":
        """Draws where a transition of an episode is `weights` (episodes,) >= 0, not all 0, as likely as one of another."""
        shares = np.cumsum(weights * lengths)
        begins = np.cumsum(lengths) - lengths
        return cls(*(torch.from_numpy(part) for part in (shares / shares[-1], begins, lengths)))

    @property
    def effective(self) -> float:
        """Of how many episodes the draws are: one over the sum of squares of the episodes' shares."""
        return float(1.0 / torch.diff(self.until, prepend=self.until.new_zeros(1)).square().sum())

    def to(self, device: torch.device) -> "EpisodeDraw":
        """The same on a device."""
        return EpisodeDraw(*(part.to(device) for part in self))

    def draw(self, keys: Tensor, count: int) -> Tensor:
        """`count` indices for each key, int64 (*keys.shape, count)."""
        drawn = streams.uniform(keys, (count,), torch.float64)
        episode = torch.searchsorted(self.until, drawn, right=True)  # drawn is below 1: always one that there is
        until = self.until[episode]
        before = torch.where(episode > 0, self.until[episode - 1], 0.0)
        lengths = self.lengths[episode]
        within = ((drawn - before) / (until - before) * lengths).long()
        return self.begins[episode] + torch.minimum(within, lengths - 1)  # the product may be rounded up


class Transitions:
    """Transitions as one float32 matrix, a row each: a batch is one gather, whatever the number of fields.

    Args:
        rows: (transitions, sum of the columns' widths).
        columns: what the columns are.
        episodes: how transitions are drawn; None: uniformly.
    """

    def __init__(self, rows: Tensor, columns: Columns, episodes: EpisodeDraw | None = None) -> None:
        self.rows, self.columns, self.episodes = rows, columns, episodes

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def index_device(self) -> torch.device:
        """Where indices are best drawn."""
        return self.rows.device

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Transitions":
        """The same transitions on a device."""
        return Transitions(self.rows.to(device, dtype), self.columns, self.episodes and self.episodes.to(device))

    def draw(self, keys: Tensor, count: int) -> Tensor:
        """Indices of `count` transitions for each key, with replacement: (*keys.shape, count), int64."""
        if self.episodes is None:
            return streams.integers(keys, count, len(self))
        return self.episodes.draw(keys, count)

    def gather(self, indices: Tensor) -> Batch:
        """The transitions of `indices` (seeds, batch)."""
        return self._batch(self.rows.index_select(0, indices.flatten()), indices.shape)

    def _batch(self, rows: Tensor, shape: Sequence[int]) -> Batch:
        rows = rows.view(*shape, -1)
        observations, actions, rewards, terminated, next_observations, next_actions = rows.split(self.columns.widths, -1)
        return Batch(observations, actions, rewards.squeeze(-1), next_observations, next_actions, terminated.squeeze(-1))


class MappedTransitions(Transitions):
    """Transitions in a file, in environment units: the rows of a batch are read, change their units and go to the device.

    They give the batches of `Transitions` bit for bit. Reading waits for the disk and for indices that are on a GPU, so
    `gather` cannot be captured in a CUDA graph: call it outside, best with indices on the CPU, and copy its batch in.

    Args:
        file: the rows of all episodes.
        columns: what the columns of the rows are.
        units: what is done to the rows that are read.
        begins: the row in the file that each episode begins at, int64.
        lengths: transitions of each episode, int64.
        episodes: how transitions are drawn; None: uniformly.
        device: where batches go.
        dtype: what they are there.
    """

    def __init__(
        self,
        file: RowFile,
        columns: Columns,
        units: Units,
        begins: np.ndarray,
        lengths: np.ndarray,
        episodes: EpisodeDraw | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.file, self.columns, self.units = file, columns, units
        self.begins, self.lengths, self.episodes = begins, lengths, episodes
        self.device, self.dtype = torch.device(device), dtype
        self._ends = np.cumsum(lengths)  # among these transitions, as the indices count
        self._shifts = begins - (self._ends - lengths)  # from an index to its row in the file

    @classmethod
    def of(
        cls,
        file: RowFile,
        summary: DatasetSummary,
        units: Units,
        chosen: np.ndarray,
        episodes: EpisodeDraw | None = None,
    ) -> "MappedTransitions":
        """The transitions of the episodes of a mask, in the order of the file."""
        begins = np.cumsum(summary.lengths) - summary.lengths
        return cls(file, summary.columns, units, begins[chosen], summary.lengths[chosen], episodes)

    def __len__(self) -> int:
        return int(self.lengths.sum())

    @property
    def index_device(self) -> torch.device:
        """The CPU, which reads the file: indices drawn elsewhere would be waited for in every update."""
        return torch.device("cpu")

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "MappedTransitions":
        """The same transitions, with batches on a device; nothing is copied before a batch is drawn."""
        return MappedTransitions(
            self.file, self.columns, self.units, self.begins, self.lengths, self.episodes, device, dtype
        )

    def gather(self, indices: Tensor) -> Batch:
        """The transitions of `indices` (seeds, batch), which may be on any device."""
        chosen = indices.flatten().cpu().numpy()
        rows = self.file.take(chosen + self._shifts[np.searchsorted(self._ends, chosen, side="right")])
        self.units.apply(rows, self.columns.slices)
        batch = torch.from_numpy(rows)
        if self.device.type == "cuda":
            batch = batch.pin_memory()  # only a copy from pinned memory overlaps with what the device does
        return self._batch(batch.to(self.device, self.dtype, non_blocking=True), indices.shape)
