"""Evaluates runs by their mean and by their sampled actions: a table of scores, and a row for each run, way and seed.

    python benchmarks/grid.py modes                     # trains the runs
    python benchmarks/modes.py runs/grid/modes/*/* --output docs/results/modes.csv
    python benchmarks/modes.py runs/grid/diffusion/*/* --candidates 0 --candidates 2 --episodes 20

With `--candidates` BDPO acts by the best of so many samples in the place of its mean; 0 is the action of no noise, which is
what the mean of diffusion cloning is. `run` is the name that a run has in the stored report of its grid (docs/results),
where its options, commit and versions stand.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from brpo import saved_runs
from brpo.evaluation.scores import spread
from brpo.exits import run_command
from brpo.files import write_csv
from brpo.reports import run_folders

COLUMNS = ["run", "algo", "dataset", "digest", "update", "mode", "episodes", "seed", "return", "score"]


def ways(algo: dict[str, Any], candidates: list[int]) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `evaluate_checkpoint`, of a run with these options of its algorithm."""
    sampled = {"sampled": {"mode": "sampled"}}
    if not candidates or "acting" not in algo:
        return {"mean": {"mode": "mean"}} | sampled
    if "candidates" not in algo["acting"]:
        return {"no noise": {"mode": "mean"}} | sampled
    names = {count: f"best of {count}" if count else "no noise" for count in candidates}
    return {names[count]: {"mode": "mean", "acting": {"candidates": count}} for count in candidates} | sampled


def rows(run: Path, candidates: list[int], episodes: int) -> list[dict[str, Any]]:
    """A row for each way and seed of a run."""
    checkpoint, found = saved_runs.checkpoint_of(run, "last"), []
    algo = saved_runs.load_algorithm(checkpoint)[1]["algo"]
    for way, arguments in ways(algo, candidates).items():
        evaluated = saved_runs.evaluate_checkpoint(checkpoint, episodes=episodes, **arguments)
        shared = {key: evaluated[key] for key in ("algo", "dataset", "digest", "update")}
        shared |= {"run": run_folders.label(run), "mode": way, "episodes": episodes}
        for row in evaluated["rows"]:
            score = None if row.score is None else round(row.score, 2)
            found.append({**shared, "seed": row.seed, "return": round(row.return_mean, 2), "score": score})
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line for each run, mean ± standard deviation of the scores over its seeds; a dash where there are none."""
    modes = list(dict.fromkeys(row["mode"] for row in results))
    lines = [f"| data set | method | updates | {' | '.join(modes)} |", f"|---|---|---|{'---|' * len(modes)}"]
    for run in dict.fromkeys(row["run"] for row in results):
        own = [row for row in results if row["run"] == run]
        scores = [[row["score"] for row in own if row["mode"] == mode and row["score"] is not None] for mode in modes]
        cells = [f"`{own[0]['dataset']}`", own[0]["algo"], str(own[0]["update"])]
        lines.append(f"| {' | '.join(cells + [spread(found) if found else '-' for found in scores])} |")
    return "\n".join(lines)


def main(
    runs: list[Path],
    candidates: Annotated[list[int] | None, typer.Option(help="Of BDPO's samples; may be given several times.")] = None,
    output: Annotated[Path | None, typer.Option()] = None,
    episodes: int = 50,
) -> None:
    """Evaluate the last checkpoint of each run in all ways, from the same starts."""
    results = [row for run in runs for row in rows(run, candidates or [], episodes)]
    print(table(results))
    if output is not None:
        write_csv(output, COLUMNS, ([row[name] for name in COLUMNS] for row in results))


if __name__ == "__main__":
    run_command(main)
