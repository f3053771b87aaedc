"""Behaviour-regularized policy optimization from fixed data sets."""

import os
import sys
from pathlib import Path

if _folder := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
    try:  # torch makes it as it is imported: where it cannot, nothing would start, whatever the engine
        Path(_folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        reason = f"TORCHINDUCTOR_CACHE_DIR={_folder} cannot be made ({error.strerror})"
        print(f"note: {reason}; torch keeps what it compiles in a folder of its own", file=sys.stderr)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib import metadata  # every start of a command imports this file

        return metadata.version("brpo")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
