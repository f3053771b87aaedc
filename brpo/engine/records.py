"""What the updates of a chunk recorded: their means, and where a number is not finite."""

from collections.abc import Callable

import torch
from torch import Tensor

from brpo.errors import TrainingDiverged

History = list[tuple[int, dict[str, Tensor]]]  # of each update: its number, and a tensor (seeds,) by name


def means(history: History, seeds: Tensor, moment: Callable[[int], str]) -> dict[str, list[float]]:
    """Means over the updates that recorded a name, for each a number per seed; the one transfer off the device.

    Raises:
        TrainingDiverged: a number is NaN or infinite; names what it is, the seed and the update, as `moment` calls it.
    """
    series: dict[str, list[Tensor]] = {}
    for _, recorded in history:
        for name, value in recorded.items():
            series.setdefault(name, []).append(value)
    if not series:
        return {}
    table = torch.stack([torch.stack(values).mean(0) for values in series.values()]).float().cpu()
    if not table.isfinite().all():
        _raise_diverged(history, seeds.tolist(), moment)
    return dict(zip(series, table.tolist(), strict=True))


def _raise_diverged(history: History, seeds: list[int], moment: Callable[[int], str]) -> None:
    """Find the first update with a number that is not finite; within it, the first name that was recorded."""
    for update, recorded in history:
        for name, value in recorded.items():
            bad = ~value.isfinite().cpu()  # (seeds,)
            if bad.any():
                seed = seeds[int(bad.nonzero()[0])]
                raise TrainingDiverged(f"{name} of seed {seed} became NaN or infinite at {moment(update)}")
