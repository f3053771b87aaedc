"""The `brpo` command, also `python -m brpo`: what Ctrl-C ends at once even while the command itself is imported."""

import os
import signal


def main() -> None:
    """Entry point. Importing typer and rich takes a third of a second, in which Ctrl-C would be a traceback."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored, as under nohup
    if interruptible:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from brpo.cli import main as command

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


if __name__ == "__main__":
    main()
