"""The LightningDataModule: one data set as tensors on the device, and the stream of batches drawn from it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor

from brpo.datasets import minari_io, transforms
from brpo.errors import UserError
from brpo.functional import streams
from brpo.types import Batch, DataSpec


class Chunk(NamedTuple):
    """The updates [start, stop) that one `training_step` makes."""

    start: int
    stop: int


class Transitions:
    """Transitions as one float32 matrix, a row each: a batch is one gather, whatever the number of fields."""

    def __init__(self, rows: Tensor, columns: minari_io.Columns) -> None:
        self.rows, self.columns = rows, columns

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Transitions":
        """The same transitions on a device."""
        return Transitions(self.rows.to(device, dtype), self.columns)

    def gather(self, indices: Tensor) -> Batch:
        """The transitions of `indices` (seeds, batch)."""
        rows = self.rows.index_select(0, indices.flatten()).view(*indices.shape, -1)
        observations, actions, rewards, terminated, next_observations, next_actions = rows.split(self.columns.widths, -1)
        return Batch(observations, actions, rewards.squeeze(-1), next_observations, next_actions, terminated.squeeze(-1))


def batch_indices(seeds: Tensor, updates: Tensor, batch_size: int, high: int) -> Tensor:
    """Indices of the batches of some updates, uniform with replacement: (updates, seeds, batch), int64.

    Those of update t of seed s depend on (s, t) alone. `seeds` and `updates` are int64 vectors.
    """
    keys = streams.key(seeds.unsqueeze(0), streams.purpose("batch"), updates.unsqueeze(1))
    return streams.integers(keys, batch_size, high)


class _Chunks:
    """The chunks up to the next evaluation, anew for each epoch: Lightning asks for an iterator at its start.

    It is no list, which Lightning would take for several loaders.
    """

    def __init__(self, datamodule: "OfflineDataModule") -> None:
        self.datamodule = datamodule

    def __iter__(self) -> Iterator[Chunk]:
        trainer = self.datamodule.trainer
        assert trainer is not None
        start: Any = trainer.lightning_module.update_count
        return chunks_until_evaluation(
            start, self.datamodule.chunk, self.datamodule.evaluate_every, self.datamodule.max_updates
        )


def chunks_until_evaluation(start: int, size: int, evaluate_every: int, max_updates: int) -> Iterator[Chunk]:
    """Chunks from `start` to the next multiple of `evaluate_every`, or to `max_updates`.

    They end at multiples of `size`, so that a resumed run has the chunks of an uninterrupted one.
    """
    end = min((start // evaluate_every + 1) * evaluate_every, max_updates)
    while start < end:
        stop = min((start // size + 1) * size, end)
        yield Chunk(start, stop)
        start = stop


class OfflineDataModule(lightning.LightningDataModule):
    """A Minari data set as flat tensors.

    Args:
        dataset_id: the Minari id; looked for on this machine, else downloaded.
        normalize_observations: scale observations to zero mean and unit variance; the algorithm undoes it when it acts.
        reward_scale: positive factor on rewards, or `return_range` for 1000 / (largest - smallest return).
        reward_shift: added to the scaled reward (AntMaze: -1).
        heldout: in [0, 1), share of the episodes that is kept from training for diagnostics.
        evaluate_every: updates between evaluations; an epoch.
        max_updates: updates in all.
        chunk: updates in a `training_step`.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        dataset_id: str,
        *,
        normalize_observations: bool,
        reward_scale: float | str,
        reward_shift: float,
        heldout: float,
        evaluate_every: int,
        max_updates: int,
        chunk: int,
    ) -> None:
        super().__init__()
        if not 0 <= heldout < 1:
            raise UserError(f"data.heldout must be in [0, 1), got {heldout}.")
        self.dataset_id = dataset_id
        self.normalize_observations = normalize_observations
        self.reward_scale, self.reward_shift, self.heldout_share = reward_scale, reward_shift, heldout
        self.evaluate_every, self.max_updates, self.chunk = evaluate_every, max_updates, chunk
        self._spec: DataSpec | None = None
        self.train_transitions: Transitions
        self.heldout_transitions: Transitions | None
        self.flat: minari_io.Flat

    @property
    def spec(self) -> DataSpec:
        """What is known about the data; after `setup`."""
        assert self._spec is not None, "setup() has not run"
        return self._spec

    def setup(self, stage: str | None = None) -> None:
        """Read the data set, change its units and split it (once)."""
        if self._spec is not None:
            return
        flat = self.flat = minari_io.load(self.dataset_id)
        rows, (observation, _, reward, _, next_observation, _) = flat.rows, flat.columns.slices
        mean, std = transforms.observation_moments(rows[:, observation], self.normalize_observations)
        factor = transforms.reward_factor(self.reward_scale, flat.returns)
        if self.normalize_observations:
            for columns in (observation, next_observation):
                rows[:, columns] = (rows[:, columns] - mean) / std
        rows[:, reward] = rows[:, reward] * factor + self.reward_shift
        self._spec = DataSpec(
            dataset_id=flat.dataset_id,
            digest=flat.digest,
            observation_dim=flat.columns.observation,
            action_dim=flat.columns.action,
            action_low=tuple(flat.action_low.tolist()),
            action_high=tuple(flat.action_high.tolist()),
            observation_mean=tuple(mean.tolist()),
            observation_std=tuple(std.tolist()),
            reward_scale=factor,
            reward_shift=self.reward_shift,
            return_min=float(flat.returns.min()),
            return_max=float(flat.returns.max()),
            return_mean=float(flat.returns.mean()),
            reference_min=flat.references[0],
            reference_max=flat.references[1],
            environment=flat.environment,
            transitions=len(rows),
            episodes=len(flat.lengths),
        )
        self._split(rows, flat)

    def _split(self, rows: np.ndarray, flat: minari_io.Flat) -> None:
        """Whole episodes are held out, the same ones for every seed: those with the smallest hashes of their number."""
        episodes = len(flat.lengths)
        count = min(round(self.heldout_share * episodes), episodes - 1)
        if self.heldout_share > 0 and episodes > 1:
            count = max(count, 1)
        hashes = streams.splitmix64(torch.arange(episodes)).numpy()
        heldout = np.zeros(episodes, bool)
        heldout[np.argsort(hashes, kind="stable")[:count]] = True
        of_row = np.repeat(heldout, flat.lengths)
        train = rows[~of_row] if count else rows
        self.train_transitions = Transitions(torch.from_numpy(train), flat.columns)
        self.heldout_transitions = Transitions(torch.from_numpy(rows[of_row]), flat.columns) if count else None

    def diagnostic_batch(self, seeds: int, size: int = 2048) -> Batch:
        """One fixed batch of held-out transitions (of training ones where none are held out), the same for each seed."""
        transitions = self.heldout_transitions or self.train_transitions
        key = streams.key(torch.zeros(1, dtype=torch.int64), streams.purpose("diagnostics"))
        indices = streams.integers(key, min(size, len(transitions)), len(transitions))
        return transitions.gather(indices.expand(seeds, -1))

    def train_dataloader(self) -> _Chunks:
        """The schedule of chunks: batches themselves are drawn on the device."""
        return _Chunks(self)
