"""The `brpo` command itself: what it says of its arguments, and its tables."""

import importlib.metadata
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from brpo import cli, divergence_table
from brpo.errors import UserError
from brpo.exits import exit_code_of_command
from brpo.functional.divergences import DIVERGENCES, Divergence, get_divergence
from tests.helpers import ROOT


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report"], r"error: Missing argument 'RUN...'. See brpo report --help."),
        (["bogus"], r"error: No such command 'bogus'. See brpo --help."),
        (["evalute"], r"error: No such command 'evalute'. Did you mean 'evaluate'? See brpo --help."),
        (
            ["diagnose", "run", "--checkpoint", "newest"],
            "error: Invalid value for '--checkpoint': 'newest' is not one of 'last', 'best'. See brpo diagnose --help.",
        ),
        (["divergences", "--epsilon", "0"], "error: epsilon=0.0 is not allowed; it must be positive and finite."),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["brpo", *arguments])
    assert exit_code_of_command(cli.app) == 2
    assert capsys.readouterr().err.splitlines() == [says]


def test_a_folder_that_torch_could_not_make_is_left_to_torch(tmp_path: Path) -> None:
    """It makes it as it is imported, whatever the engine."""
    (tmp_path / "file").touch()
    program = "import os, brpo; print(os.environ.get('TORCHINDUCTOR_CACHE_DIR'))"
    for folder, kept in ((tmp_path / "file" / "x", None), (tmp_path / "y", tmp_path / "y")):
        variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, check=True)
        assert result.stdout == f"{kept}\n"
        said = f"note: TORCHINDUCTOR_CACHE_DIR={folder} cannot be made (Not a directory); torch keeps what it compiles in a "
        assert result.stderr == ("" if kept else f"{said}folder of its own\n")


def test_a_report_that_cannot_be_written_is_refused_before_the_runs_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "report"
    monkeypatch.setattr("brpo.reports.report.report", lambda runs: pytest.fail("the runs were read"))
    monkeypatch.setattr("sys.argv", ["brpo", "report", str(tmp_path), "--out", str(out)])
    assert exit_code_of_command(cli.app) == 2
    says = f"error: --out {out} cannot be written (Not a directory). Give a folder that can."
    assert capsys.readouterr().err.splitlines() == [says]


