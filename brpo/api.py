"""Training from Python, as the command line does it."""

import sys
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from brpo.config import register_resolvers
from brpo.engine.strategy import begun_by_lightning
from brpo.errors import LeftToRankZero, UserError
from brpo.exits import in_one_line
from brpo.installation import ROOT, TRAIN
from brpo.launch import key_of, launch


def train(*overrides: str) -> dict[str, Any]:
    """What `python train.py OVERRIDES` does: start a run, or go on with one (`resume=RUN`).

    Args:
        overrides: options as they are typed, such as `"algo=sfac"` or `"seeds=[3,7]"`; no sweep.

    Returns:
        The content of the run's `result.json`, and its folder as `run_dir`.

    Raises:
        UserError: an option is refused; nothing was written then.
        TrainingDiverged: a loss became NaN or infinite; the last good checkpoint is kept.
        Interrupted: a signal arrived, or something else ended it early; a checkpoint was written.
        SystemExit: in a process that another one has started for this training (`trainer.devices=2`), at its end.
    """
    typed = [str(override) for override in overrides]
    if swept := [item for item in typed if item.startswith("-") or key_of(item) in ("sweep", "hydra")]:
        raise UserError(f"{swept[0]} is not for one run. Sweeps are made by the command line: {TRAIN} -m ...")
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):  # also for resuming, which composes once more
        try:
            composed = compose("train", overrides=typed)
        except HydraException as error:
            raise UserError(in_one_line(error)) from error
        try:
            result = launch(composed, typed)
        except LeftToRankZero:
            if not begun_by_lightning():
                raise
        if begun_by_lightning():
            sys.exit()  # the rest of the script is for the process that was started by the user
    return result
