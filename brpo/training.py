"""From a checked configuration to a finished run folder."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from joblib import cpu_count
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from brpo import code, resume, runs
from brpo import config as configuration
from brpo.algorithms.base import OfflineAlgorithm
from brpo.callbacks.checkpoints import Checkpoints
from brpo.callbacks.evaluate import Evaluate
from brpo.callbacks.pretraining import Pretraining
from brpo.callbacks.profile import Profile
from brpo.callbacks.progress import UpdateProgress
from brpo.callbacks.recorder import Recorder
from brpo.callbacks.signals import Signals
from brpo.console import say
from brpo.datasets import statistics
from brpo.datasets.datamodule import OfflineDataModule
from brpo.engine import memory, strategy
from brpo.engine.checkpoint_io import DigestCheckpointIO
from brpo.engine.choose import choose, make_runner
from brpo.engine.compiled import require_backend
from brpo.engine.optimizers import try_step
from brpo.engine.ranks import ALONE, Ranks
from brpo.errors import TrainingDiverged, UserError
from brpo.evaluation import environments
from brpo.evaluation.kinds import Evaluator, kind_of
from brpo.evaluation.make import make_evaluator
from brpo.evaluation.rollout import useful_processes
from brpo.exits import disk_error
from brpo.files import write_json
from brpo.functional import products
from brpo.options import OptionRefused
from brpo.results import RunLogger, describe_engine, log_hyperparameters, summarize
from brpo.sweeps.plan import jobs_at_a_time
from brpo.types import DataSpec

_THREADS = torch.get_num_threads()  # torch follows OMP_NUM_THREADS


def make_algorithm(node: Any, spec: DataSpec, *, seeds: list[int], max_updates: int) -> OfflineAlgorithm:
    """Build the algorithm of a configuration node; and its optimizers once, with a step, to see whether they may be so.

    Raises:
        UserError: an option is refused.
    """
    algorithm = configuration.build(node, spec, place="algo", seeds=seeds, max_updates=max_updates)
    try:
        algorithm.configure_optimizers()
        try_step(algorithm.optimizer_factory)
    except OptionRefused as error:
        raise error.of("algo") from error
    except UserError:
        raise
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"algo.optimizer={node['optimizer']} is refused: {' '.join(str(error).split())}. "
            f"Give what {node['optimizer']['_target_']} takes, as algo.optimizer.lr=3e-4."
        ) from error
    return algorithm


def make_datamodule(config: dict[str, Any]) -> OfflineDataModule:
    """Build the data module of a configuration and read its data.

    Raises:
        UserError: there is no such data set, it cannot be trained on, or an option is refused.
    """
    options = {key: value for key, value in config["data"].items() if key not in ("family", "eta")}
    try:
        datamodule = OfflineDataModule(
            config["dataset"],
            **options,
            evaluate_every=config["eval"]["every"],
            max_updates=config["max_updates"],
            chunk=config["engine"]["chunk"],
        )
        datamodule.setup()
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    return datamodule


def set_up_torch(config: dict[str, Any], ranks: Ranks = ALONE) -> None:
    """Threads, precision of matrix products, and memory."""
    engine = config["engine"]
    if engine["threads"] or ranks.world == 1:  # several processes share the cores out as Lightning has done it
        torch.set_num_threads(engine["threads"] or _THREADS)  # also after a job of a sweep that had another number
    on_cpu = config["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available()
    asked = engine["matmul_precision"]
    precision = products.precision(asked) if on_cpu else asked
    if precision != asked and ranks.rank == 0:
        say(f"note: engine.matmul_precision={asked} would be slower on this CPU; products are float32")
    torch.set_float32_matmul_precision(precision)
    products.use(engine["products"])
    memory.keep_freed()


@dataclass
class Parts:
    """What a run is made of, built from a configuration before anything is written."""

    datamodule: OfflineDataModule
    algorithm: OfflineAlgorithm
    recorder: Recorder
    pretraining: Pretraining
    checkpoints: Checkpoints
    trainer: lightning.Trainer
    engine: str  # the one that was chosen
    scored: bool  # whether this process evaluates policies


def train(
    config: dict[str, Any],
    overrides: list[str],
    resumption: resume.Resumption | None = None,
    on_folder: Callable[[Path], None] | None = None,
    digest: str | None = None,
) -> dict[str, Any]:
    """Train, evaluate, and write the result file; gives its content.

    Args:
        config: the plain, resolved configuration.
        overrides: what was typed, for the record.
        resumption: where to continue; None starts a run.
        on_folder: called with the run's folder once there is one.
        digest: of the contents that the data set is expected to have; a note says where it has others.

    Raises:
        UserError: the input is wrong (nothing was written then), or the disk is full.
        TrainingDiverged: a loss became NaN or infinite; the last good checkpoint is kept.
        Interrupted: a signal arrived, or something else ended it early; a checkpoint was written.
        LeftToRankZero: one of these, on a rank other than 0.
    """
    _quiet_libraries()
    commit = runs.git_commit()  # now: the clone may move on while this trains
    datamodule = make_datamodule(config)
    if digest is not None and digest != datamodule.spec.digest:
        say(f"note: {config['dataset']} is not what it was: digest {datamodule.spec.digest[:12]}, then {digest[:12]}")
    seeds = len(configuration.seed_list(config["seeds"]))
    with strategy.environment_kept(), strategy.start(config["trainer"], config["parallel"], seeds) as ranks:
        set_up_torch(config, ranks)
        return _train(config, overrides, resumption, on_folder, datamodule, ranks, commit)


def _train(
    config: dict[str, Any],
    overrides: list[str],
    resumption: resume.Resumption | None,
    on_folder: Callable[[Path], None] | None,
    datamodule: OfflineDataModule,
    ranks: Ranks,
    commit: str | None,
) -> dict[str, Any]:
    """As `train`, on every rank."""
    with _stopping_together(ranks):
        folder = resumption.folder if resumption else runs.new_run_folder(config, configuration.algorithm_name(config))
    # One folder for all ranks, and one checkpoint: those that rank 0 has found.
    folder, resumption = ranks.exchange((folder, resumption))[0]
    signals = Signals()
    with contextlib.ExitStack() as building:
        with _stopping_together(ranks):
            parts = _build(config, overrides, datamodule, folder, ranks, signals, building)
            if resumption is None or resumption.checkpoint is None:
                parts.pretraining.look_up()
        held = building.pop_all()
    algorithm, trainer = parts.algorithm, parts.trainer

    # Everything that can be wrong with the input has been built; from here on files are written.
    with held, signals:
        with _stopping_together(ranks):
            if ranks.rank == 0:
                held.enter_context(folder.lock())
                if resumption is None:
                    runs.refuse_second_run(folder)
                    folder.create(config, overrides)
                else:
                    resumption = resume.take_up(resumption, datamodule.spec, config, overrides, parts.scored)
        resumption = ranks.exchange(resumption)[0]
        say(f"run folder: {folder.path}")
        if on_folder is not None and ranks.rank == 0:
            on_folder(folder.path)
        transitions = datamodule.train_transitions.to(trainer.strategy.root_device)
        precision = config["trainer"]["precision"]
        with _stopping_together(ranks):
            algorithm.runner = make_runner(
                parts.engine, algorithm, transitions, config["engine"], config["batch_size"], precision
            )
        checkpoint = resumption.checkpoint if resumption else None
        if checkpoint is None:
            parts.pretraining.begin()
        engine = describe_engine(parts.engine, trainer.strategy.root_device, ranks)
        parts.recorder.part = {
            "max_updates": config["max_updates"], "git": commit, "code": code.of_method(algorithm), "engine": engine,
            "versions": runs.versions(),
        }  # fmt: skip
        try:
            trainer.fit(algorithm, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        except TrainingDiverged as error:
            kept = parts.checkpoints.last if parts.checkpoints.last.exists() else None
            raise TrainingDiverged(
                f"{error}. " + (f"The last good checkpoint is {kept}." if kept else "No checkpoint had been written yet.")
            ) from error
        parts.checkpoints.require_end(algorithm)
        result = summarize(config, datamodule.spec, parts.recorder, algorithm.update_count, engine, commit)
        result["behavior"] = parts.pretraining.provenance
        if ranks.rank == 0:
            write_json(folder.result, result)
            log_hyperparameters(folder, config, result)
    return {**result, "run_dir": str(folder.path)}


@contextlib.contextmanager
def _stopping_together(ranks: Ranks) -> Iterator[None]:
    """An error of the user's input, or of the disk, on one rank ends all of them."""
    error: UserError | None = None
    try:
        yield
    except UserError as caught:
        error = caught
    except OSError as caught:
        error = UserError(disk_error(caught))
        error.__cause__ = caught  # where debug=true shows it
    ranks.fail_together(error)


