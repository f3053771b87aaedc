"""Where the time of an update goes: share of matrix products and of optimizer steps, and operations per update.

python benchmarks/breakdown.py [--algo iql] [--threads 1]
"""

from collections import Counter
from typing import Any

import typer
from common import build, composed, machine
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def main(algo: str = "iql", threads: int = 1, updates: int = 100) -> None:
    """Profile some updates after a warm-up."""
    algorithm, _ = build(composed(f"algo={algo}", "trainer=cpu", f"engine.threads={threads}"))
    runner = algorithm.runner
    assert runner is not None
    runner.run(algorithm, 0, updates)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        runner.run(algorithm, updates, 2 * updates)
    rows = profiled.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    products = sum(row.self_cpu_time_total for row in rows if row.key in PRODUCTS)
    steps = sum(row.cpu_time_total for row in rows if row.key.startswith("Optimizer.step"))
    with Operations() as operations:
        runner.run(algorithm, 2 * updates, 2 * updates + 10)
    print(machine())
    print(f"{algo}: matrix products {100 * products / total:.0f} %, optimizer steps {100 * steps / total:.0f} %")
    print(f"{sum(operations.counts.values()) / 10:.0f} dispatched operations an update (views included)")


if __name__ == "__main__":
    typer.run(main)
