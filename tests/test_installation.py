"""What pip installs without `-e`: a package that trains as the clone does."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT

BUILT_FROM = ("brpo", "conf", "train.py", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with what a wheel brings."""
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    ours = [ROOT / name for name in BUILT_FROM]
    data = [ROOT / "data" / name for name in ("published_scores.csv", "brpo/namespace_metadata.json")]
    halfcheetah = ROOT / "data" / "brpo" / "halfcheetah"
    for path in (*ours, *data, halfcheetah / "namespace_metadata.json", halfcheetah / "medium-replay-v0"):
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, target)
    (source / "data" / "mine-v0").mkdir()
    (source / "data" / "mine-v0" / "private.csv").write_text("1")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(source),
    ]
    subprocess.run([*build, str(source)], check=True, capture_output=True, cwd=source)
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(site)
    return site


def run(site: Path, here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(here), "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable"}
    environment.pop("MINARI_DATASETS_PATH", None)
    return subprocess.run([sys.executable, *arguments], cwd=here, env=environment, capture_output=True, text=True)


def test_it_has_what_the_clone_has(site: Path) -> None:
    installed = site / "brpo" / "installed"
    for name in ("train.py", "conf", "data/published_scores.csv", "data/brpo"):
        there, here = installed / name, ROOT / name
        files = [path.relative_to(here) for path in here.rglob("*.*")] if here.is_dir() else [Path()]
        tracked = [file for file in files if "medium-replay-v0" in str(file) or name != "data/brpo"]
        assert all((there / file).read_bytes() == (here / file).read_bytes() for file in tracked if (here / file).is_file())
        assert tracked
    assert sorted(path.name for path in (installed / "data").iterdir()) == ["brpo", "published_scores.csv"]


def test_it_trains_and_names_its_commit(site: Path, tmp_path: Path) -> None:
    """A real interpreter: it is found on the path, and the clone's .git is not asked."""
    commit = site / "brpo" / "installed" / "commit"
    assert not commit.exists()  # it was built from files without a .git
    commit.write_text("0123abc\n")
    done = run(site, tmp_path, "-m", "brpo", "train", "algo=bc", "trainer=smoke", "run_dir=run")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["git"], result["updates"], result["dataset"]["id"]) == (
        "0123abc",
        2,
        "brpo/halfcheetah/medium-replay-v0",
    )
    refused = run(site, tmp_path, "-m", "brpo", "train", "algo=nothing")
    assert refused.returncode == 2 and "algo/nothing" in refused.stderr


def test_where_it_looks_and_what_it_says(site: Path, tmp_path: Path) -> None:
    program = (
        "import json; from brpo import installation; from brpo.datasets.catalog import data_roots;"
        "print(json.dumps([installation.IN_CLONE, installation.TRAIN, installation.install('[ray]', pinned=False),"
        "[str(root) for root in data_roots()]]))"
    )
    done = run(site, tmp_path, "-c", program)
    in_clone, train, install, roots = json.loads(done.stdout)
    assert (in_clone, train, install) == (False, "brpo train", "pip install 'brpo[ray]'")
    assert roots == [
        str(tmp_path / ".minari" / "datasets"),
        str(site / "brpo" / "installed" / "data"),
    ]  # downloads: the first