def _build(
    config: dict[str, Any],
    overrides: list[str],
    datamodule: OfflineDataModule,
    folder: runs.RunFolder,
    ranks: Ranks,
    signals: Signals,
    held: contextlib.ExitStack,
) -> Parts:
    """Build everything, and say what is about to be trained; `held` closes what has to be closed."""
    spec, evaluation = datamodule.spec, config["eval"]
    seeds = configuration.seed_list(config["seeds"])
    own = seeds[ranks.share(len(seeds))]
    algorithm = make_algorithm(config["algo"], spec, seeds=own, max_updates=config["max_updates"])
    algorithm.stored = {"config": config}
    algorithm.join(ranks)
    words = configuration.family_words(spec.dataset_id, config["data"]["family"])
    family = "/".join(word for word in words if word in configuration.FAMILIES)
    say(f"{describe(datamodule, algorithm, seeds)}, family {family or 'default'}")
    for notice in [*statistics.notices(datamodule), *algorithm.notices(), *idle_options(algorithm, overrides)]:
        say(f"note: {notice}")
    constants = {"data/boundary_share": datamodule.flat.boundary_share, **algorithm.constants()}
    kind, mode, episodes = kind_of(spec.dataset_id), evaluation["mode"], evaluation["episodes"]
    recorder = Recorder(folder, ranks, mode=mode, episodes=episodes, kind=kind, constants=constants)
    evaluate = Evaluate(
        _evaluator(config, spec, len(own), ranks) if ranks.evaluates else None,
        recorder,
        signals,
        ranks,
        seeds=own,
        every=evaluation["every"],
        batch=datamodule.diagnostic_batch(len(own)),
    )
    held.callback(evaluate.close)
    progress = UpdateProgress(recorder, config["max_updates"], scored=evaluate.evaluator is not None)
    checkpoints = Checkpoints(folder.checkpoints, recorder, signals, ranks)
    pretraining = Pretraining(config, algorithm, ranks)
    callbacks: list[Callback] = [signals, recorder, pretraining, evaluate, progress]
    callbacks += _users_own(config, "callbacks", Callback)
    if config["profile"]:
        callbacks.append(Profile(folder.path / "profile"))
    trainer = make_trainer(config, folder, [*callbacks, checkpoints], ranks, _users_own(config, "loggers", Logger))
    device = trainer.strategy.root_device
    precision = config["trainer"]["precision"]
    engine, reason = choose(config["engine"]["name"], algorithm, device, config["data"]["storage"], precision)
    if engine != "eager":
        require_backend(config["engine"]["backend"])
    group = f", {ranks.world} processes with parallel={ranks.mode}" if ranks.world > 1 else ""
    say(f"engine: {engine} on {device.type} ({reason}){group}")
    return Parts(datamodule, algorithm, recorder, pretraining, checkpoints, trainer, engine, evaluate.evaluator is not None)


