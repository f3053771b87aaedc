"""The ways in which a run may end early. `train.py` and `brpo` turn them into exit codes."""


class UserError(ValueError):
    """The input is wrong. The message is one line: what came, what is allowed, what to do. Exit code 2."""


class TrainingDiverged(RuntimeError):
    """A loss or a gradient became NaN or infinite. Exit code 3."""


class Interrupted(RuntimeError):
    """A run ended before its last update, as SIGINT or SIGTERM arrived; a checkpoint was written first. Exit code 130."""


class LeftToRankZero(RuntimeError):
    """Several processes train together and rank 0 reports what ended the run: the others end without a word."""
