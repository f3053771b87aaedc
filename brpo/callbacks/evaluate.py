"""Evaluates at the end of every epoch (an epoch is an evaluation interval) and at the end of training."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from brpo.callbacks.recorder import Recorder
from brpo.callbacks.signals import Signals
from brpo.engine.ranks import ALONE, Ranks
from brpo.errors import Interrupted
from brpo.evaluation.kinds import Evaluator, Summary
from brpo.types import Batch

BOUNDARY = 0.01  # an action this near to a bound of [-1, 1] counts: a tanh comes near to it and never arrives
BOUNDARY_SHARE = "actor/boundary_share"


class Evaluate(Callback):
    """Rollouts or samples of all seeds, and distributions on the held-out batch.

    Its state says which update was evaluated last: a run that was killed between a checkpoint and its evaluation
    evaluates first when it is resumed.

    Args:
        evaluator: evaluates this rank's members; None where there is none, then only the offline diagnostics are taken.
        recorder: takes the numbers.
        signals: an interrupted evaluation is given up.
        ranks: the group: in `seeds` each rank evaluates its own, in `data` rank 0 does it for all.
        seeds: names of this rank's members.
        every: updates between evaluations.
        batch: the fixed held-out batch.
    """

    def __init__(
        self,
        evaluator: Evaluator | None,
        recorder: Recorder,
        signals: Signals,
        ranks: Ranks = ALONE,
        *,
        seeds: list[int],
        every: int,
        batch: Batch,
    ) -> None:
        self.evaluator, self.recorder, self.signals, self.ranks = evaluator, recorder, signals, ranks
        self.seeds, self.every, self.batch = seeds, every, batch
        self.evaluated = 0

    def state_dict(self) -> dict[str, Any]:
        """The update that was evaluated last."""
        return {"evaluated": self.evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.evaluated = state_dict["evaluated"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Make up for an evaluation that a killed run did not come to."""
        update = pl_module.update_count
        if pl_module.pretraining and self.evaluated == 0:
            self.evaluated = -pl_module.pretrain_updates
        if update % self.every == 0 and (update or self.evaluated < 0):
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Evaluate once for each update; in the pre-training, what it fits alone. Not where the training was cut short."""
        if trainer.should_stop and pl_module.update_count < pl_module.max_updates:
            return
        self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: lightning.Trainer, algorithm: Any) -> None:
        update = algorithm.update_count
        if update <= self.evaluated and not self.recorder.misses(update):
            return
        if update <= 0:
            found = self._on_heldout(lambda algorithm, batch: algorithm.diagnose_pretrained(batch), algorithm)
            self.recorder.add_distributions(trainer, found, update + algorithm.pretrain_updates, "pretrain/")
            self.evaluated = update
            return
        shares = self.ranks.exchange(self._summaries(algorithm, update))
        if None in shares:
            return  # a rank gave up; `evaluated` stays behind, so that the resumed run evaluates first
        summaries = [summary for share in shares if share for summary in share]
        if summaries:
            self.recorder.add_evaluation(trainer, summaries)
            self.recorder.add_pictures(trainer, self.evaluator.pictures() if self.evaluator else {}, update)
        self.recorder.add_distributions(trainer, self._on_heldout(distributions, algorithm), update)
        self.evaluated = update

    def _summaries(self, algorithm: Any, update: int) -> Sequence[Summary] | None:
        """Of this rank's seeds; None if it was interrupted."""
        if self.evaluator is None:
            return []
        try:
            return self.evaluator.evaluate(algorithm, self.seeds, update, self._stop)
        except Interrupted:
            return None

    def _on_heldout(self, quantities: Callable[[Any, Batch], dict[str, Tensor]], algorithm: Any) -> dict[str, Tensor]:
        """Quantities (seeds, n) on the held-out batch, of all ranks' seeds."""
        batch = Batch(*(getattr(self.batch, name).to(algorithm.device) for name in Batch.__slots__))
        with torch.no_grad():
            own = {name: value.detach().float().cpu() for name, value in quantities(algorithm, batch).items()}
        algorithm.discard_records()  # what `diagnose` recorded belongs to no update
        if not self.ranks.shares_seeds:
            return own
        parts = self.ranks.exchange(own)
        return {name: torch.cat([part[name] for part in parts]) for name in own}

    def _stop(self) -> bool:
        return self.signals.received is not None

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Close the evaluator."""
        self.close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """As `teardown`, which Lightning leaves out then."""
        self.close()

    def close(self) -> None:
        """Close the evaluator."""
        if self.evaluator is not None:
            self.evaluator.close()


def distributions(algorithm: Any, batch: Batch) -> dict[str, Tensor]:
    """What `diagnose` gives, and how near the policy's actions are to their bounds."""
    return {**algorithm.diagnose(batch), BOUNDARY_SHARE: boundary_share(algorithm, batch)}


def boundary_share(algorithm: Any, batch: Batch) -> Tensor:
    """Share of the entries of the policy's mode at each observation that lie at a bound, (seeds, n)."""
    observations = batch.observations * algorithm.observation_std + algorithm.observation_mean
    actions = algorithm.from_environment(algorithm.act(observations))
    return (actions.abs() > 1.0 - BOUNDARY).float().mean(-1)
