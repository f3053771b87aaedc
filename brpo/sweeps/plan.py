"""Before a sweep starts: its jobs, how many at a time, and on what. Imports nothing heavy."""

import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

# In the environment of the workers: the process that leads the sweep, and how many jobs share the machine.
LEADER, AT_A_TIME = "BRPO_SWEEP_LEADER", "BRPO_SWEEP_JOBS"


def sweep_jobs(*, _root_: Any) -> int:
    """Jobs at a time: one for each GPU where training may use one, else one for each share of the cores; never idle ones.

    A job takes `engine.threads` cores, else OMP_NUM_THREADS, else one. Joblib knows how many this process may use.
    """
    from joblib import cpu_count

    places = len(devices_for(_root_)) or cpu_count() // max(1, _threads(_root_))
    return max(1, min(places, len(planned_jobs(_root_)) or places))


def visible_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, else the numbers of the GPUs. CUDA itself is not started."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def planned_jobs(config: Any) -> list[list[str]]:
    """Overrides of each job of a sweep; none where Hydra's basic sweeper does not decide it."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if not str(config.hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
        return []
    # Each job resolves what was typed for itself. Parameters in a file Hydra does resolve here, for all jobs alike.
    overrides: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
    try:
        typed = [
            *(f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()),
            *overrides["task"],
        ]
        batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(typed), None)
        return [list(map(readable, job)) for batch in batches for job in batch]
    except (HydraException, AssertionError, ValueError):  # a pattern as in algo=glob(*) is resolved by Hydra alone
        return []


def readable(override: str) -> str:
    """An override with an interpolation as it was typed: Hydra's sweeper puts a backslash before each bracket and colon."""
    return re.sub(r"\\(\W)", r"\1", override) if "$\\{" in override else override


def devices_for(config: Any) -> list[str]:
    """The GPUs for the jobs of a sweep; none where they are to train on the CPU."""
    return [] if config.trainer.get("accelerator") == "cpu" else visible_devices()


def _threads(config: Any) -> int:
    threads = config.engine.threads or os.environ.get("OMP_NUM_THREADS", "1")
    return int(threads) if str(threads).isdecimal() else 1


def jobs_at_a_time() -> int:
    """Jobs of a local sweep that share the machine with this one, itself included; 1 outside of such a sweep."""
    return int(os.environ.get(AT_A_TIME, "1"))


def is_local(hydra: Any) -> bool:
    """Whether the jobs run in processes of this machine that share its devices and its terminal."""
    return str(hydra.launcher.get("_target_")).endswith(".JoblibLauncher")


def ends_with_its_leader(hydra: Any) -> bool:
    """Whether no job goes on without the process that leads: those of a cluster do."""
    return is_local(hydra) or str(hydra.launcher.get("_target_")).endswith(".BasicLauncher")
