"""`engine=cudagraph`: the updates of a chunk, optimizers and targets included, captured once and replayed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brpo.algorithms.base import OfflineAlgorithm
from brpo.datasets.datamodule import Transitions
from brpo.engine.optimizers import rate_type
from brpo.engine.runner import EagerRunner

MAX_GRAPHS = 4  # one for each pattern of what is due in a chunk; further patterns run eagerly
Capture = Callable[[Callable[[], None]], Callable[[], None]]


def cuda_capture(run: Callable[[], None]) -> Callable[[], None]:
    """Record what `run` launches, without executing it; gives the function that launches all of it at once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@dataclass(frozen=True)
class Captured:
    """A captured chunk: what it reads, what it leaves behind."""

    replay: Callable[[], None]
    indices: Tensor  # (updates, seeds, batch), copied in before each replay
    rates: dict[str, Tensor]  # (updates, 1) by part, copied in too
    records: list[dict[str, Tensor]]  # by update; each replay overwrites the tensors


class GraphRunner(EagerRunner):
    """Replays whole chunks; the first chunk of each pattern of what is due, and shorter ones, run update by update.

    A graph repeats the operations that Python asked for when it was captured. What may differ between chunks is data
    (indices, learning rates, the update counter on the device) or which parts are due, for which there is a graph each.
    The algorithm's update may be a compiled one: its versions are made in the chunks that run before a capture.

    Args:
        transitions: the data, on the algorithm's device.
        batch_size: transitions of an update, for each seed.
        chunk: updates in a whole chunk.
        capture: records a function's operations.
    """

    warms_up = 2  # one by one, then captured

    def __init__(self, transitions: Transitions, batch_size: int, chunk: int, capture: Capture = cuda_capture) -> None:
        super().__init__(transitions, batch_size)
        self.chunk, self.capture = chunk, capture
        self.seen: set[tuple[bool, ...]] = set()  # patterns that ran uncaptured: all they need is allocated and compiled
        self.graphs: dict[tuple[bool, ...], Captured] = {}
        self.pretraining = False

    def run(self, algorithm: OfflineAlgorithm, start: int, stop: int) -> None:
        """Make the updates [start, stop)."""
        if algorithm.pretraining is not self.pretraining:  # another phase trains other parts, with states of their own
            self.pretraining, self.seen, self.graphs = algorithm.pretraining, set(), {}
        make_capturable(algorithm)
        pattern = self._pattern(algorithm, start)
        if stop - start != self.chunk:
            super().run(algorithm, start, stop)
        elif pattern in self.graphs:
            self._replay(algorithm, self.graphs[pattern], start)
        elif pattern in self.seen and len(self.graphs) < MAX_GRAPHS:
            self.graphs[pattern] = self._capture(algorithm, start)
            self._replay(algorithm, self.graphs[pattern], start)
        else:
            self._warm_up(algorithm, start, stop)
            self.seen.add(self._pattern(algorithm, start))  # by now `due` was asked for all that it will be

    def _pattern(self, algorithm: OfflineAlgorithm, start: int) -> tuple[bool, ...]:
        """What will be due in each update of the chunk from `start` on."""
        updates = range(start, start + self.chunk)
        return tuple(due for update in updates for due in algorithm.what_is_due(update).values())

    def _warm_up(self, algorithm: OfflineAlgorithm, start: int, stop: int) -> None:
        """A chunk on a stream of its own: optimizers make their state, libraries their workspaces, versions are compiled."""
        if algorithm.device.type != "cuda":
            super().run(algorithm, start, stop)
            return
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            super().run(algorithm, start, stop)
        current.wait_stream(side)

    def _capture(self, algorithm: OfflineAlgorithm, start: int) -> Captured:
        indices = self.indices(algorithm, start, start + self.chunk)
        # 16 bytes apart: compiled code copies inputs that are not aligned.
        kind = rate_type(algorithm.device)
        rates = {name: torch.zeros(self.chunk, 4, dtype=kind, device=algorithm.device)[:, :1] for name in algorithm.active}
        history, algorithm.history = algorithm.history, []
        try:
            replay = self.capture(lambda: self._updates(algorithm, indices, rates))
        finally:
            records = [recorded for _, recorded in algorithm.history]
            algorithm.history, algorithm.update_count, algorithm.rates = history, start, None
        return Captured(replay, indices, rates, records)

    def _updates(self, algorithm: OfflineAlgorithm, indices: Tensor, rates: dict[str, Tensor]) -> None:
        for number, row in enumerate(indices.unbind(0)):
            algorithm.rates = {name: values[number] for name, values in rates.items()}
            algorithm.step(self.transitions.gather(row))

    def _replay(self, algorithm: OfflineAlgorithm, captured: Captured, start: int) -> None:
        captured.indices.copy_(self.indices(algorithm, start, start + self.chunk))
        for name, rates in captured.rates.items():
            planned = [algorithm.rate(name, start + k) for k in range(self.chunk)]
            rates.copy_(torch.tensor(planned, dtype=rates.dtype)[:, None], non_blocking=True)
        captured.replay()
        algorithm.history += [(start + k, recorded) for k, recorded in enumerate(captured.records)]
        algorithm.update_count = start + self.chunk


def obstacle(algorithm: OfflineAlgorithm) -> str | None:
    """Why the optimizers cannot be captured: a step count or a rate that is read by Python; None if they can."""
    for optimizer in algorithm.optimizers_by_part.values():
        if not all("capturable" in group or group.get("fused") for group in optimizer.param_groups):
            return f"{type(optimizer).__name__} is neither capturable nor fused (try algo.optimizer.fused=true)"
    return None


def make_capturable(algorithm: OfflineAlgorithm) -> None:
    """Let the optimizers keep their step counts on the device."""
    for optimizer in algorithm.optimizers_by_part.values():
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        for parameter, state in optimizer.state.items():
            _move_step(parameter, state)


def _move_step(parameter: Tensor, state: dict[str, Any]) -> None:
    if isinstance(state.get("step"), Tensor):
        state["step"] = state["step"].to(parameter.device, torch.float32)
