"""How Lightning starts several processes for one run, and keeps checkpoints independent of their number."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from brpo.console import say
from brpo.engine import ranks as ranking
from brpo.engine.ranks import ALONE, Ranks
from brpo.errors import UserError

JOINING = timedelta(minutes=10)  # for the processes to come together: one that has not begun by then never will
WAITING = timedelta(hours=2)  # for a word of another one: rank 0 may roll out for long
# Variables that Lightning's launcher sets.
LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")

_trained_here = False  # whether a training has begun in this process


class RanksStrategy(DDPStrategy):
    """Processes like DDP's, without its wrapper: that allows one backward for each forward, and a chunk has hundreds.

    Gradients are averaged by `OfflineAlgorithm.descend`.

    Args:
        ranks: the group, once it is known.
        options: of Lightning's DDPStrategy.
    """

    def __init__(self, ranks: Ranks = ALONE, **options: Any) -> None:
        super().__init__(timeout=WAITING, **options)
        self.ranks = ranks

    def setup_distributed(self) -> None:
        """Join the group, once all are there; a signal ends the wait.

        Raises:
            UserError: some did not come.
        """
        environment, launcher = self.cluster_environment, self.launcher
        assert environment is not None and launcher is not None
        self.set_world_ranks()
        rank, world = environment.global_rank(), environment.world_size()
        address, port, missing = environment.main_address, environment.main_port, world - 1
        others = f"{missing} more process{'es' if missing > 1 else ''} at {address}:{port}"
        try:
            with _ending_at_signals(f"while waiting for {others}", environment.local_rank() == 0, launcher.kill):
                if not dist.is_initialized() and not _under_torchrun():  # which knows that all are there
                    say(f"waiting for {others}")
                    self._roll_call = TCPStore(address, port, world, rank == 0, JOINING, multi_tenant=True)
                super().setup_distributed()
        except dist.DistError as error:
            launcher.kill(signal.SIGTERM)
            said = str(error).partition("\n")[0].rstrip(".")
            raise UserError(
                f"{world} processes are to train together, and not all came to {address}:{port} within "
                f"{JOINING.total_seconds() / 60:g} minutes ({said}). Start the same command on each of the "
                f"trainer.num_nodes={self.num_nodes} machines, with MASTER_ADDR and MASTER_PORT of the first and "
                f"NODE_RANK=0, 1, ...; under SLURM with srun (docs/train.sbatch)."
            ) from error

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


@contextlib.contextmanager
def _ending_at_signals(moment: str, speaks: bool, kill: Callable[[Any], None]) -> Iterator[None]:
    """Within, SIGINT and SIGTERM end this process at once, and `kill` those that it has started.

    Torch waits in C++, where no handler of Python's runs; it lets other threads run.
    """
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to no other
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        for number in iter(lambda: os.read(reading, 1), b""):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                kill(signal.SIGTERM)
                if speaks:
                    print(f"interrupted: {signal.Signals(number[0]).name} {moment}", file=sys.stderr, flush=True)
                os._exit(130)

    before = signal.set_wakeup_fd(writing)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        listener.join()
        os.close(reading)


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Afterwards the environment is what it was before Lightning started processes: another training starts by itself."""
    before = {name: os.environ[name] for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        for name in LAUNCHED:
            os.environ.pop(name, None)
        os.environ.update(before)


def start(trainer: dict[str, Any], parallel: str, seeds: int) -> Ranks:
    """Start the other processes (torchrun and SLURM have started them already) and join the group.

    Lightning would do it inside `fit`. It is done before, so that all ranks agree on the run folder and on what is resumed.

    Raises:
        UserError: the devices are not here, or `parallel` and the number of seeds do not go together.
    """
    ranks = _start(trainer, parallel, seeds)
    global _trained_here
    _trained_here = True
    return ranks


def _start(trainer: dict[str, Any], parallel: str, seeds: int) -> Ranks:
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
        world, wanted = scout.world_size, scout.num_devices * scout.num_nodes
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"The trainer's options {trainer} are refused: {' '.join(str(error).split())}") from error
    if world != wanted or begun not in (1, world):
        came = f"{max(begun, world)} processes were started (by torchrun or SLURM)"
        raise UserError(f"{came}, and the options {trainer} take {wanted}.")
    mode = ranking.choose_mode(parallel, seeds, world)  # before the others are started
    if world == 1:
        return ALONE
    strategy, launcher = scout.strategy, scout.strategy.launcher
    assert isinstance(strategy, RanksStrategy) and strategy.cluster_environment and launcher
    if _trained_here and not strategy.cluster_environment.creates_processes_externally:
        raise UserError(
            f"trainer.devices={trainer.get('devices', 1)} is possible in the first training of a script alone: each further "
            f"process runs the script anew, up to there. Make this one in a script of its own, or on the command line."
        )
    try:
        launcher.launch(strategy.setup_environment)
    except UserError:
        raise
    except ValueError as error:  # the launcher's number of processes is another one
        raise UserError(f"The trainer's options {trainer} are refused: {' '.join(str(error).split())}") from error
    return Ranks(scout.global_rank, world, mode)


def begun_by_lightning() -> bool:
    """Whether another process of this training has begun this one, with the user's script from its first line on."""
    return begun_by_a_launcher() == 1 and os.environ.get("LOCAL_RANK", "0") != "0"


def begun_by_a_launcher() -> int:
    """How many processes torchrun, or SLURM's srun, has started for this run; 1 without them."""
    if _under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))  # of srun; SLURM_NTASKS stands in the batch script too


def _under_torchrun() -> bool:
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return TorchElasticEnvironment.detect()


def cluster_plugins() -> list[Any]:
    """Who has started the processes, where Lightning would not find it out by itself.

    SLURM where srun has, without its requeueing: that would save and requeue by rules of its own. In a batch script
    without srun nobody has, and Lightning takes the variables of the job for those of a process.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    if _under_torchrun():
        return []
    if begun_by_a_launcher() > 1:
        return [SLURMEnvironment(auto_requeue=False)]
    return [LightningEnvironment()] if SLURMEnvironment.detect() else []
