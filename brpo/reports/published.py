"""Published scores that may stand beside ours: those of the same data set id, each with its source and checkpoint rule."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brpo.errors import UserError
from brpo.installation import ROOT
from brpo.reports.tables import markdown

FILE = ROOT / "data" / "published_scores.csv"


@dataclass(frozen=True)
class Published:
    """A row of the file: a method's normalized score on one data set; `std` is empty where the source prints none."""

    method: str
    source: str
    rule: str
    dataset: str
    mean: str
    std: str


def read(path: Path = FILE) -> list[Published]:
    """All published scores.

    Raises:
        UserError: the file is not there, or lacks a column.
    """
    try:
        with path.open(newline="") as file:
            return [
                Published(
                    row["method"], row["source"], row["checkpoint_rule"], row["dataset"], row["score_mean"], row["score_std"]
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError) as error:
        raise UserError(f"{path}, the published scores, cannot be read ({error}). It comes with brpo.") from error


def table(datasets: Sequence[str], rows: Sequence[Published]) -> str:
    """Those of some data set ids as Markdown, in a table of their own; says where there are none.

    The id must be the same letter by letter: Minari's `mujoco/halfcheetah/medium-v0` is not D4RL's `halfcheetah-medium-v2`.
    """
    found = [row for dataset in datasets for row in rows if row.dataset == dataset]
    without = [dataset for dataset in datasets if dataset not in {row.dataset for row in found}]
    parts = []
    if found:
        lines = (
            [row.method, row.dataset, f"{row.mean} ± {row.std}" if row.std else row.mean, row.source, row.rule]
            for row in found
        )
        header = ["method", "data set", "normalized score", "source", "checkpoint rule"]
        parts.append(markdown(header, lines, ["data set", "source", "checkpoint rule"]))
        parts.append(
            "These are of D4RL's data and evaluated in its environments. The runs above compare with them only if their "
            "data and their environments are the same, which the ids do not show.\n"
        )
    if without:
        parts.append(f"There are no published scores for {', '.join(f'`{dataset}`' for dataset in without)}.\n")
    return "\n".join(parts)
