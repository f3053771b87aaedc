"""Runners make the updates of a chunk. The algorithm does not know which one it runs under."""

import torch

from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.datamodule import Transitions, batch_indices


class EagerRunner:
    """Plain Python: draws the indices of the whole chunk at once, then gathers and updates one batch after another.

    Args:
        transitions: the data, on the algorithm's device.
        batch_size: transitions of an update, for each seed.
    """

    def __init__(self, transitions: Transitions, batch_size: int) -> None:
        self.transitions, self.batch_size = transitions, batch_size

    def run(self, algorithm: OfflineAlgorithm, start: int, stop: int) -> None:
        """Make the updates [start, stop)."""
        updates = torch.arange(start, stop, device=algorithm.seeds.device)
        indices = batch_indices(algorithm.seeds, updates, self.batch_size, len(self.transitions))
        for row in indices.unbind(0):
            algorithm.step(self.transitions.gather(row))
