"""What pyproject.toml cannot say: a wheel has `train.py`, the configuration and the bundled data in `brpo/installed/`."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
FILES = ("train.py", "conf", "data/published_scores.csv", "data/brpo/halfcheetah/medium-replay-v0")  # data/ may hold more
NAMESPACES = ("data/brpo/namespace_metadata.json", "data/brpo/halfcheetah/namespace_metadata.json")


class BuildWithFiles(build_py):
    """Builds the package; not where it is installed with `-e`, which runs from the clone."""

    def run(self) -> None:
        """Copy the files beside the modules, and note the commit."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "brpo" / "installed"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        for name in (*FILES, *NAMESPACES):
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy(source, target)
        if commit := _commit():
            (folder / "commit").write_text(commit)


def _commit() -> str:
    """As `brpo.runs.git_commit` says it; empty where this is no clone."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        commit, changed = (
            subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "brpo", "conf", "train.py"])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}-dirty" if changed else commit


setup(cmdclass={"build_py": BuildWithFiles})
