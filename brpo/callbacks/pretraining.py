"""Where the pre-trained behaviour model of a run comes from, and that the next run finds it."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from brpo import behavior
from brpo.algorithms.base import OfflineAlgorithm
from brpo.behavior import Member
from brpo.console import say
from brpo.engine.ranks import ALONE, Ranks
from brpo.errors import UserError
from brpo.files import typed_path

SOURCES = ("auto", "fresh")


class Pretraining(Callback):
    """Takes the pre-trained parts from a file, or lets them be trained and stores them.

    Its state, which is in the checkpoint, says where they came from. A resumed run has them in its checkpoint and does not
    look for any. It comes after the Recorder, which stops what has diverged, and before Checkpoints: a run that is killed
    in between pre-trains its last updates again and stores the same.

    Args:
        config: the plain configuration; its `behavior` is `auto` (the cache, else train), `fresh` (train) or a path.
        algorithm: on the CPU, joined to its ranks.
        ranks: the group: all take the parts from files, or all train them.
    """

    def __init__(self, config: dict[str, Any], algorithm: OfflineAlgorithm, ranks: Ranks = ALONE) -> None:
        self.config, self.algorithm, self.ranks = config, algorithm, ranks
        self.members: list[Member] | None = None
        self.provenance: dict[str, Any] | None = None  # None: there is no pre-trained part, or not yet
        self.begun_with: behavior.Recipe | None = None  # what the pre-training of this run began with

    def state_dict(self) -> dict[str, Any]:
        """Where the parts came from, and what their pre-training began with."""
        return {"provenance": self.provenance, "begun_with": self.begun_with}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.provenance, self.begun_with = state_dict["provenance"], state_dict.get("begun_with")

    # --- At the start of a run ----------------------------------------------------------------------------------------

    def look_up(self) -> None:
        """Read the file that the user named, or what the cache has for this rank's seeds; changes nothing.

        Raises:
            UserError: what the user named does not fit, or nothing would ever train a part.
        """
        source, algorithm = self.config["behavior"], self.algorithm
        if source not in SOURCES:
            if not algorithm.pretrained:
                raise UserError(
                    f"behavior={source} is not possible: {type(algorithm).__name__} has no behaviour model that could be "
                    f"taken from there. Leave it out."
                )
            self.members = behavior.read_chosen(typed_path("behavior", source), self.config, algorithm)
        elif source == "auto" and algorithm.pretrain_updates:
            self.members = self._cached()
        untrained = [part for part in algorithm.pretrained if part not in algorithm.trained]
        if untrained and self.members is None and not algorithm.pretrain_updates:
            raise UserError(
                f"algo.pretrain_updates=0 leaves {', '.join(untrained)} at its random weights, and nothing else trains it. "
                f"Give a number of updates, or a trained one with behavior=PATH."
            )

    def _cached(self) -> list[Member] | None:
        found = [self._read(made_of) for made_of in self._recipes()]
        members = [member for member in found if member is not None]
        if 0 < len(members) < len(found):
            some = f"the cache has {len(members)} of {len(found)} seeds"
            say(f"behaviour model: {some}; all are trained, as they share one stack")
        return members if len(members) == len(found) else None

    def _read(self, made_of: behavior.Recipe) -> Member | None:
        path = behavior.cached_file(made_of, self.algorithm.spec.dataset_id)
        if not path.exists():
            return None
        try:
            return behavior.read_cached(path, made_of, self.algorithm)
        except UserError as error:
            say(f"{error} It is not used.")
            return None

    def _recipes(self) -> list[behavior.Recipe]:
        return [behavior.recipe(self.config, self.algorithm, seed) for seed in self.algorithm.seeds.tolist()]

    def _conditions(self) -> behavior.Recipe:
        """What the recipes of all seeds have in common."""
        return behavior.recipe(self.config, self.algorithm, seed=-1)

    def begin(self) -> None:
        """At the start of a run: put what was found in place, or begin with the pre-training. Every rank must call it."""
        members, algorithm = self.members, self.algorithm
        if self.ranks.averages:  # the same weights everywhere
            members = self.ranks.exchange(members)[0]
        if not self.ranks.any(members is None):
            assert members is not None
            behavior.install(algorithm, members)
            algorithm.after_pretraining()
            self._remember(members)
            say(f"behaviour model: taken from {', '.join(sorted({str(m.source) for m in members}))}")
        elif algorithm.pretrain_updates:
            say(f"behaviour model: trained for {algorithm.pretrain_updates} updates first")
            algorithm.begin_pretraining()
            self.begun_with = self._conditions()

    # --- At the end of the pre-training -------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last update of the pre-training, store its result."""
        if batch[0] >= 0 or pl_module.pretraining:
            return
        members = behavior.members_of(pl_module)
        self._remember(members)
        if self.ranks.evaluates:  # whoever has members of its own
            self._store(members)

    def _store(self, members: list[Member]) -> None:
        """Into the cache; with `auto`, a good file of the same recipe stays: others may have taken it."""
        spec = self.algorithm.spec
        if self.begun_with not in (None, self._conditions()):
            say("note: the behaviour model is not stored: its pre-training was resumed with other options")
            return
        for member, made_of in zip(members, self._recipes(), strict=True):
            path = behavior.cached_file(made_of, spec.dataset_id)
            try:
                if self.config["behavior"] == "fresh" or not behavior.has(path, made_of, self.algorithm):
                    behavior.write(path, member, made_of, spec)
            except OSError as error:
                say(f"note: the behaviour model cannot be stored in {path} ({error.strerror}); training goes on")

    def _remember(self, members: list[Member]) -> None:
        """Files (null where this run has trained the member) and digests, in the order of all seeds."""
        own = {"files": [member.source for member in members], "digests": [member.digest() for member in members]}
        parts = self.ranks.exchange(own) if self.ranks.shares_seeds else [own]
        self.provenance = {key: [value for part in parts for value in part[key]] for key in own}
