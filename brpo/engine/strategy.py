"""How Lightning starts several processes for one run, and keeps checkpoints independent of their number."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy

from brpo.engine import ranks as ranking
from brpo.engine.ranks import ALONE, Ranks
from brpo.errors import UserError


class RanksStrategy(DDPStrategy):
    """Processes like DDP's, without its wrapper: that allows one backward for each forward, and a chunk has hundreds.

    Gradients are averaged by `OfflineAlgorithm.descend`.

    Args:
        ranks: the group, once it is known.
        options: of Lightning's DDPStrategy.
    """

    def __init__(self, ranks: Ranks = ALONE, **options: Any) -> None:
        # Rank 0 may roll out for long while the others wait for it.
        super().__init__(timeout=timedelta(hours=2), **options)
        self.ranks = ranks

    def _setup_model(self, model: torch.nn.Module) -> Any:
        return model

    def _get_process_group_backend(self) -> str:
        """NCCL for gradients alone, gloo for what the ranks tell each other: there a rank that is lost ends the wait."""
        return "cpu:gloo,cuda:nccl" if self.root_device.type == "cuda" else super()._get_process_group_backend()

    def _register_ddp_hooks(self) -> None:
        pass

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights of all seeds."""
        state = super().lightning_module_state_dict()
        if not self.ranks.shares_seeds:
            return state
        return ranking.join_state(self.ranks, state, ranking.seed_axis(self._module))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state for all seeds."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        if not self.ranks.shares_seeds:
            return optimizer.state_dict()
        return ranking.join_optimizer(self.ranks, optimizer)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's seeds out of a checkpoint."""
        if self.ranks.shares_seeds:
            share = self.ranks.share(len(checkpoint["state_dict"]["seeds"]))
            own = ranking.own_state(checkpoint["state_dict"], ranking.seed_axis(self._module), share)
            checkpoint = {**checkpoint, "state_dict": own}
        super().load_model_state_dict(checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's seeds out of a checkpoint."""
        if self.ranks.shares_seeds:
            share = self.ranks.share(len(checkpoint["state_dict"]["seeds"]))
            pairs = zip(checkpoint["optimizer_states"], self.optimizers, strict=True)
            own = [ranking.own_optimizer(state, optimizer, share) for state, optimizer in pairs]
            checkpoint = {**checkpoint, "optimizer_states": own}
        super().load_optimizer_state_dict(checkpoint)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Rank 0 writes; where it cannot, all ranks stop."""
        error: Exception | None = None
        try:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        except (OSError, UserError) as failure:
            error = failure
        self.ranks.fail_together(error)

    @property
    def _module(self) -> torch.nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


def several_processes(trainer: dict[str, Any]) -> bool:
    """Whether the trainer's options ask for more than one device, or for as many as there are."""
    devices = trainer.get("devices", 1)
    single = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    return not single or trainer.get("num_nodes", 1) != 1


def resolve_accelerator(trainer: dict[str, Any]) -> dict[str, Any]:
    """The trainer's options with CUDA for `gpu`, and for `auto` where there is some; never Apple's GPUs: no float64."""
    chosen = trainer.get("accelerator", "auto")
    if chosen == "auto":
        chosen = "cuda" if CUDAAccelerator.is_available() else "cpu"
    return {**trainer, "accelerator": "cuda" if chosen == "gpu" else chosen}


def start(trainer: dict[str, Any], parallel: str, seeds: int) -> Ranks:
    """Start the other processes (torchrun and SLURM have started them already) and join the group.

    Lightning would do it inside `fit`. It is done before, so that all ranks agree on the run folder and on what is resumed.

    Raises:
        UserError: the devices are not here, or `parallel` and the number of seeds do not go together.
    """
    begun = begun_by_a_launcher()
    if not several_processes(trainer):
        if begun > 1:
            one = f"trainer.devices={trainer.get('devices', 1)} takes one"
            raise UserError(
                f"{begun} processes were started (by torchrun or SLURM), and {one}. For one run on all of them give "
                f"trainer.devices and trainer.num_nodes; for runs of their own start each by itself, as srun -n 1 does."
            )
        return ALONE
    try:
        scout = lightning.Trainer(
            **resolve_accelerator(trainer),
            strategy=RanksStrategy(),
            plugins=cluster_plugins(),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        world = scout.world_size
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"The trainer's options {trainer} are refused: {' '.join(str(error).split())}") from error
    if begun not in (1, world):
        raise UserError(f"{begun} processes were started (by torchrun or SLURM), and the options {trainer} take {world}.")
    mode = ranking.choose_mode(parallel, seeds, world)  # before the others are started
    if world == 1:
        return ALONE
    launcher = scout.strategy.launcher
    assert launcher is not None
    try:
        launcher.launch(scout.strategy.setup_environment)
    except ValueError as error:  # the launcher's number of processes is another one
        raise UserError(f"The trainer's options {trainer} are refused: {' '.join(str(error).split())}") from error
    return Ranks(scout.global_rank, world, mode)


def begun_by_a_launcher() -> int:
    """How many processes torchrun, or SLURM's srun, has started for this run; 1 without them."""
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))  # of srun; SLURM_NTASKS stands in the batch script too


def cluster_plugins() -> list[Any]:
    """SLURM's environment without its requeueing: that would save and requeue by rules of its own."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
