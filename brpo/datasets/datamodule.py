"""The LightningDataModule: one data set, on the device or in a file, and the stream of batches drawn from it."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor

from brpo.datasets import minari_io, row_cache, sources, transforms
from brpo.datasets.transitions import EpisodeDraw, MappedTransitions, Transitions
from brpo.functional import streams
from brpo.options import options_of, require_flag, require_number, require_one_of
from brpo.types import Batch, DataSpec

STORAGES = ("device", "memmap")


class Chunk(NamedTuple):
    """The updates [start, stop) that one `training_step` makes."""

    start: int
    stop: int


def batch_indices(seeds: Tensor, updates: Tensor, batch_size: int, transitions: Transitions) -> Tensor:
    """Indices of the batches of some updates, with replacement: (updates, seeds, batch), int64.

    Those of update t of seed s depend on (s, t) alone. `seeds` and `updates` are int64 vectors.
    """
    keys = streams.key(seeds.unsqueeze(0), streams.purpose("batch"), updates.unsqueeze(1))
    return transitions.draw(keys, batch_size)


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
        storage: `device`, all rows on the training device; or `memmap`, rows in a file that batches are read from.
        normalize_observations: scale observations to zero mean and unit variance; the algorithm undoes it when it acts.
        reward_scale: positive factor on rewards, or `return_range` for 1000 / (largest - smallest return).
        reward_shift: added to the scaled reward (AntMaze: -1).
        return_temperature: > 0, in units of the range of the training episodes' returns: batches hold the transitions of an
            episode in proportion to exp(return / temperature). None: all alike.
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
        storage: str,
        normalize_observations: bool,
        reward_scale: float | str,
        reward_shift: float,
        return_temperature: float | None = None,
        heldout: float,
        evaluate_every: int,
        max_updates: int,
        chunk: int,
    ) -> None:
        super().__init__()
        with options_of("data"):
            require_number("heldout", heldout, "a share of the episodes in [0, 1)", lambda v: 0 <= v < 1)
            require_number("reward_shift", reward_shift, "a finite number", lambda v: True)
            if return_temperature is not None:
                require_number("return_temperature", return_temperature, "a number > 0, or null", lambda v: v > 0)
            require_one_of(STORAGES, storage=storage)
            require_flag(normalize_observations=normalize_observations)
        self.dataset_id, self.storage = dataset_id, storage
        self.normalize_observations = normalize_observations
        self.reward_scale, self.reward_shift, self.heldout_share = reward_scale, reward_shift, heldout
        self.return_temperature = return_temperature
        self.evaluate_every, self.max_updates, self.chunk = evaluate_every, max_updates, chunk
        self._spec: DataSpec | None = None
        self.train_transitions: Transitions
        self.heldout_transitions: Transitions | None
        self.heldout_lengths: np.ndarray  # transitions of each held-out episode, in the order of their transitions
        self.heldout_returns: np.ndarray
        self.train_returns: np.ndarray
        self.flat: minari_io.Flat  # rows in units of training, held-out episodes last; memmap: as recorded

    @property
    def spec(self) -> DataSpec:
        """What is known about the data; after `setup`."""
        assert self._spec is not None, "setup() has not run"
        return self._spec

    def setup(self, stage: str | None = None) -> None:
        """Read the data set, or open its cache, and split it (once)."""
        if self._spec is not None:
            return
        if self.storage == "memmap":
            flat, file = row_cache.load(self.dataset_id)
        else:
            flat, file = sources.load(self.dataset_id), None
        heldout = heldout_episodes(len(flat.lengths), self.heldout_share)
        units = self._units(flat)
        self._spec = self._describe(flat, units)
        self.heldout_lengths, self.heldout_returns = flat.lengths[heldout], flat.returns[heldout]
        self.train_returns = flat.returns[~heldout]
        draws = self._draws(flat.lengths[~heldout], flat.gross)
        if file is not None:
            self.flat = flat
            train = MappedTransitions.of(file, flat, units, ~heldout, draws)
            held = MappedTransitions.of(file, flat, units, heldout)
        else:
            units.apply(flat.rows, flat.columns.slices)
            self.flat = with_episodes_last(flat, heldout)
            rows, count = torch.from_numpy(self.flat.rows), int(flat.lengths[~heldout].sum())
            train, held = Transitions(rows[:count], flat.columns, draws), Transitions(rows[count:], flat.columns)
        self.train_transitions = train
        self.heldout_transitions = held if heldout.any() else None

    def _draws(self, lengths: np.ndarray, gross: float) -> EpisodeDraw | None:
        if self.return_temperature is None:
            return None
        return EpisodeDraw.of(lengths, transforms.return_weights(self.train_returns, gross, self.return_temperature))

    def _units(self, flat: minari_io.Flat) -> transforms.Units:
        return transforms.Units.of_observations(
            flat.observation_mean,
            flat.observation_std,
            self.normalize_observations,
            factor=transforms.reward_factor(self.reward_scale, flat.returns, flat.gross),
            shift=self.reward_shift,
        )

    def _describe(self, flat: minari_io.Flat, units: transforms.Units) -> DataSpec:
        return DataSpec(
            dataset_id=flat.dataset_id,
            digest=flat.digest,
            observation_dim=flat.columns.observation,
            action_dim=flat.columns.action,
            action_low=tuple(flat.action_low.tolist()),
            action_high=tuple(flat.action_high.tolist()),
            observation_mean=tuple(units.mean.tolist()),
            observation_std=tuple(units.std.tolist()),
            reward_scale=units.factor,
            reward_shift=units.shift,
            return_min=float(flat.returns.min()),
            return_max=float(flat.returns.max()),
            return_mean=float(flat.returns.mean()),
            reference_min=flat.references[0],
            reference_max=flat.references[1],
            environment=flat.environment,
            transitions=len(flat.rows),
            episodes=len(flat.lengths),
            one_step=bool((flat.lengths == 1).all() and (flat.ended == minari_io.TERMINATED).all()),
        )

    def diagnostic_batch(self, seeds: int, size: int = 2048) -> Batch:
        """One fixed batch of held-out transitions (of training ones where none are held out), the same for each seed.

        Where there are more than `size`, a random choice of them without repetition.
        """
        transitions = self.heldout_transitions or self.train_transitions
        indices = streams.splitmix64(torch.arange(len(transitions))).argsort()[:size]
        return transitions.gather(indices.expand(seeds, -1))

    def train_dataloader(self) -> _Chunks:
        """The schedule of chunks: batches themselves are drawn on the device."""
        return _Chunks(self)


def heldout_episodes(episodes: int, share: float) -> np.ndarray:
    """Which episodes are held out, bool (episodes,): those with the smallest hashes of their number, for every seed."""
    count = min(round(share * episodes), episodes - 1)
    if share > 0 and episodes > 1:
        count = max(count, 1)
    hashes = streams.splitmix64(torch.arange(episodes)).numpy()
    heldout = np.zeros(episodes, bool)
    heldout[np.argsort(hashes, kind="stable")[:count]] = True
    return heldout


def with_episodes_last(flat: minari_io.Flat, last: np.ndarray) -> minari_io.Flat:
    """The data set with the episodes of the mask `last` behind the others, its rows moved in place.

    Both kinds keep their order. So the two parts of a split are views of one matrix.
    """
    order = np.argsort(last, kind="stable")
    aside = flat.rows[np.repeat(last, flat.lengths)]
    begins, at = np.cumsum(flat.lengths) - flat.lengths, 0
    for begin, length in zip(begins[~last], flat.lengths[~last], strict=True):
        flat.rows[at : at + length] = flat.rows[begin : begin + length]
        at += length
    flat.rows[at:] = aside
    return dataclasses.replace(flat, lengths=flat.lengths[order], returns=flat.returns[order], ended=flat.ended[order])
