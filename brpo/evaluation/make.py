"""The evaluator that suits a data set."""

from dataclasses import fields

import numpy as np

from brpo.datasets import toy
from brpo.datasets.ids import is_toy
from brpo.evaluation import environments
from brpo.evaluation.evaluate import RolloutEvaluator, RolloutSummary
from brpo.evaluation.kinds import Evaluator
from brpo.evaluation.rollout import FIRST_SEED, Rollouts
from brpo.evaluation.toy import ToyEvaluator, ToySummary
from brpo.types import DataSpec


def make_evaluator(
    spec: DataSpec,
    seeds: int,
    *,
    episodes: int,
    mode: str,
    eta: float,
    processes: int = 1,
    first_seed: int = FIRST_SEED,
) -> Evaluator:
    """Rollouts in the environment that the data set names; samples on a toy task.

    Args:
        spec: what is known about the data.
        seeds: number of policies.
        episodes: of each policy; on a toy task, where an episode is one step, the number of samples.
        mode: `mean` or `sampled`, of rollouts.
        eta: temperature of a toy task's target.
        processes: that the environments are shared out to.
        first_seed: of the environments; episode k starts from `first_seed + k`. Toy tasks have no episodes.

    Raises:
        EnvironmentUnavailable: the environment cannot be made here.
    """
    if is_toy(spec.dataset_id):
        return ToyEvaluator(spec.dataset_id, episodes, eta)
    make = environments.maker(spec.environment, sizes=(spec.observation_dim, spec.action_dim))
    return RolloutEvaluator(Rollouts(make, seeds, episodes, first_seed, processes), mode)


def columns(dataset_id: str) -> list[str]:
    """Names of the numbers that an evaluation on a data set has for each seed."""
    if not is_toy(dataset_id):
        return [field.name for field in fields(RolloutSummary) if field.name not in ("seed", "update")]
    shares = toy.mode_shares(dataset_id, np.zeros((1, 2), np.float32))
    modes = () if shares is None else tuple(shares.tolist())
    return list(ToySummary(0, 0, 0.0, 0.0, 0.0, 0.0, None, 0.0, None, modes).numbers())
