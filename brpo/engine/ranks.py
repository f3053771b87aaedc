"""The processes that train one run together: which seeds each has, and what they tell each other."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from brpo.errors import Interrupted, LeftToRankZero, TrainingDiverged, UserError

T = TypeVar("T")
AGREED = (UserError, TrainingDiverged, Interrupted, LeftToRankZero)  # ends that all ranks come to


class Ranks:
    """A rank's view of the group. Alone (`world` 1) nothing is communicated.

    Args:
        rank: number of this process.
        world: number of processes.
        mode: `seeds`: each rank trains its share of the seeds and needs nothing from the others; `data`: every rank trains
            all seeds on batches of its own, and gradients are averaged.
    """

    def __init__(self, rank: int = 0, world: int = 1, mode: str = "seeds") -> None:
        self.rank, self.world, self.mode = rank, world, mode

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the group where all come to the same end: NCCL would wait for ranks that do not."""
        if self.world > 1 and (kind is None or issubclass(kind, AGREED)):
            dist.destroy_process_group()

    @property
    def averages(self) -> bool:
        """Whether gradients are averaged over the ranks."""
        return self.world > 1 and self.mode == "data"

    @property
    def shares_seeds(self) -> bool:
        """Whether this rank trains some of the seeds only."""
        return self.world > 1 and self.mode == "seeds"

    @property
    def evaluates(self) -> bool:
        """Whether this rank rolls its policies out: in `data` they are the same everywhere, rank 0 does it."""
        return self.rank == 0 or self.shares_seeds

    def share(self, count: int) -> slice:
        """The seeds of this rank, by position: neighbouring ones, as many as the others' or one more."""
        if not self.shares_seeds:
            return slice(0, count)
        size, larger = divmod(count, self.world)
        start = self.rank * size + min(self.rank, larger)
        return slice(start, start + size + (self.rank < larger))

    def exchange(self, value: T) -> list[T]:
        """The values of all ranks, in their order; every rank must call it."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether some rank says so; every rank must call it."""
        return any(self.exchange(flag))

    def fail_together(self, error: Exception | None) -> None:
        """Where a rank has met an error, stop all of them; rank 0 says what it was. Every rank must call it.

        Raises:
            Exception: on rank 0, the error of the first rank that has one.
            LeftToRankZero: on the others.
        """
        found = [failure for failure in self.exchange(error) if failure is not None]
        if found:
            raise found[0] if self.rank == 0 else LeftToRankZero(str(found[0]))

    def average(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Means over the ranks, all tensors in one message; every rank must call it."""
        flat = _flatten_dense_tensors(list(tensors))
        dist.all_reduce(flat)
        return _unflatten_dense_tensors(flat.div_(self.world), list(tensors))

    def merge(self, records: dict[str, list[float]]) -> dict[str, list[float]]:
        """Numbers by seed from all ranks: put side by side in `seeds`, averaged in `data`; every rank must call it."""
        if self.world == 1:
            return records
        parts = self.exchange(records)
        if self.mode == "seeds":
            return {name: [number for part in parts for number in part[name]] for name in records}
        columns = {name: zip(*(part[name] for part in parts), strict=True) for name in records}
        return {name: [sum(numbers) / self.world for numbers in column] for name, column in columns.items()}


ALONE = Ranks()


def choose_mode(mode: str, seeds: int, world: int) -> str:
    """`seeds` or `data` for a number of seeds and ranks; `auto` takes `seeds` where every rank gets one.

    Raises:
        UserError: there are fewer seeds than ranks to share them.
    """
    if mode == "seeds" and seeds < world:
        raise UserError(
            f"parallel=seeds needs a seed for each of the {world} processes, and there are {seeds}. "
            f"Give more seeds, fewer trainer.devices, or parallel=data."
        )
    return mode if mode != "auto" else ("seeds" if seeds >= world else "data")


# --- Checkpoints hold all seeds, whatever the number of ranks ---------------------------------------------------------


def seed_axis(module: torch.nn.Module) -> set[str]:
    """Names of a module's state that lead with the seed axis: all parameters, and the buffer `seeds`."""
    return {"seeds", *(name for name, _ in module.named_parameters())}


def join_state(ranks: Ranks, state: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The state of all seeds, from the shares of the ranks; every rank must call it."""
    parts = ranks.exchange({name: state[name].cpu() for name in names if name in state})
    return {name: torch.cat([part[name] for part in parts]) if name in names else value for name, value in state.items()}


def own_state(state: dict[str, Any], names: set[str], share: slice) -> dict[str, Any]:
    """The share of a rank of the state of all seeds."""
    return {name: value[share] if name in names else value for name, value in state.items()}


def join_optimizer(ranks: Ranks, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`state_dict` of an optimizer for all seeds; every rank must call it."""
    own = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stacked = {
        number: {
            name: value.cpu()
            for name, value in own["state"].get(number, {}).items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }
        for number, parameter in enumerate(parameters)
    }
    parts = ranks.exchange(stacked)
    state = {
        number: {
            name: torch.cat([part[number][name] for part in parts]) if name in stacked[number] else value
            for name, value in entries.items()
        }
        for number, entries in own["state"].items()
    }
    return {**own, "state": state}


def own_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer, share: slice) -> dict[str, Any]:
    """The share of a rank of an optimizer's state for all seeds."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def own(number: int, value: Any) -> Any:
        stacked = isinstance(value, Tensor) and value.dim() and value.shape[1:] == parameters[number].shape[1:]
        return value[share] if stacked else value

    entries = {
        number: {name: own(number, value) for name, value in values.items()} for number, values in state["state"].items()
    }
    return {**state, "state": entries}
