"""What every algorithm shares: seeds, optimizers, one gradient step per part, records, and acting in environment units."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor, nn

from brpo.engine import records
from brpo.engine.optimizers import FusedAdamStep, check_optimizers
from brpo.engine.ranks import ALONE, Ranks
from brpo.errors import UserError
from brpo.functional import gradients, streams, units
from brpo.functional.schedules import SCHEDULES
from brpo.modules.mlp import draw_others, initialize
from brpo.options import (
    classes_above,
    in_words,
    known_options,
    options_of,
    require,
    require_cap,
    require_number,
    require_one_of,
    require_part,
    require_positive,
    require_whole,
)
from brpo.types import Batch, DataSpec

BEHAVIOR_TRAININGS = ("joint", "fixed")  # whether a pre-trained behaviour model moves in the training


class Runner(Protocol):
    """Makes the updates of a chunk; the engines differ in how."""

    def run(self, algorithm: "OfflineAlgorithm", start: int, stop: int) -> None:
        """Make the updates [start, stop)."""
        ...


class OfflineAlgorithm(lightning.LightningModule):
    """Trains its parts from batches of transitions, for all seeds at once.

    A subclass names its trained parts, builds them with `build`, and writes `update` as the paper's pseudocode.

    One that fits a model of the data first also names its `pretrained` parts and writes `pretrain`. Updates are counted
    from `-pretrain_updates` on: those before 0 are `pretrain`'s, so no random number of theirs returns in training.

    Args:
        spec: what is known about the data.
        seeds: one member of every part for each.
        max_updates: length of the training, which schedules refer to.
        optimizer: called with a part's parameters.
        schedule: learning-rate schedule of each part that has one: `constant` or `cosine` (to zero at max_updates).
        gradient_clip: largest gradient norm of a part, for each seed on its own; None does not clip.
        discount: in [0, 1). None where there is no critic.
        polyak: in (0, 1], the step of target networks towards their sources. None where there are none.
        pretrain_updates: length of the pre-training, to which schedules refer in it.
        learning_rates: step size of each part whose own differs from the optimizer's.

    Attributes:
        trained: the parts that `update` takes gradient steps of.
        pretrained: those that `pretrain` takes gradient steps of.
        pretrained_also: modules that `pretrain` moves without gradient steps, such as averages of the parts.
        pretrain_options: options of the algorithm that `pretrain` reads, beside the parts' own and those of this class:
            a model in the cache is taken where they are the same (brpo/behavior.py).
        pretrained_by: those among them that say what the parts are, where no option has a part's name: a model that the
            user names must have the same.
        own_policy: whether its policy is of a kind of its own, which actor= cannot replace.
        pretrained_as: what algorithms that fit the model alone call these modules: such a run can be named too.

    Raises:
        ValueError: an option is out of range; says which, what came and what is allowed.
    """

    trained: tuple[str, ...] = ()
    pretrained: tuple[str, ...] = ()
    pretrained_also: tuple[str, ...] = ()
    pretrain_options: tuple[str, ...] = ()
    pretrained_by: tuple[str, ...] = ()
    pretrained_as: Mapping[str, str] = MappingProxyType({})
    own_policy: bool = False
    actor: Any
    seeds: Tensor
    stream_seeds: Tensor
    updates: Tensor
    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        seeds: Sequence[int],
        max_updates: int,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: dict[str, str],
        gradient_clip: float | None,
        discount: float | None = None,
        polyak: float | None = None,
        pretrain_updates: int = 0,
        learning_rates: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        require("seeds", seeds, "different whole numbers >= 0, at least one", _are_seeds)
        require_whole(1, max_updates=max_updates)
        if "critic" in self.trained:
            require_number("discount", discount, "in [0, 1)", lambda v: 0 <= v < 1)
            require_number("polyak", polyak, "in (0, 1]", lambda v: 0 < v <= 1)
        if gradient_clip is not None:
            require_cap("positive or null", gradient_clip=gradient_clip)
        require("schedule", schedule, "a mapping of parts to schedules", lambda v: isinstance(v, dict))
        parts = (*self.trained, *(part for part in self.pretrained if part not in self.trained))
        allowed = f"a mapping from {', '.join(parts)}"
        for part, name in schedule.items():
            require(f"schedule.{part}", name, f"left out: schedule is {allowed}", lambda v, part=part: part in parts)
            require_one_of(SCHEDULES, **{f"schedule.{part}": name})
        length = "a whole number of at least 0" if self.pretrained else "0: nothing is pre-trained here"
        require("pretrain_updates", pretrain_updates, length,
                lambda v: type(v) is int and v >= 0 and (v == 0 or self.pretrained != ()))  # fmt: skip
        self.learning_rates = learning_rates if learning_rates is not None else {}
        require("learning_rates", self.learning_rates, allowed, lambda v: isinstance(v, dict))
        for part, rate in self.learning_rates.items():
            place = f"learning_rates.{part}"
            require(place, rate, f"left out: learning_rates must be {allowed}", lambda v, part=part: part in parts)
            require_positive(**{place: rate})
        self.spec, self.max_updates, self.pretrain_updates = spec, max_updates, pretrain_updates
        self.discount = discount if discount is not None else 1.0
        self.polyak = polyak if polyak is not None else 1.0
        self.gradient_clip = gradient_clip
        self.optimizer_factory = optimizer
        self.schedules = {name: SCHEDULES[schedule.get(name, "constant")] for name in parts}
        self.update_count = 0  # the buffer `updates` as a Python number: branching on it moves nothing off the device
        self.runner: Runner | None = None
        self.ranks = ALONE
        self.asked: set[tuple[int, int]] = set()  # (every, after) of each `due`
        # An engine that repeats what it has seen sets these two: nothing in an update may then come from the Python count.
        self.rates: dict[str, Tensor] | None = None  # learning rate of each part, (1,), on the device
        self.due_now: dict[tuple[int, int], bool] | None = None
        self.stored: dict[str, Any] = {}  # plain containers that checkpoints carry (the config)
        self.latest: dict[str, Tensor] = {}  # what the present update recorded
        self.history: records.History = []  # what the updates of the chunk recorded
        self._parameters_of: dict[str, list[nn.Parameter]] = {}
        self.optimizers_by_part: dict[str, torch.optim.Optimizer] = {}
        self._quick_steps: dict[str, FusedAdamStep] = {}
        self._base_rate: dict[str, float] = {}
        self._register(spec, seeds)

    def _register(self, spec: DataSpec, seeds: Sequence[int]) -> None:
        self.register_buffer("seeds", torch.tensor(list(seeds), dtype=torch.int64))
        self.register_buffer("stream_seeds", self.seeds, persistent=False)  # the seeds, unless ranks have own streams
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        for name in ("observation_mean", "observation_std", "action_low", "action_high"):
            self.register_buffer(name, torch.tensor(getattr(spec, name), dtype=torch.float32))

    def join(self, ranks: Ranks) -> None:
        """Train as one of several ranks. Where they average gradients, each draws numbers of its own."""
        self.ranks = ranks
        check_optimizers(self.optimizers_by_part.values(), self.holds_several_seeds)
        if ranks.averages and ranks.rank > 0:  # rank 0 draws what a single process draws
            self.stream_seeds = streams.key(self.seeds, streams.purpose("rank"), ranks.rank)

    def keep_behavior(self, behavior_training: str) -> None:
        """Leave the behaviour model out of what is trained where it is to stay as it was pre-trained (`fixed`).

        Raises:
            UserError: the option is neither `joint` nor `fixed`.
        """
        require_one_of(BEHAVIOR_TRAININGS, behavior_training=behavior_training)
        if behavior_training == "fixed":
            self.trained = tuple(part for part in self.trained if part != "behavior")

    def build(self, name: str, factory: Callable[..., nn.Module]) -> Any:
        """Build a part with a member for each seed, and draw its weights from the stream of each seed."""
        require_part(**{name: factory})
        kind: Any = factory
        while isinstance(kind, functools.partial):
            kind = kind.func
        if name == "actor" and self.own_policy and hasattr(kind, "log_prob"):  # as the kinds of actor= have
            own = type(self).__module__.rpartition(".")[2]
            raise UserError(
                f"{own} has a policy of its own, which {kind.__name__} cannot replace: leave actor= out "
                f"(docs/configuration.md has the algorithms that it is for)."
            )
        try:
            with options_of(name):
                part = factory(self.spec, len(self.seeds))
        except TypeError as error:
            if in_words(error) == str(error):
                raise  # not of the options
            words = in_words(error)
            known = f" {known_options(classes_above(kind))}" if words.startswith(f"{kind.__name__} ") else ""
            if name in ("actor", "behavior") and known:  # whose kind can be chosen, and the options of the first one stay
                known += _way_out(name, words)
            raise UserError(f"The {name} of {type(self).__name__} cannot be built: {words}.{known}") from error
        initialize(part, self.seeds, name)
        draw_others(part, lambda: factory(self.spec, 1), self.seeds, name)
        return part

    # --- What a subclass writes ---------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> None:
        """One update of every part that is due."""
        raise UserError(f"{type(self).__name__} lacks update(self, batch): brpo/algorithms/bc.py is the shortest example.")

    def pretrain(self, batch: Batch) -> None:
        """One update of the `pretrained` parts, before the training. It is to read nothing of the rewards."""
        raise UserError(f"{type(self).__name__} lacks pretrain(self, batch), which pretrain_updates asks for.")

    def after_pretraining(self) -> None:
        """Once, when the pre-trained parts are there, trained or taken from a file: what starts from them, in place."""

    @torch.no_grad()
    def value_estimate(self, observations: Tensor, actions: Tensor) -> Tensor | None:
        """The smallest critic's Q (seeds, n) of environment-unit observations and [-1, 1] actions, in scaled rewards.

        None where there is no part `critic`.
        """
        critic: Any = getattr(self, "critic", None)
        if critic is None:
            return None
        return critic(self.normalize(self._checked(observations)), actions).amin(1)

    @property
    def bootstraps(self) -> bool:
        """Whether anything that follows an action counts: else targets of Q are the rewards, and need no next action."""
        return self.discount > 0 and not self.spec.one_step

    def generation_paths(self, observations: Tensor) -> tuple[Tensor, Tensor] | None:
        """Ways of sampled actions out of noise, for pictures: points (seeds, steps + 1, n, action) and abar (steps + 1,).

        Of observations (seeds, n, observation) in environment units. From noise to the action, all in [-1, 1] units; abar
        is the share of the data's variance in each, 1 at the action. None for a policy that does not act step by step.
        """
        return None

    def generation_value(self, observations: Tensor, points: Tensor, position: int) -> Tensor | None:
        """What generation is worth from `points` (seeds, n, action) at a position along `generation_paths`, (seeds, n).

        For observations as there. Position 0 is the noise, the last one the action. None where it is not learned.
        """
        return None

    def constants(self) -> dict[str, float]:
        """Numbers that the options imply, logged once."""
        return {}

    def notices(self) -> list[str]:
        """What a user should know about the options, said once at the start."""
        return []

    def without_effect(self) -> dict[str, str]:
        """Options that others make idle, to those others: `{"policy_order": "algo.omega=exp"}`; said where one is typed."""
        return {}

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Quantities (seeds, n) on a fixed held-out batch, whose distribution the evaluation logs."""
        return {}

    def diagnose_pretrained(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the `pretrained` parts, which the pre-training logs at its evaluations."""
        return {}

    # --- What it uses -------------------------------------------------------------------------------------------------

    def descend(self, name: str, loss: Tensor) -> None:
        """One gradient step of a part: backward, mean over the ranks, clipping, learning rate, optimizer.

        `loss` is (seeds,). The sum over seeds gives each member the gradient of its own loss.

        Raises:
            UserError: the part has no optimizer, or the loss is no number for each seed.
        """
        if name not in self.optimizers_by_part:
            known = ", ".join(self.optimizers_by_part) or "none, before configure_optimizers()"
            raise UserError(f"{type(self).__name__} has no optimizer for {name!r}; `trained` names the parts: {known}.")
        if loss.shape != self.seeds.shape:
            raise UserError(
                f"The loss of {name} is {tuple(loss.shape)}; it must be a number for each seed, {self._seeds()}."
            )
        parameters = self._parameters_of[name]
        # A parameter that the loss does not use (the spread, where only the mean is fitted) gets a zero gradient.
        with torch.autocast(loss.device.type, enabled=False):  # backward in the types of the forward pass
            grads: Sequence[Tensor] = torch.autograd.grad(loss.sum(), parameters, allow_unused=True, materialize_grads=True)
        grads = [gradient.contiguous() for gradient in grads]  # fused kernels go through memory whatever the strides say
        if self.ranks.averages:
            grads = self.ranks.average(grads)
        norms = gradients.norm_per_seed(grads)
        if self.gradient_clip is not None:
            grads = gradients.clip_per_seed(grads, norms, self.gradient_clip)
        rate = self.rates[name].squeeze(0) if self.rates is not None else self.rate(name, self.update_count)
        self._step_optimizer(name, grads, rate)
        self.record(f"loss/{name}", loss)
        self.record(f"gradient_norm/{name}", norms)

    def _step_optimizer(self, name: str, grads: Sequence[Tensor], rate: float | Tensor) -> None:
        quick = self._quick_steps.get(name)
        if quick is not None and (torch.compiler.is_compiling() or not quick.stale()):
            quick(grads, rate)
            return
        optimizer = self.optimizers_by_part[name]
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(self._parameters_of[name], grads, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
        for other in self.active:  # also of parts that are due later: an engine waits until it knows all of the phase
            FusedAdamStep.begin(self.optimizers_by_part[other])
        self.known_optimizers()

    def known_optimizers(self) -> bool:
        """Take the short way to each optimizer of the phase that has one, and say whether all do."""
        for name in self.active:
            quick, optimizer = self._quick_steps.get(name), self.optimizers_by_part[name]
            if (quick is None or quick.stale()) and FusedAdamStep.possible(optimizer):
                self._quick_steps[name] = FusedAdamStep(optimizer)
        return all(name in self._quick_steps for name in self.active)

    def rate(self, name: str, update: int) -> float:
        """Learning rate of a part: a function of the update alone, so there is nothing that a resumed run could miss."""
        length = self.pretrain_updates if update < 0 else self.max_updates
        return self._base_rate[name] * self.schedules[name](self.in_phase(update) / length)

    def record(self, name: str, value: Tensor) -> None:
        """Keep a number for each seed (seeds,), the last one of an update; its mean over the chunk is logged."""
        if value.shape != self.seeds.shape:
            raise UserError(
                f"{name} is {tuple(value.shape)}; what is recorded must be a number for each seed, {self._seeds()}."
            )
        self.latest[name] = value.detach()

    def _seeds(self) -> str:
        return f"({len(self.seeds)},)"

    def due(self, every: int, after: int = 0) -> bool:
        """Whether a part that runs every `every` updates from update `after` on runs in this one.

        An engine that captures updates asks beforehand what will be due: let nothing else in `update` depend on the count.
        """
        if self.due_now is not None:
            return self.due_now[every, after]
        self.asked.add((every, after))
        return is_due(self.in_phase(self.update_count), every, after)

    def what_is_due(self, update: int) -> dict[tuple[int, int], bool]:
        """The answers of `due` in an update, to all that has been asked so far."""
        return {asked: is_due(self.in_phase(update), *asked) for asked in sorted(self.asked)}

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard normal noise of the shape and type of `like` (seeds, ...): a function of seed, update and name."""
        keys = streams.key(self.stream_seeds, streams.purpose(name), self.updates)
        return streams.normal(keys, tuple(like.shape[1:]), like.dtype)

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1] of the shape and type of `like` (seeds, ...): a function of seed, update and name."""
        keys = streams.key(self.stream_seeds, streams.purpose(name), self.updates)
        return streams.uniform(keys, tuple(like.shape[1:]), like.dtype)

    def sample(self, observations: Tensor, name: str) -> Tensor:
        """An action of the policy for each observation (seeds, n, ...), (seeds, n, action); `name` names the noise."""
        like = observations.new_empty(*observations.shape[:-1], self.actor.noise_dim)
        return self.actor.sample(observations, self.normal(name, like))

    def integers(self, name: str, count: int, high: int) -> Tensor:
        """Uniform whole numbers in [0, high), (seeds, count) int64: a function of seed, update and name."""
        keys = streams.key(self.stream_seeds, streams.purpose(name), self.updates)
        return streams.integers(keys, count, high)

    # --- Acting, in environment units ---------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool = True, step: int = 0) -> Tensor:
        """Actions (seeds, n, action) for observations (seeds, n, observation), both in environment units.

        Args:
            observations: floating numbers on the module's device.
            deterministic: the policy's mode; else a sample, from a stream of its own keyed by seed and `step`.
            step: number of the environment step, which names the random numbers of a sampled action.

        Raises:
            UserError: the observations have another shape.
        """
        observations = self._checked(observations)
        keys = streams.key(self.seeds, streams.purpose("act"), step)
        return self.to_environment(self.choose(self.normalize(observations), deterministic, keys))

    def choose(self, observations: Tensor, deterministic: bool, keys: Tensor) -> Tensor:
        """`act` in the networks' units: (seeds, n, action) in [-1, 1] for normalized observations (seeds, n, observation).

        `keys` (seeds,) name the random numbers of this step.
        """
        if deterministic:
            return self.policy.mode(observations)
        noise = streams.normal(keys, (observations.shape[1], self.policy.noise_dim), observations.dtype)
        return self.policy.sample(observations, noise)

    @property
    def policy(self) -> Any:
        """The network that acts."""
        if "actor" not in self._modules:  # an AttributeError here would name this property instead
            raise UserError(f"{type(self).__name__} has no part called actor: override `policy` to say what acts.")
        return self.actor

    def _checked(self, observations: Tensor) -> Tensor:
        """Observations in the type of the networks' units; refuses those that are not (seeds, n, observation)."""
        came = tuple(observations.shape) if isinstance(observations, Tensor) else type(observations).__name__
        seeds, size = len(self.seeds), self.spec.observation_dim
        if isinstance(came, str) or len(came) != 3 or (came[0], came[2]) != (seeds, size):
            raise UserError(
                f"Observations must be a tensor of {seeds} seeds, any number, and {size} values of an observation, "
                f"({seeds}, n, {size}); got {came}. The same for each seed: observations.expand({seeds}, -1, -1)."
            )
        return observations.to(self.observation_mean.dtype)

    def normalize(self, observations: Tensor) -> Tensor:
        """Observations in the networks' units."""
        return (observations - self.observation_mean) / self.observation_std

    def to_environment(self, actions: Tensor) -> Tensor:
        """Actions from [-1, 1] to environment units."""
        return units.to_bounds(actions, self.action_low, self.action_high)

    def from_environment(self, actions: Tensor) -> Tensor:
        """Actions from environment units to [-1, 1]."""
        return 2.0 * (actions - self.action_low) / (self.action_high - self.action_low) - 1.0

    # --- Before the training ------------------------------------------------------------------------------------------

    @property
    def pretraining(self) -> bool:
        """Whether the next update is `pretrain`'s."""
        return self.update_count < 0

    @property
    def active(self) -> tuple[str, ...]:
        """The parts that the present phase takes gradient steps of."""
        return self.pretrained if self.pretraining else self.trained

    def in_phase(self, update: int) -> int:
        """An update's number from the beginning of its phase."""
        return update + self.pretrain_updates if update < 0 else update

    def moment(self, update: int) -> str:
        """An update in words."""
        return f"{'pre-training ' if update < 0 else ''}update {self.in_phase(update)}"

    def begin_pretraining(self) -> None:
        """Make the pre-training first."""
        self.update_count = -self.pretrain_updates
        self.updates.fill_(self.update_count)

    def end_pretraining(self) -> None:
        """Leave the weights alone behind, as a model from the cache does: what follows is the same after either."""
        for optimizer in self.optimizers_by_part.values():
            optimizer.state.clear()
        self._quick_steps, self.asked = {}, set()
        self.after_pretraining()

    # --- Training, one chunk a step -----------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimizer for each part that is trained in some phase, in the order of `trained`."""
        self._parameters_of = {name: list(getattr(self, name).parameters()) for name in self.schedules}
        rates = {name: {"lr": rate} for name, rate in self.learning_rates.items()}
        self.optimizers_by_part = {n: self.optimizer_factory(p, **rates.get(n, {})) for n, p in self._parameters_of.items()}
        self._quick_steps = {}
        check_optimizers(self.optimizers_by_part.values(), self.holds_several_seeds)
        self._base_rate = {name: float(o.param_groups[0]["lr"]) for name, o in self.optimizers_by_part.items()}
        return list(self.optimizers_by_part.values())

    @property
    def holds_several_seeds(self) -> bool:
        """Whether its tensors, or those of its checkpoints, hold several seeds."""
        return len(self.seeds) > 1 or self.ranks.shares_seeds

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Make the updates of a chunk; none reaches over the end of the pre-training."""
        assert self.runner is not None, "the runner is set before fit"
        pretraining = self.pretraining
        self.runner.run(self, *batch)
        if pretraining and not self.pretraining:
            self.end_pretraining()

    def step(self, batch: Batch) -> None:
        """One update, counted on the device and beside it."""
        self.latest = {}
        if self.pretraining:
            self.pretrain(batch)
        else:
            self.update(batch)
        self.history.append((self.update_count, self.latest))
        self.updates += 1
        self.update_count += 1

    def take_records(self) -> dict[str, list[float]]:
        """Means since the last call, for each name a number per seed; the one transfer off the device.

        Raises:
            TrainingDiverged: a loss or gradient norm is NaN or infinite; names the part, the seed and the update.
        """
        history, self.history = self.history, []
        return records.means(history, self.seeds, self.moment)

    def discard_records(self) -> None:
        """Forget what was recorded since the last call of `take_records`."""
        self.latest, self.history = {}, []

    def on_train_epoch_end(self) -> None:
        """An epoch is one evaluation interval; after the last one, stop."""
        if self.update_count >= self.max_updates:
            self.trainer.should_stop = True

    # --- Checkpoints hold tensors and plain containers only -----------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a checkpoint needs to stand alone. The loops' state goes: `updates` says where to continue.

        So does that of trainer.max_time: a run that goes on has that time again.
        """
        checkpoint.pop("loops", None)
        checkpoint.get("callbacks", {}).pop("Timer", None)
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:  # what an engine set; the rate is computed anew at each update
                group["lr"] = float(group["lr"])
                if "capturable" in group:
                    group["capturable"] = False
        checkpoint["brpo"] = {
            **self.stored,
            "spec": self.spec.to_dict(),
            "updates": self.update_count,
            "pretrained": self.pretrain_updates + min(self.update_count, 0),
            "asked": [list(asked) for asked in sorted(self.asked)],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the counter, and what `due` will be asked."""
        self.update_count = int(checkpoint["brpo"]["updates"])
        self.asked = {(every, after) for every, after in checkpoint["brpo"].get("asked", [])}


def _way_out(part: str, words: str) -> str:
    """What to type where the options of a policy's kind are not those of the kind that the algorithm's file names."""
    names = re.findall(r"'(\w+)'", words)
    if " has no option " in words:
        typed = "actor=" if part == "actor" else f"actor@algo.{part}="
        return f" With {typed} typed, ~algo.{part}.{names[0]} leaves out an option of the algorithm's own {part}."
    given = " ".join(f"+algo.{part}.{name}=..." for name in names)
    return f" Give what is missing, {given}, and no ~ that takes it away." if names else ""


def _are_seeds(seeds: Sequence[int]) -> bool:
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    return whole and len(set(seeds)) == len(seeds) > 0


def is_due(update: int, every: int, after: int) -> bool:
    """Whether an update is the one of every `every` from `after` on."""
    return update >= after and update % every == 0
