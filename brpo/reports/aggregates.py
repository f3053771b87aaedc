"""Numbers of a comparison: of each method on each task, over tasks, and of each method against each other."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brpo.reports import statistics
from brpo.reports.comparison import Comparison, Method, Task, Tasks
from brpo.reports.seed_result import METRICS, RULES
from brpo.reports.statistics import Interval


@dataclass(frozen=True)
class Aggregate:
    """A method over one or several tasks of the same metric.

    Attributes:
        method: its name.
        rule: `final`, `best` or `auc`.
        tasks: how many.
        runs: seeds on all of them together.
        mean: over tasks of the mean over seeds.
        mean_interval: its 95 % interval; None where a task has one seed.
        std: standard deviation over seeds (population); over tasks its mean.
        iqm: interquartile mean over all runs, every task counting the same.
        iqm_interval: its 95 % interval.
        cvar: mean of the worst tenth of all runs, rounded up, every task counting the same.
        worst_task: the task with the worst mean, and this mean.
        worst_seed: the task and seed with the worst number, and this number.
    """

    method: str
    rule: str
    tasks: int
    runs: int
    mean: float
    mean_interval: Interval
    std: float
    iqm: float
    iqm_interval: Interval
    cvar: float
    worst_task: tuple[Task, float]
    worst_seed: tuple[Task, int, float]


def aggregate(comparison: Comparison, method: Method, tasks: Sequence[Task], rule: str) -> Aggregate | None:
    """A method over some tasks; None where it has a hole among them."""
    values = comparison.all_values(method, tasks, rule)
    if values is None:
        return None
    sign = METRICS[tasks[0].metric].sign
    means = [float(task.mean()) for task in values]
    seeds = [
        (task, result.seed, result.value(rule)) for task in tasks for result in comparison.cells.get((method, task), [])
    ]
    return Aggregate(
        method=method.name,
        rule=rule,
        tasks=len(tasks),
        runs=len(seeds),
        mean=float(np.mean(means)),
        mean_interval=statistics.interval(statistics.mean_of_tasks, values),
        std=float(np.mean([task.std() for task in values])),
        iqm=float(statistics.iqm(*values)),
        iqm_interval=statistics.interval(statistics.iqm, values),
        cvar=sign * float(statistics.worst_tenth(*(sign * task for task in values))),
        worst_task=min(zip(tasks, means, strict=True), key=lambda pair: sign * pair[1]),
        worst_seed=min(seeds, key=lambda triple: sign * triple[2]),
    )


@functools.cache
def over_tasks(comparison: Comparison, tasks: Tasks) -> dict[tuple[Method, str], Aggregate | None]:
    """Methods and rules over some tasks of `Comparison.scopes`; None where a method has holes."""
    return {
        (method, rule): aggregate(comparison, method, tasks, rule) for method in comparison.rows(tasks) for rule in RULES
    }


@functools.cache
def worst_shares(comparison: Comparison, rule: str = "final") -> dict[Method, tuple[float, Task]]:
    """The smallest share that a method's mean score has of the best method's there, and the task that it has it on.

    Over the tasks with scores that the method has, so a hole elsewhere hides nothing; those where no method is above 0
    are left out. Source: the robustness that Sf-AC claims (arXiv:2508.04225, section 6); the number is ours.
    """
    best, means = {}, {}
    for task in comparison.columns("score"):
        of_task = {
            m: float(comparison.values(m, task, rule).mean()) for m in comparison.methods if (m, task) in comparison.cells
        }
        best[task] = max(of_task.values())
        means |= {(method, task): mean for method, mean in of_task.items()}
    shares: dict[Method, tuple[float, Task]] = {}
    for (method, task), mean in means.items():
        if best[task] > 0 and (method not in shares or mean / best[task] < shares[method][0]):
            shares[method] = mean / best[task], task
    return shares


@functools.cache
def improvements(comparison: Comparison, tasks: Tasks) -> dict[tuple[Method, Method], tuple[float, Interval]]:
    """Probability that the first of two methods is better than the second, final scores over some tasks.

    Methods with holes among the tasks are left out.
    """
    values = {method: comparison.all_values(method, tasks, "final") for method in comparison.rows(tasks)}
    whole = {method: found for method, found in values.items() if found is not None}
    found = {}
    for ours, theirs in itertools.combinations(whole, 2):
        value, interval = statistics.probability_of_improvement(whole[ours], whole[theirs])
        found[ours, theirs] = value, interval
        found[theirs, ours] = 1 - value, None if interval is None else (1 - interval[1], 1 - interval[0])
    return found
