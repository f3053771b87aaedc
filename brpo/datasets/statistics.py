"""A data set in a few lines, for people."""

import numpy as np

from brpo.datasets import transforms
from brpo.datasets.datamodule import OfflineDataModule
from brpo.datasets.ids import is_toy
from brpo.datasets.minari_io import TERMINATED, TRUNCATED, Flat
from brpo.evaluation import scores

FAR = 30  # mean or standard deviation of an observation that networks, which expect about 1, fit badly
DISCOUNTS = (0.99, 0.997)  # the methods' default, and one that sees three times as far
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
_CONSTANT, _LOST = 1e-11, 2.0**-20  # standard deviation over magnitude: rounding alone; few of float32's 24 bits


def quantiles(values: np.ndarray) -> str:
    """Smallest, quartiles and largest."""
    return "  ".join(f"{value:.4g}" for value in np.quantile(values, LEVELS))


def constant(mean: np.ndarray, std: np.ndarray) -> list[int]:
    """Columns that have one value."""
    return np.flatnonzero(std <= _CONSTANT * np.abs(mean)).tolist()


def offsets(mean: np.ndarray, std: np.ndarray) -> list[str]:
    """A note where float32 leaves columns few different values."""
    lost = np.flatnonzero((std > _CONSTANT * np.abs(mean)) & (std < _LOST * np.abs(mean))).tolist()
    return [f"observation columns {lost} lose their digits in float32: subtract an offset first"] if lost else []


def discounted(flat: Flat, discount: float) -> np.ndarray:
    """Each episode's rewards as they were recorded, summed from its first step at a discount."""
    starts = np.append(0, np.cumsum(flat.lengths)[:-1])
    steps = np.arange(len(flat.rows)) - np.repeat(starts, flat.lengths)
    return np.add.reduceat(flat.rows[:, flat.columns.slices[2]][:, 0] * discount**steps, starts)


def describe(flat: Flat) -> dict[str, str]:
    """What `brpo data info` prints, by name."""
    observation, _, reward, _, _, _ = flat.columns.slices
    terminated, truncated = int((flat.ended == TERMINATED).sum()), int((flat.ended == TRUNCATED).sum())
    references = flat.references
    normalized = scores.normalized(flat.returns, *references)
    lines = {
        "digest": flat.digest,
        "transitions": str(len(flat.rows)),
        "episodes": f"{len(flat.lengths)}: {terminated} terminated, {truncated} truncated, "
        f"{len(flat.lengths) - terminated - truncated} neither",
        "episode length, min and quartiles": quantiles(flat.lengths),
        "return, min and quartiles": quantiles(flat.returns),
        "return, mean and std": f"{flat.returns.mean():.1f} +- {flat.returns.std():.1f}",
        "reward, min and quartiles": quantiles(flat.rows[:, reward]),
        "observation": f"{flat.columns.observation} dimensions, from {flat.rows[:, observation].min():.4g} "
        f"to {flat.rows[:, observation].max():.4g}",
        # Where dimensions differ by much, data.normalize_observations is worth a thought.
        "observation std, by dimension": "  ".join(f"{value:.3g}" for value in flat.observation_std),
        "constant observation columns": str(constant(flat.observation_mean, flat.observation_std) or "none"),
        "action": f"{flat.columns.action} dimensions, bounds {flat.action_low.tolist()} to {flat.action_high.tolist()}",
        "boundary actions": f"{100 * flat.boundary_share:.2f} % of the entries; {flat.clipped} outside the bounds",
        "description": str(flat.metadata.get("description", "")),
    }
    if flat.lengths.max() > 1:
        seen = ((discount, discounted(flat, discount)) for discount in DISCOUNTS)
        lines["return at a discount, mean and std"] = "; ".join(
            f"{discount}: {returns.mean():.1f} +- {returns.std():.1f}" for discount, returns in seen
        )
    if normalized is not None:
        lines["normalized score"] = f"{normalized.mean():.1f} +- {normalized.std():.1f}, best {normalized.max():.1f}"
        lines["reference returns"] = f"{references[0]} (score 0), {references[1]} (score 100)"
    return lines


def notices(datamodule: OfflineDataModule) -> list[str]:
    """What a user should know about the data as the training will see them."""
    found, flat = [], datamodule.flat
    if datamodule.heldout_share > 0 and datamodule.heldout_transitions is None:
        found.append("one episode leaves nothing to hold out: heldout/* is of what is trained on")
    if datamodule.reward_scale == transforms.RETURN_RANGE and not transforms.have_range(flat.returns, flat.gross):
        found.append(
            "all returns are equal, and rewards are not scaled by their range: data.reward_scale=NUMBER scales them"
        )
    if (draw := datamodule.train_transitions.episodes) is not None:
        found.append(
            f"data.return_temperature={datamodule.return_temperature}: batches are as of {draw.effective:.1f} of the "
            f"{len(draw.lengths)} training episodes, those of the largest returns most"
            if transforms.have_range(datamodule.train_returns, flat.gross)
            else f"all returns are equal: data.return_temperature={datamodule.return_temperature} has no effect"
        )
    mean, std = flat.observation_mean, flat.observation_std
    if (same := constant(mean, std)) and not is_toy(flat.dataset_id):  # which have one state
        found.append(f"{_columns(same)} constant: the policy cannot know what another value means")
    found += offsets(mean, std)
    far = (np.maximum(np.abs(mean), std) > FAR) & ~transforms.is_constant(mean, std)
    if far.any() and not datamodule.normalize_observations:
        found.append(
            f"{_columns(np.flatnonzero(far).tolist())} taken as recorded, with a mean or spread beyond {FAR}, which "
            f"networks fit badly: data.normalize_observations=true brings all to one scale"
        )
    return found


def _columns(numbers: list[int]) -> str:
    """Numbers of observation columns, as the beginning of a sentence."""
    words = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"observation {words} is" if len(numbers) == 1 else f"observations {words} are"
