"""One evaluation: rollouts of an algorithm, summarized for each seed."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from brpo.errors import Interrupted
from brpo.evaluation import scores
from brpo.evaluation.kinds import MODES
from brpo.evaluation.rollout import Act, Episodes, Rollouts
from brpo.options import require_one_of
from brpo.types import DataSpec

DISCOUNT = 0.99  # of methods without a critic, beside those that have one


@dataclass(frozen=True)
class RolloutSummary:
    """What one evaluation says about one seed. Returns are undiscounted sums of the environment's rewards."""

    seed: int
    update: int
    return_mean: float
    score: float | None  # D4RL-normalized mean return
    return_std: float  # over the episodes, of the population
    return_worst: float  # the smallest
    return_cvar: float  # mean of the worst tenth of the episodes, one at least
    return_discounted: float  # mean, at the discount of the algorithm (`DISCOUNT` where it has none)
    length: float  # mean number of steps
    value_gap: float | None  # critic's value at the start less the discounted return, in scaled rewards: `_value_gaps`

    def numbers(self) -> dict[str, float | None]:
        """All but seed and update."""
        return {name: value for name, value in asdict(self).items() if name not in ("seed", "update")}


class RolloutEvaluator:
    """Rolls policies out in environments.

    Args:
        rollouts: the environments.
        mode: `mean` (the policy's mode) or `sampled`.

    Raises:
        ValueError: no such mode.
    """

    def __init__(self, rollouts: Rollouts, mode: str) -> None:
        require_one_of(MODES, mode=mode)
        self.rollouts, self.mode = rollouts, mode

    def evaluate(
        self, algorithm: Any, seeds: list[int], update: int, stop: Callable[[], bool] = lambda: False
    ) -> list[RolloutSummary]:
        """Roll the policy of every seed out and summarize.

        Args:
            algorithm: has `act`, `value_estimate`, `spec`, `discount` and `device`.
            seeds: names of the members.
            update: number of updates made, for the record.
            stop: asked at every step whether to give up.

        Raises:
            Interrupted: `stop` said so.
        """
        spec: DataSpec = algorithm.spec

        def act(observations: np.ndarray, step: int) -> np.ndarray:
            if stop():
                raise Interrupted("evaluation given up")
            tensor = torch.as_tensor(observations, dtype=torch.float32, device=algorithm.device)
            return algorithm.act(tensor, deterministic=self.mode == "mean", step=step).cpu().numpy()

        episodes = self.rollouts.run(act, discount=algorithm.discount if algorithm.discount < 1 else DISCOUNT)
        gaps = _value_gaps(algorithm, episodes, act)
        score = scores.normalized(episodes.returns.mean(-1), spec.reference_min, spec.reference_max)
        return [
            RolloutSummary(
                seed=seed,
                update=update,
                return_mean=float(episodes.returns[k].mean()),
                score=None if score is None else float(score[k]),
                return_std=float(episodes.returns[k].std()),
                return_worst=float(episodes.returns[k].min()),
                return_cvar=float(scores.cvar(episodes.returns[k])),
                return_discounted=float(episodes.discounted[k].mean()),
                length=float(episodes.lengths[k].mean()),
                value_gap=None if gaps is None else float(gaps[k]),
            )
            for k, seed in enumerate(seeds)
        ]

    def pictures(self) -> dict[str, bytes]:
        """None."""
        return {}

    def close(self) -> None:
        """Close the environments."""
        self.rollouts.close()


def _value_gaps(algorithm: Any, episodes: Episodes, act: Act) -> np.ndarray | None:
    """Mean over episodes of `Q(s_0, pi(s_0)) - discounted return`, (seeds,): over-estimation is positive.

    What would follow an episode that was cut off is no part of its return, but of Q: it counts as Q has it there.
    """

    def estimate(observations: np.ndarray, step: int) -> np.ndarray | None:
        states, actions = (
            torch.as_tensor(each, dtype=torch.float32, device=algorithm.device)
            for each in (observations, act(observations, step))
        )
        found = algorithm.value_estimate(states, algorithm.from_environment(actions))
        return None if found is None else found.cpu().numpy()

    start, end = estimate(episodes.first_observations, 0), estimate(episodes.last_observations, -1)
    if start is None or end is None:
        return None
    spec: DataSpec = algorithm.spec
    achieved = spec.reward_scale * episodes.discounted + spec.reward_shift * episodes.discounts  # in the critic's units
    return (start - achieved - episodes.following * end).mean(-1)
