"""A data set as flat transitions, wherever it comes from: a Minari file, or a toy task that is generated."""

import numpy as np

from brpo.datasets import minari_io, toy
from brpo.datasets.ids import is_toy
from brpo.datasets.minari_io import BOUNDARY, TERMINATED, Columns, DatasetSummary, Flat


def load(dataset_id: str) -> Flat:
    """Read or generate a data set.

    Raises:
        UserError: there is no such data set, or it is not one that can be trained on.
    """
    return generate(dataset_id) if is_toy(dataset_id) else minari_io.load(dataset_id)


def check(dataset_id: str) -> DatasetSummary:
    """Read every episode of a data set, whatever its size, and keep none.

    Raises:
        UserError: as `load`.
    """
    return generate(dataset_id) if is_toy(dataset_id) else minari_io.check(dataset_id)


def generate(dataset_id: str) -> Flat:
    """A toy task as transitions: state 0, the point as action, its energy as reward, terminated; the same at each call.

    Raises:
        UserError: there is no such task.
    """
    points = toy.sample(dataset_id)
    energies, count = toy.energy(dataset_id, points), len(points)
    columns = Columns(observation=1, action=2)
    rows = np.zeros((count, sum(columns.widths)), np.float32)
    _, action, reward, terminated, _, next_action = (rows[:, place] for place in columns.slices)
    action[:], reward[:, 0], terminated[:] = points, energies, 1.0
    next_action[:] = points  # as at the end of any episode; nothing uses it
    return Flat(
        dataset_id=dataset_id,
        digest=toy.digest(points, energies),
        columns=columns,
        rows=rows,
        lengths=np.ones(count, np.int64),
        returns=energies.astype(np.float64),
        gross=float(np.abs(energies).max()),
        ended=np.full(count, TERMINATED),
        action_low=np.full(2, -1.0),
        action_high=np.full(2, 1.0),
        clipped=0,
        boundary_share=float((np.abs(points) >= 1.0 - BOUNDARY).mean()),
        observation_mean=np.zeros(1),
        observation_std=np.zeros(1),
        metadata={"description": f"Generated, one state. Energy: {toy.task_of(dataset_id).description}."},
    )
