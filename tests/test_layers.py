"""Direction of imports: train.py -> floor 3 -> floor 2 -> floor 1 -> floor 0, never sideways between algorithms."""

import ast
from pathlib import Path

import pytest

from tests.helpers import ROOT

FLOORS = {
    "types": 0,
    "console": 0,
    "errors": 0,
    "options": 0,
    "outside": 0,
    "files": 0,
    "installation": 0,
    "functional": 0,
    "modules": 1,
    "datasets": 1,
    "evaluation": 1,
    "algorithms": 2,
    "engine": 2,
}  # everything else stands on floor 3
LIGHTNING = {"algorithms", "callbacks", "engine", "datamodule", "training", "launch", "results"}
HYDRA = {"api", "config", "launch", "exits", "sweeps"}
SOURCES = sorted((ROOT / "brpo").rglob("*.py"))


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    parts = path.relative_to(ROOT / "brpo").with_suffix("").parts
    floor = FLOORS.get(parts[0], 3)
    for name in imports(path):
        top = name.split(".")
        if top[0] == "brpo" and len(top) > 1 and top[1] != "__init__":
            assert FLOORS.get(top[1], 3) <= floor, f"{path.name} imports {name}"
            if parts[0] == "algorithms" and top[1] == "algorithms":
                assert top[2] == "base", f"{path.name} imports {name}: an algorithm is deleted by deleting its two files"
        if top[0] == "lightning":
            assert set(parts) & LIGHTNING, f"{path.name} imports Lightning"
        if top[0] in ("hydra", "omegaconf"):
            assert set(parts) & HYDRA, f"{path.name} imports Hydra"


@pytest.mark.parametrize("modules", ["brpo.exits, brpo.sweeps.collect", "train, brpo.evaluation.environments"])
def test_some_do_without_torch(modules: str) -> None:
    """`python train.py --help`, Hydra's errors and `brpo collect` answer at once; so do processes of environments."""
    import subprocess
    import sys

    program = f"import sys, {modules}; print(*(n in sys.modules for n in ('torch', 'lightning')))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.split() == ["False", "False"]
