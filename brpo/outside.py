"""Code of the user's own, outside brpo: packages that `BRPO_IMPORT=one,other` names in the shell, where no file can."""

import importlib
import os

from brpo.errors import UserError

VARIABLE = "BRPO_IMPORT"


def own_packages() -> tuple[str, ...]:
    """The packages that the variable names; none where it is not set."""
    names = (name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    return tuple(name for name in names if name)


def import_own() -> None:
    """Import them: environments register themselves then. A package that has been imported is not read again.

    Raises:
        UserError: one cannot be imported; names the variable.
    """
    for name in own_packages():
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever the user's code raises
            raise UserError(
                f"{VARIABLE}={os.environ[VARIABLE]}: {name} cannot be imported ({type(error).__name__}: {error}). Install "
                f"it, name the folder that it lies in in PYTHONPATH, or take it out of {VARIABLE}."
            ) from error
