"""What became of the jobs of a sweep: a row for each job, from its record and the result file of its run.

Here jobs that failed or wait stand beside those that are done; `brpo.reports` puts seeds together and compares methods.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from brpo.errors import UserError
from brpo.evaluation.kinds import Kind, kind_of
from brpo.evaluation.scores import spread
from brpo.files import write_csv
from brpo.reports.seed_result import RULES
from brpo.sweeps.folder import Job, Status, SweepFolder


@dataclass(frozen=True)
class Row:
    """One job.

    Attributes:
        jobs: their numbers.
        overrides: those that vary in the sweep.
        status: `done`, `failed: ...`, `unfinished` or `not started`.
        algo: name of the algorithm; empty where the job has not started.
        dataset: id of the data set.
        digest: of the data set's content; empty without a result.
        run_dirs: the runs' folders.
        seeds: they label the numbers below.
        metric: `score`, or `return` where the data set has no reference scores, or `sliced_wasserstein` on a toy task;
            empty without evaluations.
        values: for final, best and auc one number per seed.
        evaluation: how these came about, `mean action, 10 episodes`.
        updates: gradient steps.
        updates_per_second: of training, for each job.
    """

    jobs: tuple[int, ...]
    overrides: tuple[str, ...]
    status: str
    algo: str = ""
    dataset: str = ""
    digest: str = ""
    run_dirs: tuple[Path, ...] = ()
    seeds: tuple[int, ...] = ()
    metric: str = ""
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    evaluation: str = ""
    updates: int | None = None
    updates_per_second: tuple[float, ...] = ()

    def worst(self) -> tuple[int, float] | None:
        """The seed with the worst final value, and this value."""
        pairs = zip(self.seeds, self.values.get("final", ()), strict=False)
        sign = 1.0 if self.kind.larger_is_better else -1.0
        return min(pairs, key=lambda pair: sign * pair[1], default=None)

    @property
    def kind(self) -> Kind:
        """What its numbers mean."""
        return kind_of(self.dataset)


def collect(folder: SweepFolder) -> list[Row]:
    """A row for each job of a sweep, also for those that have not started.

    Raises:
        UserError: this is no folder of a sweep, it has no jobs yet, or a file that belongs to it is not one of ours.
    """
    plan, _ = folder.read_plan()
    records = {job.number: job for job in folder.read()}
    if not plan and not records:
        raise UserError(f"No job of {folder.path} has started yet, and its sweep does not list them beforehand.")
    return [
        _row(folder, records[number]) if number in records else Row((number,), folder.varying(plan[number]), "not started")
        for number in sorted({*range(len(plan)), *records})
    ]


def _row(folder: SweepFolder, job: Job) -> Row:
    path = folder.run_folder(job)
    status = f"failed: {job.error}" if job.status == Status.failed else "unfinished"
    row = Row((job.number,), folder.varying(job.overrides), status, job.algo, job.dataset, run_dirs=(path,) if path else ())
    result = folder.result(job)  # also of a run that was continued on its own since
    if result is None:
        return row
    try:
        return _with_result(row, json.loads(result.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{result} is not a result file of ours: {type(error).__name__} {error}.") from error


def _with_result(row: Row, result: dict[str, Any]) -> Row:
    lead = kind_of(result["dataset"]["id"]).lead
    metric = next((name for name in lead if result["final"][name] is not None), "")
    values = {rule: result[rule][metric] for rule in RULES} if metric else {}
    speed = result["updates_per_second"]
    return replace(
        row,
        status=Status.done,
        algo=result["algo"],
        dataset=result["dataset"]["id"],
        digest=result["dataset"]["digest"],
        seeds=tuple(result["seeds"]),
        metric=metric,
        values={rule: tuple(numbers) for rule, numbers in values.items() if numbers is not None},
        evaluation=f"{result['evaluation']['mode']} action, {result['evaluation']['episodes']} episodes",
        updates=result["updates"],
        updates_per_second=() if speed is None else (speed,),
    )


def several_digests(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Ids of data sets that stand for different contents in these rows, with their digests."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if row.digest:
            found.setdefault(row.dataset, set()).add(row.digest)
    return {dataset: sorted(digests) for dataset, digests in found.items() if len(digests) > 1}


def notes(rows: Sequence[Row], ambiguous: dict[str, list[str]]) -> list[str]:
    """What a reader has to know about the numbers."""
    lines = []
    metrics = sorted({row.kind.words[row.metric] for row in rows if row.metric})
    if metrics:
        how = "; ".join(sorted({row.evaluation for row in rows if row.evaluation}))
        lines.append(f"{' or '.join(metrics)}, mean ± standard deviation over seeds; {how}")
    if {"return", "normalized score"} <= set(metrics):
        lines.append("note: data sets without reference scores have returns; results.csv says which row has what")
    for dataset, digests in ambiguous.items():
        contents = ", ".join(digest[:12] for digest in digests)
        lines.append(
            f"note: {dataset} had different contents ({contents}): numbers of one are not comparable with the other's"
        )
    return lines


# --- As text ----------------------------------------------------------------------------------------------------------

HEADER = ("job", "algo", "data set", "options", "seeds", *RULES, "worst seed", "updates/s", "status", "run")
NUMBERS = ("job", *RULES, "worst seed", "updates/s")  # columns that are not folded


def cells(row: Row, ambiguous: dict[str, list[str]]) -> tuple[str, ...]:
    """What the terminal shows of a row, in the order of `HEADER`.

    Args:
        row: of the table.
        ambiguous: what `several_digests` found; these data sets are shown with their digest.
    """
    dataset = f"{row.dataset} ({row.digest[:12] or 'digest unknown'})" if row.dataset in ambiguous else row.dataset
    worst = row.worst()
    return (
        ",".join(map(str, row.jobs)),
        row.algo,
        dataset,
        " ".join(item for item in row.overrides if not item.startswith(("algo=", "dataset=", "seeds="))),
        ",".join(map(str, row.seeds)) or " ".join(item for item in row.overrides if item.startswith("seeds=")),
        *(spread(row.values.get(rule, ()), row.kind.digits) for rule in RULES),
        f"{worst[0]}: {worst[1]:.{row.kind.digits}f}" if worst else "",
        f"{fmean(row.updates_per_second):.0f}" if row.updates_per_second else "",
        row.status,
        "\n".join(os.path.relpath(path) for path in row.run_dirs),
    )


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows with all digits as CSV, atomically.

    Raises:
        OSError: it cannot be written.
    """
    statistics = [f"{rule}_{name}" for rule in RULES for name in ("mean", "std")]
    names = ("job", "algo", "dataset", "digest", "overrides", "seeds", "metric", *statistics, "worst_seed", "worst")
    header = (*names, "evaluation", "updates", "updates_per_second", "status", "run_dir")
    write_csv(path, header, map(_csv_cells, rows))


def _csv_cells(row: Row) -> list[Any]:
    """What `write_table` says of a row."""
    values = [row.values.get(rule) for rule in RULES]
    numbers = [float(take(found)) if found else "" for found in values for take in (fmean, np.std)]
    return [
        " ".join(map(str, row.jobs)),
        row.algo,
        row.dataset,
        row.digest,
        " ".join(row.overrides),
        " ".join(map(str, row.seeds)),
        row.metric,
        *numbers,
        *(row.worst() or ("", "")),
        row.evaluation,
        row.updates,
        fmean(row.updates_per_second) if row.updates_per_second else "",
        row.status,
        " ".join(map(str, row.run_dirs)),
    ]
