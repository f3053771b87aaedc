"""Runners make the updates of a chunk. The algorithm does not know which one it runs under."""

import torch
from torch import Tensor

from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.datamodule import Transitions, batch_indices


class EagerRunner:
    """Plain Python: draws the indices of the whole chunk at once, then gathers and updates one batch after another.

    Args:
        transitions: the data, on the algorithm's device.
        batch_size: transitions of an update, for each seed.
    """

    warms_up = 1  # chunks of a kind before they take the time that they will take: what is compiled is compiled in them

    def __init__(self, transitions: Transitions, batch_size: int) -> None:
        self.transitions, self.batch_size = transitions, batch_size

    def run(self, algorithm: OfflineAlgorithm, start: int, stop: int) -> None:
        """Make the updates [start, stop)."""
        self.update(algorithm, self.indices(algorithm, start, stop))

    def indices(self, algorithm: OfflineAlgorithm, start: int, stop: int) -> Tensor:
        """What the updates [start, stop) are made from: (updates, seeds, batch)."""
        device = self.transitions.index_device
        updates = torch.arange(start, stop, device=device)
        return batch_indices(algorithm.stream_seeds.to(device), updates, self.batch_size, self.transitions)

    def update(self, algorithm: OfflineAlgorithm, indices: Tensor) -> None:
        """One update for each row of indices."""
        for row in indices.unbind(0):
            algorithm.step(self.transitions.gather(row))
