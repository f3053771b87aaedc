"""Results without their run folders: `runs.csv` with a row for each run and seed, `curves.csv`, and `configs.json`.

What was missing stands in `missing.txt`, where anything was.

A report writes them and can be made from them again. They are small enough to be kept beside the code.
"""

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brpo.errors import UserError
from brpo.files import write_atomically, write_csv, write_json
from brpo.reports.seed_result import METRICS, RULES, Curve, Protocol, SeedResult

RUNS, CURVES, CONFIGS, MISSING = "runs.csv", "curves.csv", "configs.json", "missing.txt"
_VALUES = tuple(f"{rule}_{metric}" for rule in RULES for metric in METRICS)
_TEXTS = ("run", "algo", "dataset", "digest", "environment", "engine", "versions", "git", "code")
_NUMBERS = ("worst_episode", "cvar", "wall_seconds", "updates_per_second")
_HEADER = (
    "row", "run", "algo", "dataset", "digest", "environment", "seed", "mode", "episodes", "updates", "every", *_VALUES,
    "best_update", *_NUMBERS, "together", "engine", "versions", "git", "code", "config", "reference_min", "reference_max",
)  # fmt: skip


def write(folder: Path, results: Sequence[SeedResult], missing: Sequence[str] = ()) -> None:
    """Write the files; numbers keep all digits in `runs.csv` and six in `curves.csv`.

    Raises:
        OSError: they cannot be written.
    """
    configs = {_fingerprint(result.options): dict(result.options) for result in results}
    write_csv(folder / RUNS, _HEADER, (_row(number, result) for number, result in enumerate(results)))
    points = ((number, update, f"{value:.6g}") for number, result in enumerate(results) for update, value in result.curve)
    write_csv(folder / CURVES, ("row", "update", "value"), points)
    write_json(folder / CONFIGS, configs)
    (folder / MISSING).unlink(missing_ok=True)
    if missing:
        write_atomically(folder / MISSING, "".join(f"{line}\n" for line in missing))


def _fingerprint(options: Any) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]


def _row(number: int, result: SeedResult) -> list[Any]:
    protocol = result.protocol
    reference_min, reference_max = result.references or (None, None)
    cells = {
        "row": number,
        "seed": result.seed,
        "mode": protocol.mode,
        "episodes": protocol.episodes,
        "updates": protocol.updates,
        "every": protocol.every,
        "best_update": result.best_update,
        "together": result.together,
        "config": _fingerprint(result.options),
        "reference_min": reference_min,
        "reference_max": reference_max,
        **result.values,
        **{name: getattr(result, name) for name in (*_TEXTS, *_NUMBERS)},
    }
    return [cells[name] for name in _HEADER]


def read(folder: Path) -> list[SeedResult]:
    """What `write` wrote.

    Raises:
        UserError: a file is missing or is not one of ours.
    """
    path = folder / RUNS
    try:
        rows = _read_csv(path)
        path = folder / CURVES
        curves = _read_curves(path)
        path = folder / CONFIGS
        configs = json.loads(path.read_text())
        path = folder / RUNS
        return [_result(row, configs[row["config"]], tuple(curves.get(row["row"], ()))) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a file that brpo report wrote: {type(error).__name__} {error}. "
            f"{RUNS}, {CURVES} and {CONFIGS} belong together."
        ) from error


def read_missing(folder: Path) -> list[str]:
    """A line for each run that was missing.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / MISSING
    try:
        return path.read_text().splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in _read_csv(path):
        curves.setdefault(row["row"], []).append((int(row["update"]), float(row["value"])))
    return curves


def _number(text: str) -> float | None:
    return float(text) if text else None


def _count(text: str) -> int | None:
    return int(text) if text else None


def _result(row: dict[str, str], options: dict[str, Any], curve: Curve) -> SeedResult:
    low, high = (_number(row.get(name) or "") for name in ("reference_min", "reference_max"))  # absent from older files
    same: dict[str, Any] = {name: row[name] for name in _TEXTS if name in row} | {
        name: _number(row[name]) for name in _NUMBERS
    }
    return SeedResult(
        **same,
        seed=int(row["seed"]),
        protocol=Protocol(row["mode"], int(row["episodes"]), int(row["updates"]), _count(row["every"])),
        values={name: _number(row[name]) for name in _VALUES},
        best_update=_count(row["best_update"]),
        together=int(row["together"]),
        options={"processes": 1, **options},  # what was written before this was an option does not have it
        references=None if low is None or high is None else (low, high),
        curve=curve,
    )
