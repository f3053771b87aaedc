"""What `benchmarks/estimates.py` says of estimates and what is achieved, and that the page has the stored table."""

import csv
from pathlib import Path
from typing import Any

import estimates as benchmark

from brpo import estimates

DOCS = Path(__file__).parents[2] / "docs"


def row(algo: str, seed: int, value: float, achieved: float, score: float) -> dict[str, Any]:
    return {
        "run": f"runs/{algo}", "algo": algo, "dataset": "a/b-v0", "seed": seed, "value": value, "achieved": achieved,
        "score": score, "data_return": 3.0, "data_best": 4.0,
    }  # fmt: skip


def test_table_by_hand() -> None:
    """Runs in the order of what they achieve, which is that of the estimates; the scores have the opposite order."""
    found = [
        row("x", 0, 9.0, 10.0, 5.0),
        row("x", 1, 11.0, 10.0, 7.0),
        row("y", 0, 22.0, 20.0, 4.0),
        row("z", 0, 24.0, 40.0, 1.0),
    ]
    lines = benchmark.table(found).splitlines()
    assert lines[0] == "`a/b-v0` (its data: 3.0, at most 4.0)"
    assert lines[4:7] == [
        "| z | 24.0 | 40.0 | 1.0 |",
        "| y | 22.0 | 20.0 | 4.0 |",
        "| x | 10.0 ± 1.0 | 10.0 ± 0.0 | 6.0 ± 1.0 |",
    ]
    assert lines[8] == (
        "Rank correlation of the estimate with what is achieved 1.00 (of single policies 0.95), with the score -1.00; "
        "of what is achieved with the score -1.00. Mean error 17 %. The run with the largest estimate achieves 40.0 of at "
        "most 40.0, and scores 1.0 of at most 6.0."
    )


def test_without_reference_scores() -> None:
    """As they come from a fit (None) and from a file (empty); nor need any episode of the data be whole."""
    found = [{**row("abc"[k], 0, 10.0 + k, 20.0 + k, 0.0), "score": (None, "")[k % 2], "data_best": ""} for k in range(3)]
    lines = benchmark.table(found).splitlines()
    assert lines[0] == "`a/b-v0` (its data: 3.0)"
    assert lines[2] == "| method | estimated | achieved |"
    assert lines[4] == "| c | 12.0 | 22.0 |"
    assert lines[8] == (
        "Rank correlation of the estimate with what is achieved 1.00 (of single policies 1.00). Mean error 48 %. The run "
        "with the largest estimate achieves 22.0 of at most 22.0."
    )


def test_the_page_has_the_stored_table() -> None:
    with (DOCS / "results" / "estimates.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["run", *estimates.COLUMNS, "achieved", "episodes", "score"]
    page = (DOCS / "estimate.md").read_text()
    lines = benchmark.table(found).splitlines()
    rows = [line for line in lines if line.startswith("| ") and "±" in line]
    assert len(rows) == 16
    assert all(line in page for line in rows)
    said = [line for line in lines if line.startswith("Rank")]
    assert "0.95 (of single policies 0.60), with the score 0.17; of what is achieved with the score 0.24" in said[0]
    assert "-0.71" in said[1]
