"""Runners make the updates of a chunk. The algorithm does not know which one it runs under."""

import torch
from torch import Tensor

from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.datamodule import Transitions, batch_indices
from brpo.errors import UserError


class EagerRunner:
    """Plain Python: draws the indices of the whole chunk at once, then gathers and updates one batch after another.

    Args:
        transitions: the data, on the algorithm's device.
        batch_size: transitions of an update, for each seed.
    """

    warms_up = 1  # chunks of a kind before they take the time that they will take: what is compiled is compiled in them

    def __init__(self, transitions: Transitions, batch_size: int) -> None:
        self.transitions, self.batch_size = transitions, batch_size
        self.checked: bool | None = None  # whether it was in the pre-training that the first update was looked at

    def run(self, algorithm: OfflineAlgorithm, start: int, stop: int) -> None:
        """Make the updates [start, stop)."""
        self.update(algorithm, self.indices(algorithm, start, stop))

    def indices(self, algorithm: OfflineAlgorithm, start: int, stop: int) -> Tensor:
        """What the updates [start, stop) are made from: (updates, seeds, batch)."""
        device = self.transitions.index_device
        updates = torch.arange(start, stop, device=device)
        return batch_indices(algorithm.stream_seeds.to(device), updates, self.batch_size, self.transitions)

    def update(self, algorithm: OfflineAlgorithm, indices: Tensor) -> None:
        """One update for each row of indices. The first of each phase is looked at: no graph has been captured by then."""
        rows = indices.unbind(0)
        if self.checked is not algorithm.pretraining:
            self.checked = algorithm.pretraining
            before = global_generators(algorithm.device)
            algorithm.step(self.transitions.gather(rows[0]))
            if not all(map(torch.equal, before, global_generators(algorithm.device))):
                raise UserError(
                    f"{type(algorithm).__name__} draws random numbers from torch's global generator (torch.randn, dropout, "
                    f"rsample of torch.distributions): the same command would not give the same result, nor would a "
                    f"resumed run. Draw them with self.normal(name, like), self.uniform(name, like), self.integers(name, "
                    f"count, high) or self.sample(observations, name) (docs/extending.md)."
                )
            rows = rows[1:]
        for row in rows:
            algorithm.step(self.transitions.gather(row))


def global_generators(device: torch.device) -> list[Tensor]:
    """The states of torch's own random number generators that an update on a device could draw from."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]