def test_a_refused_report_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("sys.argv", ["brpo", "report", str(tmp_path / "runs"), "--out", str(tmp_path / "new")])
    assert exit_code_of_command(cli.app) == 2
    assert "holds no results" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["toy", "fit"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_experiments_have_names_of_their_own(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"brpo.experiments.{name}"
    monkeypatch.setattr("sys.argv", [program, "--bogus"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(program, run_name="__main__")
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(f"See python -m {program} --help.")


def test_caches_are_listed_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour models and rows, in the user's cache and beside data sets; nothing else there is touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))

    def say(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["brpo", "cache", *arguments])
        assert exit_code_of_command(cli.app) == 0
        return capsys.readouterr().out

    assert say() == "nothing is cached\n"
    (tmp_path / "data").mkdir()
    old, new = tmp_path / "caches/brpo/behavior/a-seed0-1.ckpt", tmp_path / "caches/brpo/behavior/a-seed1-2.ckpt"
    rows = [tmp_path / "data/lab/.brpo-cache/logs-v0.rows", tmp_path / "caches/brpo/logs-v0-3.rows"]
    for name, disk in (("far", tmp_path / "disk"), ("circle", tmp_path / "data")):
        disk.mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(disk)
    rows.append(tmp_path / "disk/.brpo-cache/far-v0.rows")  # of data/far/far-v0
    others = [tmp_path / "data/lab/logs-v0/data.hdf5", tmp_path / "data/lab/.brpo-cache/logs-v0.lock"]
    for path in (old, new, *rows, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(2_000_000))
    os.utime(old, (0, 0))
    said = say()
    for path in (old, new, *rows):
        assert path.name in said and str(path.parent) in said
    assert not any(path.name in said for path in others)
    assert "5 files, 10.0 MB; --remove deletes them" in said
    said = say("--older", "30", "--remove")
    assert new.name not in said and "1 file, 2.0 MB: deleted" in said and not old.exists() and new.exists()
    assert say("--older", "30") == "nothing in the caches is older than 30 days\n"
    with monkeypatch.context() as locked:
        locked.setattr(
            Path, "unlink", lambda path, missing_ok: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
        locked.setattr("sys.argv", ["brpo", "cache", "--remove"])
        assert exit_code_of_command(cli.app) == 2
    assert capsys.readouterr().err == f"error: {new} cannot be deleted (Permission denied).\n"
    say("--remove")
    assert not any(path.exists() for path in (new, *rows)) and all(path.exists() for path in others)


def test_the_package_is_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["brpo", "bogus"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("brpo", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: No such command 'bogus'. See brpo --help.\n"


def test_ctrl_c_while_the_command_is_imported(tmp_path: Path) -> None:
    """SIGINT at the import of typer, in an interpreter of its own: exit code 130 and no traceback."""
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError\n")
    start = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{start}; runpy.run_module('brpo', run_name='__main__')"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_version_and_commit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["brpo", "--version"])
    monkeypatch.setattr("brpo.runs.git_commit", lambda: "abc-dirty")
    assert exit_code_of_command(cli.app) == 0
    assert capsys.readouterr().out == f"brpo {importlib.metadata.version('brpo')}, commit abc-dirty\n"


def test_without_arguments_it_helps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["brpo"])
    with pytest.raises(SystemExit) as stopped:
        exit_code_of_command(cli.app)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "Usage: brpo" in said.out
    assert not said.err


def test_the_page_has_the_table_of_divergences(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["brpo", "divergences"])
    assert exit_code_of_command(cli.app) == 0
    table = capsys.readouterr().out.strip()
    assert table.count(os.linesep) == len(DIVERGENCES) + 1
    assert table in (ROOT / "docs" / "divergences.md").read_text()


def test_a_row_by_hand() -> None:
    """Jeffreys: g = -ln t, so h(1.5) = 0.25 / 2 - 0.125 / 3 up to order 3; f_3' = 2u - 1.5 u^2 turns at u = 2/3."""
    name, f, symmetric, slope, largest, g, radius, beyond, below = divergence_table.row(get_divergence("jeffreys"), 3, 0.5)
    assert (name, f, symmetric, slope, radius, beyond) == ("`jeffreys`", "`(t - 1) ln t`", "yes", "0.5", "1", "2, 4")
    assert g == "0.5, -0.333, 0.25, -0.2"
    assert largest.startswith("1.667, ")
    assert float(below) == pytest.approx(1.5 / (0.125 - 0.125 / 3), rel=1e-2)
    assert divergence_table.row(Divergence("mine", "test", lambda t: 3.0 * (t - 1.0).square()), 2, 1.0)[3] == "0.1667"
    assert divergence_table.row(Divergence("flat", "test", lambda t: (t - 1.0) ** 4), 2, 1.0)[1:] == ["-", "no", *["-"] * 6]


@pytest.mark.parametrize(
    "f", [lambda t: math.log(t), lambda t: t.foo(), lambda t: t.detach().numpy(), lambda t: t / 0.0 + 1 / 0]
)
def test_a_divergence_of_the_users_that_fails_is_named(f: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="f of the divergence 'mine' cannot be computed: .*: torch.log and not math.log"):
        divergence_table.row(Divergence("mine", "test", f), 4, 0.5)


@pytest.mark.parametrize("name", [name for name, divergence in DIVERGENCES.items() if divergence.formula])
def test_formulas_are_the_functions(name: str) -> None:
    """In words for the table, in torch for the code."""
    import numpy as np
    import torch

    t = np.array([0.2, 0.9, 1.7, 4.0])
    words = DIVERGENCES[name].formula.replace("^", "**").replace("t ln t", "t * ln(t)").replace(") ln", ") * ln")
    words = words.replace("ln t", "ln(t)").replace("2 ln 2", "2 * ln(2)")
    found = eval(words, {"__builtins__": {}}, {"t": t, "ln": np.log, "sqrt": np.sqrt, "abs": np.abs})
    assert DIVERGENCES[name].f(torch.from_numpy(t)).numpy() == pytest.approx(found)
