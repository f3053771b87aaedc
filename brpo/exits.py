"""From exceptions to exit codes and one line on stderr. Imports nothing heavy."""

import contextlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from brpo.console import replace_unknown_characters
from brpo.errors import Interrupted, LeftToRankZero, TrainingDiverged, UserError
from brpo.options import meant

DONE, WRONG_INPUT, DIVERGED, INTERRUPTED = 0, 2, 3, 130


def exit_code_of(run: Callable[[], Any], debug: bool = False) -> int:
    """Call `run`; print what went wrong as one line, and give the exit code. Unexpected errors keep their traceback."""
    return outcome_of(run, debug)[0]


def exit_code_of_command(app: Callable[..., Any], debug: bool = False, program: str = "brpo") -> int:
    """As `exit_code_of`, of a typer app: what it says of its arguments is one line too, and not a box.

    Args:
        app: of typer.
        debug: whether to print tracebacks too.
        program: how the app is called on a command line.
    """

    def run() -> None:
        try:
            code = app(prog_name=program, standalone_mode=False)
        except Exception as error:
            if type(error).__name__ == "Abort":
                raise KeyboardInterrupt from error
            message = getattr(error, "format_message", None)  # typer's and click's own have it
            if message is None:
                raise
            if not (said := " ".join(message().replace("Value error, ", "").split())):
                raise SystemExit(WRONG_INPUT) from error  # without arguments: the help was printed
            path = getattr(getattr(error, "ctx", None), "command_path", "")
            said = said if said.endswith(("?", ".")) else f"{said}."
            raise UserError(f"{said} See {path} --help." if path else said) from error
        if code:
            raise SystemExit(code)

    return exit_code_of(run, debug)


def run_command(main: Callable[..., Any]) -> NoReturn:
    """Be the program of a script with one command, a function annotated for typer, and end with its exit code."""
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(exit_code_of_command(app, program=f"python {sys.argv[0]}"))


def outcome_of(run: Callable[[], Any], debug: bool = False) -> tuple[int, str | None]:
    """As `exit_code_of`; gives the exit code and the line, None where all went well."""
    replace_unknown_characters()
    try:
        run()
    except (KeyboardInterrupt, Interrupted) as error:
        return _report(f"interrupted: {error}" if str(error) else "interrupted", INTERRUPTED, debug)
    except LeftToRankZero:
        return DONE, None
    except TrainingDiverged as error:
        return _report(f"diverged: {error}", DIVERGED, debug)
    except (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        return _report(f"error: {in_one_line(error)}", WRONG_INPUT, debug)
    except OSError as error:  # a full disk, a folder that cannot be written
        return _report(f"error: {disk_error(error)}", WRONG_INPUT, debug)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        said = in_one_line(error).rstrip(".") or "no more was given"
        advice = "A training wants less with fewer seeds, a smaller batch_size, smaller networks or data.storage=memmap"
        return _report(f"error: memory ran out: {said}. {advice}.", WRONG_INPUT, debug)
    return DONE, None


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether it says so: Python's own, torch's on a GPU, torch's allocator on a CPU."""
    said = re.search(r"out of memory|allocate memory|ALLOC_FAILED|bad_alloc", str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or said is not None


def disk_error(error: OSError) -> str:
    """What the system says, and of which file."""
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")


def _report(message: str, code: int, debug: bool) -> tuple[int, str]:
    if debug:
        traceback.print_exc()
    with contextlib.suppress(OSError):  # closed
        print(message, file=sys.stderr, flush=True)
    return code, message


def in_one_line(error: BaseException) -> str:
    """The error's own words; for Hydra's wrappers, those of what they wrap. OmegaConf's details stay behind --debug."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}."
    while isinstance(error, HydraException | OmegaConfBaseException) and isinstance(
        error.__cause__, UserError | OmegaConfBaseException
    ):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = (
        "full_key:", "object_type=", "reference_type=", "Set the environment variable", "Config search path:", "provider=",
    )  # fmt: skip
    said = " ".join(line for line in lines if not line.startswith(details)) + _known_keys(error)
    if isinstance(error, OverrideParseException):
        how = "key=value, and quotes in the value around spaces, = and brackets that are no list: 'run_dir=\"a=b\"'"
        return f"{error.override} cannot be read: {said}. Write {how}."
    return said


def _known_keys(error: BaseException) -> str:
    """What stands beside a key that is not there, and where else a key of that name stands."""
    from brpo.config import flatten  # which needs this module

    parent = getattr(error, "parent_node", None)
    if not (isinstance(error, ConfigAttributeError | ConfigKeyError) and isinstance(parent, DictConfig)):
        return ""
    names = sorted(str(key) for key in parent if not str(key).startswith("_") and key != "hydra")
    place = str(error.full_key or "").rpartition(".")[0]
    where = place or "the configuration"
    if names:
        root: Any = OmegaConf.to_container(parent._get_root(), resolve=False)
        beside = [f"{place}.{name}" if place else name for name in names]
        elsewhere = meant(str(error.full_key), [*flatten({key: root[key] for key in root if key != "hydra"}), *beside])
        if not elsewhere and "_target_" in parent:  # its class may take what the file does not name
            elsewhere = f" What it takes besides wants a plus: +{error.full_key}=..."
        return f": {where} has {', '.join(names)}.{elsewhere}"
    follows = where == "algo.behavior"  # an interpolation has no keys
    return f": {where} follows algo.actor. Give it a kind of its own first: actor@{where}=gaussian." if follows else ""