def _users_own(config: dict[str, Any], key: str, kind: type) -> list[Any]:
    """The callbacks or loggers that were typed."""
    typed = {f"{key}.{name}": node for name, node in (config[key] or {}).items()}
    built = {place: configuration.build(node, place=place) for place, node in typed.items()}
    for place, found in built.items():
        if not isinstance(found, kind):
            raise UserError(
                f"{place} is of {type(found).__name__}; it must be of a class on Lightning's {kind.__name__} "
                f"({kind.__module__}.{kind.__name__})."
            )
    return list(built.values())


def idle_options(algorithm: OfflineAlgorithm, overrides: list[str]) -> list[str]:
    """What was typed and others make idle, in words: the algorithm's options, and where its behaviour model is from."""
    idle = [f"{item} has no effect: no behaviour model is fitted before the training" for item in overrides
            if item in ("behavior=auto", "behavior=fresh") and not algorithm.pretrain_updates]  # fmt: skip
    return idle + [
        f"{key} has no effect under {reason}"
        for option, reason in algorithm.without_effect().items()
        for key in map(configuration.dotted_key, overrides)
        if f"{key}.".startswith(f"algo.{option}.")
    ]


def make_trainer(
    config: dict[str, Any],
    folder: runs.RunFolder,
    callbacks: list[Callback],
    ranks: Ranks = ALONE,
    loggers: Sequence[Logger] = (),
) -> lightning.Trainer:
    """Lightning's trainer with our files: an epoch is an evaluation interval, and the module says when to stop.

    Raises:
        UserError: an option of the trainer is refused, or the device is not here.
    """
    options = strategy.resolve_accelerator(config["trainer"])
    if ranks.world > 1:
        options["strategy"] = strategy.RanksStrategy(ranks)
    try:
        return lightning.Trainer(
            **options,
            max_epochs=-1,
            default_root_dir=folder.path,
            logger=[RunLogger(folder.path, name="", version="", default_hp_metric=False), *loggers],
            callbacks=callbacks,
            plugins=[DigestCheckpointIO(), *strategy.cluster_plugins()],
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(
            f"The trainer's options {config['trainer']} are refused: {' '.join(str(error).split())} "
            f"Give arguments of lightning.Trainer; without a GPU, trainer=cpu."
        ) from error


def _quiet_libraries() -> None:
    """Lightning's hints speak of options that are ours to decide; errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (".*does not have many workers.*", ".*`train_dataloader`.*", ".*The `srun` command.*"):
        warnings.filterwarnings("ignore", pattern)
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")


def _evaluator(config: dict[str, Any], spec: DataSpec, seeds: int, ranks: Ranks) -> Evaluator | None:
    """What evaluates the policies of this rank's seeds; None where there is no environment."""
    options, processes = config["eval"], config["eval"]["processes"]
    evaluating = ranks.world if ranks.shares_seeds else 1
    processes = processes or useful_processes(seeds * options["episodes"], cpu_count() // (evaluating * jobs_at_a_time()))
    try:
        return make_evaluator(
            spec, seeds, episodes=options["episodes"], mode=options["mode"], eta=config["data"]["eta"], processes=processes
        )
    except environments.EnvironmentUnavailable as error:
        say(f"no rollouts: {error}; offline diagnostics remain")
        return None


def describe(datamodule: OfflineDataModule, algorithm: OfflineAlgorithm, seeds: list[int]) -> str:
    """What is about to be trained on what, in two lines."""
    spec, flat = datamodule.spec, datamodule.flat
    heldout = len(datamodule.heldout_transitions) if datamodule.heldout_transitions else 0
    own = sum(p.numel() for p in algorithm.parameters() if p.requires_grad)  # of this rank's seeds
    parameters = own // len(algorithm.seeds) * len(seeds)
    clipped = f", {flat.clipped} action entries clipped to their bounds" if flat.clipped else ""
    return (
        f"data: {spec.dataset_id} (digest {spec.digest[:12]}), {spec.transitions} transitions in {spec.episodes} episodes, "
        f"{heldout} held out, returns {spec.return_min:.0f} to {spec.return_max:.0f}, "
        f"rewards times {spec.reward_scale:.3g}, {100 * flat.boundary_share:.1f} % boundary actions{clipped}\n"
        f"algorithm: {type(algorithm).__name__}, seeds {seeds}, {parameters} parameters"
    )
