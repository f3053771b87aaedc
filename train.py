"""Train a policy: `python train.py algo=sfac dataset=brpo/halfcheetah/medium-replay-v0 seeds=3`.

`conf/train.yaml` lists the options. Exit codes: 0 done, 2 wrong input, 3 diverged, 130 interrupted.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and what it raises becomes one line below
interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored, as under nohup
if __name__ == "__main__" and interruptible:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # while what follows is imported, a second without `main`

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from brpo.config import register_resolvers
from brpo.exits import exit_code_of
from brpo.sweeps.callback import exit_code_of_program
from brpo.sweeps.job import run_job

register_resolvers()


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """One run (Hydra calls it once for each job of a sweep)."""
    register_resolvers()  # a job of a sweep may run in a process that has not read this file
    job = HydraConfig.get()
    overrides = list(job.overrides.task)
    if job.mode == RunMode.MULTIRUN:
        run_job(config, functools.partial(run, config, overrides))
        return
    code = exit_code_of(functools.partial(run, config, overrides), debug=config.debug is True)
    if code:
        sys.exit(code)


def run(config: DictConfig, overrides: list[str], on_folder: Callable[[Path], None] | None = None) -> None:
    """Import torch and Lightning, which take seconds, and launch; so `--help` answers at once."""
    from brpo.launch import launch

    launch(config, overrides, on_folder)


if __name__ == "__main__":
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, also before the training listens
    sys.exit(exit_code_of_program(main, debug="debug=true" in sys.argv))
