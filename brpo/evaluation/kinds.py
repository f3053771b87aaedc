"""What evaluations have in common: rollouts in an environment, and samples on a toy task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from brpo.datasets.ids import is_toy

MODES = ("mean", "sampled")  # how a policy acts when it is evaluated: its mode, or a sample


class Summary(Protocol):
    """What one evaluation says about one seed."""

    @property
    def seed(self) -> int:
        """The seed."""
        ...

    @property
    def update(self) -> int:
        """Number of updates made."""
        ...

    def numbers(self) -> dict[str, float | None]:
        """Everything else, by the name of its column; the names are the same for all seeds and updates."""
        ...


class Evaluator(Protocol):
    """Evaluates the policies of all seeds of this process."""

    def evaluate(
        self, algorithm: Any, seeds: list[int], update: int, stop: Callable[[], bool] = lambda: False
    ) -> Sequence[Summary]:
        """A summary for each seed; raises `Interrupted` when `stop` says so."""
        ...

    def pictures(self) -> dict[str, bytes]:
        """Pictures of what was evaluated last, as PNG by name."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


@dataclass(frozen=True)
class Kind:
    """How the evaluations of a run are judged and reported.

    Attributes:
        reported: names in `result.json`, with their columns.
        lead: names among these; the first one that has numbers stands for the evaluation where there is room for one.
        judged_by: column that decides which evaluation is the best.
        larger_is_better: whether its largest mean over the seeds is the best.
        words: what the reported numbers are called.
        digits: behind the point, for people.
    """

    reported: dict[str, str]
    lead: tuple[str, ...]
    judged_by: str
    larger_is_better: bool
    words: dict[str, str]
    digits: int

    def best(self, rows: Sequence[dict[str, Any]]) -> int | None:
        """The update with the best mean over the seeds, the first of equal ones, NaN last; None without rows."""
        table: dict[int, list[float]] = {}
        for row in rows:
            table.setdefault(row["update"], []).append(row[self.judged_by])
        sign = 1.0 if self.larger_is_better else -1.0
        means = {update: sign * float(np.mean(values)) for update, values in table.items()}
        return max(table, key=lambda update: (-np.inf if np.isnan(means[update]) else means[update], -update), default=None)

    @property
    def rule(self) -> str:
        """Which checkpoint counts as what, in words."""
        size = "largest" if self.larger_is_better else "smallest"
        return (
            f"final is primary; best is the evaluation with the {size} mean {self.words[self.judged_by]} over the seeds; "
            f"auc is the mean over all evaluations"
        )


ROLLOUTS = Kind(
    reported={"return": "return_mean", "score": "score"},
    lead=("score", "return"),
    judged_by="return_mean",
    larger_is_better=True,
    words={"return": "return", "return_mean": "return", "score": "normalized score"},
    digits=1,
)
SAMPLES = Kind(
    reported={"sliced_wasserstein": "sliced_wasserstein", "energy_mean": "energy_mean"},
    lead=("sliced_wasserstein",),
    judged_by="sliced_wasserstein",
    larger_is_better=False,
    words={"sliced_wasserstein": "sliced Wasserstein distance", "energy_mean": "mean energy"},
    digits=4,
)


def kind_of(dataset_id: str) -> Kind:
    """How runs on a data set are evaluated."""
    return SAMPLES if is_toy(dataset_id) else ROLLOUTS
