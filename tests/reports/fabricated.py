"""Run folders with made-up numbers, written through the functions that a training uses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brpo.callbacks.recorder import Recorder
from brpo.files import write_json
from brpo.results import summarize
from brpo.runs import RunFolder, write_metrics
from tests.helpers import make_spec

DIGEST = "a" * 64


def make_run(
    path: Path,
    scores: dict[int, Sequence[float]],
    *,
    algo: str = "bc",
    dataset: str = "tests/one-v0",
    digest: str = DIGEST,
    scored: bool = True,
    references: tuple[float, float] | None = None,
    mode: str = "mean",
    episodes: int = 3,
    every: int = 10,
    source: str | None = None,
    code: Sequence[str] = (),
    **options: Any,
) -> Path:
    """A finished run.

    Args:
        path: its folder.
        scores: of each seed, one for each evaluation; the return is ten times the score.
        algo: name of the algorithm.
        dataset: id of the data set.
        digest: of the data set.
        scored: whether the evaluations have scores.
        references: the returns that score 0 and 100, of which the numbers know nothing; None as in older results.
        mode: of the evaluations.
        episodes: of an evaluation.
        every: updates between evaluations.
        source: where the behaviour model came from; None leaves it out.
        code: digest of the method's code in each part of the run.
        options: of the algorithm.
    """
    folder, updates = RunFolder(path), every * len(next(iter(scores.values())))
    config: dict[str, Any] = {
        "dataset": dataset,
        "seeds": list(scores),
        "max_updates": updates,
        "batch_size": 256,
        "eval": {"every": every, "episodes": episodes, "mode": mode},
        "algo": {"_target_": f"brpo.algorithms.{algo}.Class", **options},
        "run_dir": str(path),
    }
    if source is not None:
        config["behavior"] = source
    folder.create(config, [])
    recorder = Recorder(folder, mode=mode, episodes=episodes)
    recorder.rows = [
        {
            "update": every * (place + 1), "seed": seed, "mode": mode, "episodes": episodes, "return_mean": 10 * value,
            "score": value if scored else None, "return_std": 0.0, "return_worst": 10 * value - 5,
            "return_cvar": 10 * value - 4, "length": 7.0, "value_gap": None, "updates_per_second": 50.0, "wall_seconds": 1.0,
        }
        for seed, values in scores.items()
        for place, value in enumerate(values)
    ]  # fmt: skip
    recorder.train_seconds = updates / 50
    recorder.parts = [{"update": 0, "git": "c" * 40, "code": digest} for digest in code]
    write_metrics(folder.metrics, recorder.rows)
    low, high = references or (None, None)
    spec = make_spec(dataset_id=dataset, digest=digest, reference_min=low, reference_max=high)
    engine = {"name": "eager", "device": "cpu, 1 thread(s)"}
    write_json(folder.result, summarize(config, spec, recorder, updates, engine, "c" * 40))
    return path
