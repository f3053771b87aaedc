"""Where the files lie that come with the code: in a clone, or in a package that pip has installed."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "installed"  # setup.py puts it into wheels

IN_CLONE = not _INSTALLED.is_dir()
ROOT = _PACKAGE.parent if IN_CLONE else _INSTALLED  # of train.py, conf/ and data/
COMMIT = ROOT / "commit"  # of what was installed; there is none in a clone, which git is asked about
TRAIN = "python train.py" if IN_CLONE else "brpo train"  # how a training is typed


def install(extra: str = "", pinned: bool = True) -> str:
    """The command that brings what an optional part needs, in the versions that are tested."""
    if not IN_CLONE:
        return f"pip install 'brpo{extra}'"
    return f"pip install {'-c constraints.txt ' if pinned else ''}-e '.{extra}'"
