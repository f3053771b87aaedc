"""What may stand beside what: methods and tasks, and the results that belong to each pair of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brpo.errors import UserError
from brpo.reports.naming import grouped, naming
from brpo.reports.seed_result import Protocol, SeedResult


@dataclass(frozen=True, order=True)
class Task:
    """A data set, and the metric that its results have, a key of `METRICS`."""

    dataset: str
    digest: str
    metric: str


Tasks = tuple[Task, ...]


@dataclass(frozen=True)
class Method:
    """What is compared: an algorithm with its options.

    Attributes:
        name: unique in the report.
        algo: name of the algorithm.
        variant: its place among the methods of this algorithm, from 0.
    """

    name: str
    algo: str
    variant: int


@dataclass(frozen=True, eq=False)  # told apart by identity, so that what is computed of one can be kept
class Comparison:
    """Results of one protocol: a grid of methods and tasks, with holes where nothing was run.

    Attributes:
        protocol: how all of them were evaluated.
        methods: its rows.
        tasks: its columns.
        cells: seeds of a method on a task, by seed; pairs without results are missing.
    """

    protocol: Protocol
    methods: tuple[Method, ...]
    tasks: tuple[Task, ...]
    cells: dict[tuple[Method, Task], list[SeedResult]]

    def columns(self, metric: str) -> Tasks:
        """Tasks whose results have a metric."""
        return tuple(task for task in self.tasks if task.metric == metric)

    def scopes(self) -> dict[str, Tasks]:
        """What numbers over tasks are over: `all` with scores; if there are holes, the `common` ones that every method has.

        The second is left out where it has fewer than two tasks; there is none where no task has scores.
        """
        tasks = self.columns("score")
        common = tuple(task for task in tasks if all((method, task) in self.cells for method in self.rows(tasks)))
        found = {"all": tasks} if tasks else {}
        return found | {"common": common} if 2 <= len(common) < len(tasks) else found

    def rows(self, tasks: Sequence[Task]) -> tuple[Method, ...]:
        """Methods with a result on one of some tasks."""
        return tuple(method for method in self.methods if any((method, task) in self.cells for task in tasks))

    def values(self, method: Method, task: Task, rule: str) -> np.ndarray:
        """Numbers of a rule, (seeds,); none in a hole."""
        return np.array([result.value(rule) for result in self.cells.get((method, task), [])])

    def all_values(self, method: Method, tasks: Sequence[Task], rule: str) -> list[np.ndarray] | None:
        """Numbers of a rule on each task; None where one of them is a hole, so that no mean leaves out what is hard."""
        found = [self.values(method, task, rule) for task in tasks]
        return found if found and all(len(values) for values in found) else None


def compare(results: Sequence[SeedResult]) -> tuple[list[Comparison], list[str]]:
    """Comparisons, one for each protocol, and notes about the names of the methods.

    Raises:
        UserError: an id stands for two data sets or has two pairs of reference returns, or a seed of a method is there twice
            with different numbers.
    """
    _refuse_two_data_sets(results)
    known = naming(results)
    order = sorted(results, key=lambda result: (result.algo, known[result.algo].place(result)))
    names = list(dict.fromkeys((known[result.algo].name(result), result.algo) for result in order))
    variants: dict[str, int] = {}
    methods, by_name = {}, grouped(results, lambda result: known[result.algo].name(result))
    for name, algo in names:
        methods[name] = Method(name, algo, variants.setdefault(algo, 0))
        variants[algo] += 1
    by_protocol = grouped(order, lambda result: result.protocol)
    comparisons = [
        _comparison(protocol, [(methods[known[result.algo].name(result)], result) for result in group])
        for protocol, group in sorted(by_protocol.items(), key=lambda item: str(item[0]))
    ]
    notes = [note for algorithm in known.values() for note in algorithm.notes]
    return comparisons, notes + [note for method in methods for note in _mixed_code(method, by_name[method])]


def last_of_each(results: Sequence[SeedResult]) -> tuple[list[SeedResult], list[str]]:
    """Of results for one seed of the same options, data and protocol the last; and a note of the runs that are left out."""
    kept: dict[tuple[Any, ...], SeedResult] = {}
    for result in results:
        options = json.dumps(result.options, sort_keys=True)
        kept[result.algo, options, result.dataset, result.digest, result.protocol, result.seed] = result
    chosen = list(kept.values())
    left = [f"seed {result.seed} of {result.run}" for result in results if all(result is not other for other in chosen)]
    return chosen, [f"Left out, since a later run has the seed: {', '.join(left)}."] if left else []


def _comparison(protocol: Protocol, results: Sequence[tuple[Method, SeedResult]]) -> Comparison:
    cells: dict[tuple[Method, Task], list[SeedResult]] = {}
    for method, result in results:
        assert result.metric is not None, "runs without rollouts are left out before"
        cells.setdefault((method, Task(result.dataset, result.digest, result.metric)), []).append(result)
    methods = tuple(dict.fromkeys(method for method, _ in results))
    tasks = tuple(sorted({task for _, task in cells}))
    return Comparison(protocol, methods, tasks, {cell: _each_seed_once(cell[0], found) for cell, found in cells.items()})


def _mixed_code(name: str, results: Sequence[SeedResult]) -> list[str]:
    """A note where a method's numbers come from several states of its code. Older results do not say which they had."""
    by_code = grouped([result for result in results if result.code], lambda result: result.code)
    if len(by_code) < 2 and not any(" then " in str(code) for code in by_code):
        return []
    states = (
        f"{' then '.join(part[:12] for part in code.split(' then '))} in {_runs(group)}" for code, group in by_code.items()
    )
    return [f"{name} stands for more than one state of the method's code, counted together: {'; '.join(states)}."]


def _each_seed_once(method: Method, results: Sequence[SeedResult]) -> list[SeedResult]:
    """The results by seed. A run and its copy in a compact file are one; which of two measurements counts is not for us."""
    kept: dict[int, SeedResult] = {}
    for result in sorted(results, key=lambda result: result.seed):
        first = kept.setdefault(result.seed, result)
        if dict(first.values) != dict(result.values):
            raise UserError(
                f"Seed {result.seed} of {method.name} on {result.dataset} is there twice with different numbers: "
                f"{first.run} and {result.run}. Give brpo report only the run that counts, or --last: "
                f"the one that is found last counts then."
            )
    return list(kept.values())


def _refuse_two_data_sets(results: Sequence[SeedResult]) -> None:
    for dataset, group in grouped(results, lambda result: result.dataset).items():
        first, *others = grouped(group, lambda result: result.digest).values()
        if others:
            left, right = first[0], others[0][0]
            raise UserError(
                f"{dataset} stands for two data sets, which cannot share a column: {left.digest[:12]} in {_runs(first)} and "
                f"{right.digest[:12]} in {_runs(others[0])}. Report them one after another, or train again on one of them."
            )
        scored = [result for result in group if result.references]
        units = list(grouped(scored, lambda result: result.references).items())
        if len(units) > 1:
            (these, first), (those, second) = units[:2]
            raise UserError(
                f"Scores on {dataset} are in two units, which cannot share a column: returns of {these} score 0 and 100 in "
                f"{_runs(first)}, returns of {those} in {_runs(second)}. Report them one after another."
            )


def _runs(results: Sequence[SeedResult]) -> str:
    runs = list(dict.fromkeys(result.run for result in results))
    return ", ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
