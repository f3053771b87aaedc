"""What the peers of `peers.py` share: the work that each of them does, and what each of them gives back.

A peer is a file `peers_<name>.py` with a function `make(workload) -> Peer`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.datamodule import OfflineDataModule, Transitions

FIELDS = ("observations", "actions", "rewards", "terminated", "next_observations")  # the columns of a row, in order


class Unavailable(Exception):
    """A peer cannot do this work; the message says why."""


@dataclass(frozen=True)
class Peer:
    """Something whose updates are timed.

    Attributes:
        name: with its version.
        run: makes that many whole updates (batches included) and returns once they are computed.
        note: what a reader of its ratio should know.
    """

    name: str
    run: Callable[[int], None]
    note: str = ""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks, all with the same hidden layers and ReLU."""

    observation: int
    action: int
    hidden: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """The updates that are timed: their data, sizes and options.

    Attributes:
        algo: a name in conf/algo.
        config: the composed configuration; every peer takes its options from here.
        algorithm: brpo's side, with its runner.
        transitions: all the data, on the device, in the networks' units.
        lengths: transitions of every episode, in the order of `transitions`.
        device: `cpu` or `cuda`.
        scan: updates that JAX makes in one call.
    """

    algo: str
    config: dict[str, Any]
    algorithm: OfflineAlgorithm
    transitions: Transitions
    lengths: np.ndarray
    device: str
    scan: int = 100

    @property
    def options(self) -> dict[str, Any]:
        """The options of the algorithm."""
        return self.config["algo"]

    @property
    def batch_size(self) -> int:
        """Transitions of an update."""
        return self.config["batch_size"]

    @property
    def sizes(self) -> Sizes:
        """Sizes of the networks: those of the actor, which are those of all parts by default."""
        spec = self.algorithm.spec
        return Sizes(spec.observation_dim, spec.action_dim, tuple(self.options["actor"]["hidden"]))

    def fields(self) -> dict[str, Tensor]:
        """The data, a tensor for each of `FIELDS`: (transitions,) or (transitions, size)."""
        return split(self.transitions)


def split(transitions: Transitions) -> dict[str, Tensor]:
    """Transitions as a tensor for each of `FIELDS`; `rewards` and `terminated` are vectors."""
    columns = zip(FIELDS, transitions.columns.slices, strict=False)  # the next action, which is last, has no use here
    tensors = {name: transitions.rows[:, column].contiguous() for name, column in columns}
    return {**tensors, "rewards": tensors["rewards"].squeeze(1), "terminated": tensors["terminated"].squeeze(1)}


def make_workload(
    algo: str,
    config: dict[str, Any],
    algorithm: OfflineAlgorithm,
    datamodule: OfflineDataModule,
    device: str = "cpu",
    scan: int = 100,
) -> Workload:
    """The work that a configuration describes. It must hold nothing out: all sides train on all of the data."""
    assert config["data"]["heldout"] == 0, "data.heldout must be 0 where peers are timed"
    transitions = datamodule.train_transitions.to(algorithm.seeds.device)
    return Workload(algo, config, algorithm, transitions, np.asarray(datamodule.flat.lengths), device, scan)
