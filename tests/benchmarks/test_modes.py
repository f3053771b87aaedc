"""Which ways of acting `benchmarks/modes.py` evaluates, and its table."""

import csv
from pathlib import Path

import modes
import pytest

from tests.helpers import compose_config


def test_ways_of_each_kind_of_policy() -> None:
    """Candidates are for BDPO; the mean of diffusion cloning is what no noise gives, that of a Gaussian is its mean."""
    gaussian, cloning, bdpo = (compose_config(f"algo={algo}")["algo"] for algo in ("bc", "diffusion_bc", "bdpo"))
    assert [list(modes.ways(algo, [])) for algo in (gaussian, cloning, bdpo)] == [["mean", "sampled"]] * 3
    assert list(modes.ways(gaussian, [0, 2])) == ["mean", "sampled"]
    assert list(modes.ways(cloning, [0, 2])) == ["no noise", "sampled"]
    assert modes.ways(bdpo, [0, 2]) == {
        "no noise": {"mode": "mean", "acting": {"candidates": 0}},
        "best of 2": {"mode": "mean", "acting": {"candidates": 2}},
        "sampled": {"mode": "sampled"},
    }


def test_table_leaves_open_what_was_not_evaluated() -> None:
    """A line for each run: two recordings, or budgets, of one id are not averaged."""
    results = [
        {"run": run, "dataset": "a/b-v0", "algo": "BDPO", "update": 7, "mode": mode, "score": score}
        for run, mode, score in [
            ("r", "best of 2", 3.0),
            ("r", "best of 2", 5.0),
            ("other", "sampled", 1.0),
            ("other", "best of 2", None),
        ]
    ]
    assert modes.table(results).splitlines() == [
        "| data set | method | updates | best of 2 | sampled |",
        "|---|---|---|---|---|",
        "| `a/b-v0` | BDPO | 7 | 4.0 ± 1.0 | - |",
        "| `a/b-v0` | BDPO | 7 | - | 1.0 |",
    ]


STORED = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", ["modes.csv", "diffusion_modes.csv"])
def test_stored_rows_name_a_run_and_data_whose_report_is_stored(name: str) -> None:
    with (STORED / name).open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == modes.COLUMNS
    digests = {}
    for path in STORED.glob("*/runs.csv"):
        with path.open() as file:
            digests |= {run["run"]: run["digest"] for run in csv.DictReader(file)}
    for row in rows:
        assert row["digest"] == digests[row["run"]]
