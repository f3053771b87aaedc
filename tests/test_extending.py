"""The recipes of the README and of docs/extending.md in a copy: the tests find a divergence, and algorithms by two files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.test_outside import recipe


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a divergence and two algorithms more, taken from the texts."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("brpo", "conf", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "train.py"):
        shutil.copy(ROOT / name, root / name)
    entry, algorithm = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = root / "brpo" / "functional" / "divergences.py"
    text = path.read_text()
    marker = '        Divergence(\n            "kl",'
    assert text.count(marker) == 1
    path.write_text(text.replace(marker, f"        {entry.strip()},\n{marker}"))
    (root / "brpo" / "algorithms" / "mine.py").write_text('"""Mine. Source: the README."""\n\n' + algorithm)
    config = (root / "conf" / "algo" / "bc.yaml").read_text().replace("brpo.algorithms.bc.BC", "brpo.algorithms.mine.Mine")
    (root / "conf" / "algo" / "mine.yaml").write_text(config)
    code, options = recipe()
    (root / "brpo" / "algorithms" / "cql.py").write_text(code)
    (root / "conf" / "algo" / "cql.yaml").write_text(options)
    return root


def test_sfac_trains_with_the_divergence_that_is_given_by_f_alone(copy: Path) -> None:
    """Half of Jeffreys: its loss is that of Jeffreys' series with half the coefficients of f, less those of t ln t."""
    code = """
import torch
from brpo.functional.divergences import get_divergence
from tests.helpers import make_algorithm, random_batch
half, whole, kl = (get_divergence(name).taylor(4) for name in ("half_jeffreys", "jeffreys", "kl"))
sfac = make_algorithm("sfac", "algo.divergence=half_jeffreys")
expected = [a / 2 - b for a, b in zip(whole, kl)]
assert torch.allclose(torch.tensor(sfac.regularizer.coefficients)[2:], torch.tensor(expected)[2:]), expected
before = [parameter.clone() for parameter in sfac.actor.parameters()]
sfac.step(random_batch())
assert torch.isfinite(sfac.latest["loss/actor"]).all() and sfac.latest["actor/symmetry"].abs() > 0
assert not all(torch.equal(a, b) for a, b in zip(before, sfac.actor.parameters()))
"""
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_the_tests_find_them(copy: Path) -> None:
    """The divergence by the tests of the table and of the series, the algorithms by the contract and the configuration."""
    names = ("functional/test_divergences", "functional/test_series", "algorithms/test_contract", "test_config")
    files = [f"tests/{file}.py" for file in names]
    environment = {**os.environ, "PYTHONPATH": str(copy), "HYPOTHESIS_STORAGE_DIRECTORY": str(copy / ".hypothesis")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        "-rA",
        *files,
        "-k",
        "half_jeffreys or mine or cql",
    ]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stdout[-3000:]
    for name in (
        "test_f_is_zero_at_one_and_convex[half_jeffreys]",
        "test_monotone[2-half_jeffreys]",
        "test_seeds_together_equal_seeds_alone[mine-overrides",
        "test_act_speaks_environment_units[mine]",
        "test_seeds_together_equal_seeds_alone[cql-overrides",
        "test_every_option_of_an_algorithm_is_commented[cql]",
    ):
        assert name in result.stdout
