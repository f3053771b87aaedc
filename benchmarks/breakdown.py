"""Where the time of an update goes: share of matrix products and of optimizer steps, and operations per update.

python benchmarks/breakdown.py [--algo iql] [--engine eager] [--threads 1]

The step of an optimizer is Adam's kernel (brpo/engine/optimizers.py). Under `engine=compile` everything but products and
random numbers is in kernels of the compiler's own, so there only the share of the products can be told.
"""

from collections import Counter
from typing import Any

from common import build, composed, machine
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from brpo.exits import run_command

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "mkldnn::_linear_pointwise")
STEPS = ("aten::_fused_adam_", "aten::_fused_adamw_")


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def main(algo: str = "iql", engine: str = "eager", threads: int = 1, updates: int = 100) -> None:
    """Profile some updates after a warm-up."""
    algorithm, _ = build(composed(f"algo={algo}", "trainer=cpu", f"engine={engine}", f"engine.threads={threads}"))
    runner = algorithm.runner
    assert runner is not None
    runner.run(algorithm, 0, updates)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        runner.run(algorithm, updates, 2 * updates)
    rows = profiled.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    products = [row for row in rows if row.key in PRODUCTS]
    steps = [row for row in rows if row.key in STEPS]
    print(machine())
    print(f"{algo}, engine={engine}: {share(products, total)} matrix products, {share(steps, total)} steps of optimizers")
    for row in sorted(products + steps, key=lambda row: -row.self_cpu_time_total):
        each = row.cpu_time_total / row.count
        print(f"  {row.key:28s} {row.count / updates:5.1f} an update, {each:6.1f} us each, {share([row], total)}")
    if engine != "eager":  # the compiler refuses to run under a counter
        return
    with Operations() as operations:
        runner.run(algorithm, 2 * updates, 2 * updates + 10)
    print(f"{sum(operations.counts.values()) / 10:.0f} dispatched operations an update (views included)")


def share(rows: list[Any], total: float) -> str:
    """Of the time."""
    return f"{100 * sum(row.self_cpu_time_total for row in rows) / total:.0f} %"


if __name__ == "__main__":
    run_command(main)
