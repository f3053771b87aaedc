"""What one seed of one run reached, as the result files say it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brpo.config import flatten
from brpo.evaluation.kinds import ROLLOUTS, SAMPLES

RULES = {
    "final": "the policy after the last update; the primary number",
    "best": "the evaluation with the best mean over the seeds of the run; chosen by the numbers that judge it, so too good",
    "auc": "mean over all evaluations of the run; at equal intervals, the area under its learning curve over its length",
}


@dataclass(frozen=True)
class Metric:
    """What the numbers of a run are.

    Attributes:
        words: its name for people.
        column: of `metrics.csv`.
        digits: behind the point.
        larger_is_better: whether.
    """

    words: str
    column: str
    digits: int = 1
    larger_is_better: bool = True

    @property
    def sign(self) -> float:
        """1 where larger is better, else -1."""
        return 1.0 if self.larger_is_better else -1.0


METRICS = {  # by their name in result.json; the first one that a run has counts
    name: Metric(kind.words[name], kind.reported[name], kind.digits, kind.larger_is_better)
    for kind in (ROLLOUTS, SAMPLES)
    for name in kind.lead
}

# What says how a run was made or watched, and not what method it is. Everything else in a configuration is the method.
_NOT_THE_METHOD = (
    "dataset", "seeds", "max_updates", "eval", "run_dir", "resume", "callbacks", "loggers", "profile", "debug", "parallel",
    "engine", "trainer", "data.storage", "data.family",
)  # fmt: skip
_THE_METHOD = ("engine.matmul_precision", "trainer.precision")


def plural(count: int, word: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count} {word}" + ("" if count == 1 else "s")


@dataclass(frozen=True)
class Protocol:
    """What numbers must share to stand in one table."""

    mode: str
    episodes: int
    updates: int
    every: int | None

    def __str__(self) -> str:
        """In words."""
        often = f", evaluated every {self.every}" if self.every else ""
        return f"{self.mode} action, {plural(self.episodes, 'episode')}, {self.updates} updates{often}"


Curve = tuple[tuple[int, float], ...]  # update and value of each evaluation, in the unit of the run's metric


@dataclass(frozen=True)
class SeedResult:
    """One seed of one run.

    Attributes:
        run: where it was found, for messages.
        algo: name of the algorithm.
        dataset: id of the data set.
        digest: of its contents.
        environment: id of the environment.
        seed: of the training.
        protocol: how it was evaluated, and after how many updates.
        values: `final_score`, `final_return`, `best_score`, ...; None where there is none.
        best_update: the update of the rule `best`.
        worst_episode: smallest return of the final evaluation.
        cvar: mean return of the worst tenth of the episodes of the final evaluation.
        wall_seconds: of the whole run, with all its seeds.
        updates_per_second: of its training, with all its seeds.
        together: seeds that were trained in the same run.
        engine: what made the updates.
        versions: of Python and the packages.
        git: commit, of each part of the run where they differ.
        code: digest of the method's code, likewise; None in results from before it was kept.
        options: dotted keys of the configuration that say what the method is, and their values.
        references: the returns that score 0 and 100; None without, and in results from before they were kept.
        curve: its evaluations.
    """

    run: str
    algo: str
    dataset: str
    digest: str
    environment: str | None
    seed: int
    protocol: Protocol
    values: Mapping[str, float | None]
    best_update: int | None
    worst_episode: float | None
    cvar: float | None
    wall_seconds: float | None
    updates_per_second: float | None
    together: int
    engine: str
    versions: str
    git: str | None
    options: Mapping[str, Any] = field(repr=False)
    code: str | None = None
    references: tuple[float, float] | None = None
    curve: Curve = field(default=(), repr=False)

    @property
    def metric(self) -> str | None:
        """`score`, else `return` where some evaluation had no reference scores; None without evaluations."""
        whole = (name for name in METRICS if None not in [self.values[f"{rule}_{name}"] for rule in RULES])
        return next(whole, None)

    def value(self, rule: str) -> float:
        """The number of a rule, in the unit of `metric`."""
        value = self.values[f"{rule}_{self.metric}"]
        assert value is not None, "the metric has all rules"
        return value


def method_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of a configuration that say what the method is, and their values."""
    return {
        key: value
        for key, value in flatten(config).items()
        if key in _THE_METHOD or not (_covers(_NOT_THE_METHOD, key) or key.endswith("_partial_"))
    }


def _covers(keys: tuple[str, ...], key: str) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def from_result(run: str, result: Mapping[str, Any]) -> list[SeedResult]:
    """The seeds of a `result.json`, without their curves.

    Args:
        run: where it lies.
        result: its content.

    Raises:
        KeyError, TypeError: a key is missing or has another type: the file is not one of ours.
    """
    evaluation, engine, seeds = result["evaluation"], result["engine"], result["seeds"]
    every = result["config"].get("eval", {}).get("every")
    protocol = Protocol(str(evaluation["mode"]), _whole(evaluation["episodes"]), _whole(result["updates"]), every)

    # Where gradients are averaged, each process has a batch of its own: together another effective batch size.
    averaged = _whole(engine["processes"]) if engine.get("parallel") == "data" else 1
    options = {**method_options(result["config"]), "processes": averaged}

    low, high = map(_number, result["dataset"].get("references", (None, None)))
    references = None if low is None or high is None else (low, high)

    def at(values: list[float] | None, place: int) -> float | None:
        return None if values is None else _number(values[place])

    return [
        SeedResult(
            run=run,
            algo=result["algo"],
            dataset=result["dataset"]["id"],
            digest=result["dataset"]["digest"],
            environment=result["env"]["id"],
            seed=seed,
            protocol=protocol,
            values={f"{rule}_{name}": at(result[rule].get(name), place) for rule in RULES for name in METRICS},
            best_update=result["best"]["update"],
            worst_episode=at(result.get("worst_episode"), place),
            cvar=at(result.get("cvar"), place),
            wall_seconds=_number(result["wall_seconds"]),
            updates_per_second=_number(result["updates_per_second"]),
            together=len(seeds),
            engine=f"{engine['name']} on {engine['device']}",
            versions=", ".join(f"{name} {version}" for name, version in result["versions"].items()),
            git=_of_parts(result, "git") or result["git"],
            options=options,
            code=_of_parts(result, "code"),
            references=references,
        )
        for place, seed in enumerate(seeds)
    ]


def _of_parts(result: Mapping[str, Any], key: str) -> str | None:
    """What the parts of a run say, once each and in their order; None where they say nothing."""
    return " then ".join(dict.fromkeys(part[key] for part in result.get("parts", []) if part.get(key))) or None


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{value!r} is no number")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value
