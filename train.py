"""Train a policy: `python train.py algo=sfac dataset=brpo/halfcheetah/medium-replay-v0 seeds=3`.

`conf/train.yaml` lists the options. Exit codes: 0 done, 2 wrong input, 3 diverged, 130 interrupted.
"""

import functools
import os
import sys

os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and what it raises becomes one line below

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from brpo.config import register_resolvers
from brpo.errors import UserError
from brpo.exits import DONE, INTERRUPTED, exit_code_of

register_resolvers()


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """One run (Hydra calls it once for each job of a sweep)."""
    from brpo.launch import launch  # torch and Lightning are imported here, so that --help answers at once

    job = HydraConfig.get()
    run = functools.partial(launch, config, list(job.overrides.task))
    code = exit_code_of(run, debug=bool(config.debug))
    if job.mode == RunMode.MULTIRUN and code not in (DONE, INTERRUPTED):
        raise UserError(f"a job of the sweep failed: {' '.join(job.overrides.task)}")  # Hydra goes on with the others
    if code:
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, debug="debug=true" in sys.argv))
