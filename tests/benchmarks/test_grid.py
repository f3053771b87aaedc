"""Which cells `benchmarks/grid.py` trains, and what its reports are made of. docs/results holds the stored ones."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import grid
import pytest

ON_HOPPER = r"(iql|xql) on brpo/hopper/replay"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The algorithms that would be trained; nothing is, and there are no runs but the stored ones."""
    begun: list[str] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        begun.append(command[2])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)  # and back afterwards
    return begun


def test_stored_cells_are_finished_unless_they_are_asked_for_again(trained: list[str]) -> None:
    stored = {result.algo for result in grid.stored("comparison").results if result.dataset == "brpo/hopper/replay-v0"}
    missing = [f"algo={algo}" for algo in ("iql", "xql") if algo not in stored]
    grid.main("comparison", only=ON_HOPPER)
    assert trained == missing
    trained.clear()
    with pytest.raises(Exception, match="no cell of comparison is finished yet"):
        grid.main("comparison", only=ON_HOPPER, again=True)
    assert trained == ["algo=iql", "algo=xql"]


@pytest.mark.usefixtures("trained")
def test_a_question_stands_beside_the_rows_of_the_comparison() -> None:
    found = grid.results("symmetry", grid.stored("symmetry")).results
    coefficients = {(r.dataset, r.options["algo.symmetry_coefficient"]): 0 for r in found}
    assert {key: sum((r.dataset, r.options["algo.symmetry_coefficient"]) == key for r in found) for key in coefficients} == {
        (f"brpo/{env}/replay-v0", coefficient): seeds
        for env in ("hopper", "walker2d")
        for coefficient, seeds in ((0, 3), (0.3, 5))
    }  # each run once, though both places store those of the comparison


GRIDS = ["comparison", *(name for name in grid.QUESTIONS if (grid.STORED / name).exists())]


@pytest.mark.parametrize("name", GRIDS)
def test_stored_runs_are_those_of_cells(name: str) -> None:
    """Else they would be trained again."""
    cells = {grid.folder(name, *cell).as_posix() for cell in grid.cells(name)}
    stored = {result.run for result in grid.stored(name).results}
    assert {run for run in stored if run.startswith(f"runs/grid/{name}/")} <= cells
    assert stored & cells
