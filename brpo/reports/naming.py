"""Names of methods: the algorithm, and the options in which runs of the same algorithm differ."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from brpo.reports.seed_result import SeedResult

TARGET = "_target_"  # an option's name for a class
SOURCE = "behavior"  # where a pre-trained model came from: often a path, another one for each data set
NULL_BEFORE = ("data.return_temperature",)  # outside `algo`: null, not another default, where a result does not know it


@dataclass(frozen=True)
class Naming:
    """How the runs of one algorithm are told apart.

    Runs are of one method if no option differs between them that differs anywhere within one data set. Options that differ
    between data sets alone (an expectile of 0.9 on AntMaze) are part of the method; a note names them.

    Attributes:
        algo: name of the algorithm.
        keys: dotted keys of the options that tell its methods apart.
        names: what these are called, the shortest end of the key that no other has.
        usual: names to the values of the method that the others are variants of. They are left out of a method's name; a
            note says them.
        absent: whether names say `null` of options that a result does not know; they do where two would be alike without.
        notes: what a reader must know about the names.
    """

    algo: str
    keys: tuple[str, ...]
    names: tuple[str, ...]
    usual: dict[str, str]
    absent: bool
    notes: tuple[str, ...]

    def name(self, result: SeedResult) -> str:
        """`sfac`, or `sfac epsilon=1`."""
        options = zip(self.keys, self.names, _values(result, self.keys), strict=True)
        said = [(name, value) for key, name, value in options if self.absent or key in result.options]
        return " ".join([self.algo, *(f"{name}={value}" for name, value in said if self.usual.get(name) != value)])

    def place(self, result: SeedResult) -> tuple[Any, ...]:
        """What methods are sorted by: their options in turn, numbers by size and before words."""
        return tuple(_place(result.options.get(key)) for key in self.keys)


def naming(results: Sequence[SeedResult]) -> dict[str, Naming]:
    """The naming of each algorithm in some results."""
    return {algo: _naming(algo, group) for algo, group in sorted(grouped(results, lambda result: result.algo).items())}


def grouped(results: Iterable[SeedResult], key: Callable[[SeedResult], Any]) -> dict[Any, list[SeedResult]]:
    """Results by a key, in the order in which the keys come."""
    groups: dict[Any, list[SeedResult]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def _naming(algo: str, results: Sequence[SeedResult]) -> Naming:
    tasks = list(grouped(results, lambda result: result.dataset).values())
    within, anywhere = {key for task in tasks for key in _differing(task)}, _differing(results)
    sources = SOURCE in anywhere and _needless(SOURCE, within, tasks)
    if sources:
        within, anywhere = within - {SOURCE}, anywhere - {SOURCE}
    known = _without_later(sorted(within), results)
    keys = _without_twins(known, results)
    names = tuple(_short(key, keys) for key in keys)
    usual = _usual(names, Counter(_values(result, keys) for result in results))
    centre = ", ".join(f"{name}={value}" for name, value in usual.items() if value != _text(None))
    notes = [f"{algo} is `{centre}` where its name says nothing else."] if centre else []
    notes += [_of_some_only(algo, key, results) for key in sorted(within.difference(known))]
    notes += [_between_data_sets(algo, key, results) for key in sorted(anywhere - within)]
    notes += [f"{algo}: `{SOURCE}` differs and is not in the names; each run's configuration has it."] if sources else []
    short = Naming(algo, keys, names, usual, absent=False, notes=tuple(notes))
    alike = len({short.name(result) for result in results}) < len({_values(result, keys) for result in results})
    return replace(short, absent=alike)


def _differing(results: Sequence[SeedResult]) -> set[str]:
    """Options that have several values in some results. One that a result does not know is the same as null.

    But for options that came with a later version (outside `algo`: an older algorithm did not have its part of the method),
    and those of another class, which its `_target_` tells.
    """
    keys = {key for result in results for key in result.options}
    differing = {key for key in keys if len({_text(result.options.get(key)) for result in results}) > 1}
    return {key for key in differing if not _implied(key, differing, results)}


def _implied(key: str, differing: set[str], results: Sequence[SeedResult]) -> bool:
    """Not known to some results, with one value in all others, where another option or the version says as much."""
    known = {_text(result.options[key]) for result in results if key in result.options}
    lacking = any(key not in result.options for result in results)
    told = f"{key.rpartition('.')[0]}.{TARGET}" in differing or not key.startswith(("algo.", *NULL_BEFORE))
    return lacking and len(known) == 1 and told


def _without_later(keys: Sequence[str], results: Sequence[SeedResult]) -> tuple[str, ...]:
    """Without options that some results do not know and that have one value in all others, while methods stay apart.

    They came with a later version. Where nothing else differs, the option itself may be what was tried.
    """
    kept = list(keys)
    for key in keys:
        others = [other for other in kept if other != key]
        known = {_text(result.options[key]) for result in results if key in result.options}
        lacking = any(key not in result.options for result in results)
        if lacking and len(known) == 1 and _told_apart(others, results) == _told_apart(kept, results):
            kept = others
    return tuple(kept)


def _needless(key: str, keys: Iterable[str], tasks: Iterable[Sequence[SeedResult]]) -> bool:
    """Whether the other options alone tell the methods apart, within each data set."""
    others = sorted(set(keys) - {key})
    return all(_told_apart(others, task) == _told_apart([*others, key], task) for task in tasks)


def _told_apart(keys: Sequence[str], results: Sequence[SeedResult]) -> int:
    return len({_values(result, keys) for result in results})


def _without_twins(keys: Sequence[str], results: Sequence[SeedResult]) -> tuple[str, ...]:
    """Without options that follow another one of their kind: the behaviour model's `hidden` the actor's."""
    kept: dict[str, tuple[str, ...]] = {}
    for key in keys:
        values = tuple(_text(result.options.get(key)) for result in results)
        if not any(values == other and key.endswith(name.rpartition(".")[2]) for name, other in kept.items()):
            kept[key] = values
    return tuple(kept)


def _short(key: str, keys: Sequence[str]) -> str:
    """The shortest end of a key that no other key has; a class is called by its part, `actor`."""
    key, keys = key.removesuffix(f".{TARGET}"), [other.removesuffix(f".{TARGET}") for other in keys]
    parts = key.split(".")
    ends = (".".join(parts[place:]) for place in reversed(range(len(parts))))
    # `behavior` has no end of its own beside `algo.behavior`, which is then written whole.
    return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)


def _usual(names: Sequence[str], methods: Counter[tuple[str, ...]]) -> dict[str, str]:
    """Where several options differ, the values of the method with by far the most results: variants around a centre.

    Where no method has half as many again as any other: of each option the value that more methods have than any other.
    """
    if len(names) < 2:
        return {}
    (centre, most), *others = methods.most_common()
    if not others or most >= 1.5 * others[0][1]:
        return dict(zip(names, centre, strict=True))
    counts = [Counter(method[place] for method in methods).most_common(2) for place in range(len(names))]
    return {name: most[0][0] for name, most in zip(names, counts, strict=True) if most[0][1] > most[1][1]}


def _of_some_only(algo: str, key: str, results: Sequence[SeedResult]) -> str:
    known = [result for result in results if key in result.options]
    runs, all_runs = (len({result.run for result in group}) for group in (known, results))
    return f"{algo}: `{key}` is {_text(known[0].options[key])} in {runs} of {all_runs} runs; the others do not know it."


def _between_data_sets(algo: str, key: str, results: Sequence[SeedResult]) -> str:
    values = grouped(results, lambda result: _text(result.options.get(key)))
    told = "; ".join(f"{value} on {', '.join(sorted({r.dataset for r in group}))}" for value, group in values.items())
    return f"{algo}: `{key}` differs between data sets: {told}."


def _values(result: SeedResult, keys: Sequence[str]) -> tuple[str, ...]:
    """In words; of a class its name without its modules."""
    texts = [_text(result.options.get(key)) for key in keys]
    return tuple(text.rpartition(".")[2] if key.endswith(TARGET) else text for key, text in zip(keys, texts, strict=True))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _place(value: Any) -> tuple[Any, ...]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value, ""
    return 1, 0, _text(value)
