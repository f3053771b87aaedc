"""Ratios, weights, support and values of a run in numbers: its checkpoint on held-out episodes, its records over time.

`brpo diagnose RUN` writes them beside the picture that `diagnosis_page.py` draws of them.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brpo import resume, saved_runs, training
from brpo.algorithms.base import OfflineAlgorithm
from brpo.callbacks.evaluate import BOUNDARY_SHARE, distributions
from brpo.callbacks.recorder import QUANTILES, WEIGHTS
from brpo.datasets.datamodule import OfflineDataModule
from brpo.datasets.transitions import Transitions
from brpo.errors import UserError
from brpo.functional import series, weights
from brpo.modules.divergence import SeriesDivergence
from brpo.runs import RunFolder, comparable

MOST_TRANSITIONS = 50_000  # whole episodes up to this number; a network of the papers' size takes some seconds for them
PIECE = 4096  # transitions that go through the networks at once
CLIPPED = (
    "ratio/clipped_share",
    "ratio/above_max_share",
    "weight/clipped_share",
    "weight/lowest_share",
    "weight/zero_share",
    "value/clipped_share",
    "q/clipped_share",
)
AT_BOUND = f"heldout/{BOUNDARY_SHARE}/mean"
EFFECTIVE = ("weight/effective_share", "heldout/weight/w/effective_share", "heldout/ratio/rho/effective_share")
FITS = {  # ends of the names of quantities, and their unit
    "/log_prob": "log-density of the action (nats)",
    "actor/error": "squared distance to the action",
    "/denoising_error": "squared error of the predicted noise",
}
VALUES = {"value/v": "V", "q/target": "Q"}  # the first that there is stands beside the data's return-to-go
TERMS = (  # the two terms of a policy loss; lambda in place of TD3+BC's Q term, whose magnitude it keeps constant
    ("actor/regression", "actor/symmetry"),
    ("actor/bc_term", "actor/lambda"),
)


@dataclass(frozen=True)
class Curve:
    """A number over time: the updates that it was logged at, and its values, mean over the seeds."""

    updates: np.ndarray
    values: np.ndarray

    def binned(self, most: int = 200) -> "Curve":
        """At most about `most` points, each the mean of a run of neighbours."""
        size = math.ceil(len(self.values) / most)
        if size <= 1:
            return self
        starts = np.arange(0, len(self.values), size)
        counts = np.diff(np.append(starts, len(self.values)))
        return Curve(np.add.reduceat(self.updates, starts) / counts, np.add.reduceat(self.values, starts) / counts)


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a run.

    Attributes:
        folder: the run folder.
        checkpoint: name of the checkpoint that the quantities are of.
        algorithm: it, with its weights.
        batch_size: transitions of an update.
        seeds: names of the members.
        held_out: whether the transitions were kept from training.
        quantities: what evaluations take of held-out batches, each (seeds, transitions).
        lengths: transitions of each episode; the transitions stand in this order.
        returns: undiscounted, of each episode, in environment units.
        returns_to_go: of each transition, discounted, in scaled rewards; it ends where the data of the episode end.
        curves: scalars of the event files by tag.
        value_gaps: for each seed the critic's value at the start less the discounted return, in scaled rewards.
        also: quantities and tags that were asked for by name, each a panel of its own.
    """

    folder: RunFolder
    checkpoint: str
    algorithm: OfflineAlgorithm
    batch_size: int
    seeds: list[int]
    held_out: bool
    quantities: dict[str, np.ndarray]
    lengths: np.ndarray
    returns: np.ndarray
    returns_to_go: np.ndarray
    curves: dict[str, Curve]
    value_gaps: dict[int, Curve]
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the algorithm's class."""
        return type(self.algorithm).__name__

    def worded(self, words: str) -> str:
        """Words on held-out transitions, of training ones where none were held out."""
        return words if self.held_out else words.replace("held-out", "training")

    @property
    def series(self) -> SeriesDivergence | None:
        """The series term of the policy loss, where the algorithm has one."""
        return next((part for part in self.algorithm.modules() if isinstance(part, SeriesDivergence)), None)

    @property
    def fits(self) -> list[str]:
        """Quantities that say how well a policy fits held-out actions: of the first kind that there is."""
        for kind in FITS:
            if found := sorted((name for name in self.quantities if name.endswith(kind)), reverse=True):
                return found
        return []

    @property
    def value(self) -> str | None:
        """The critic's value of the transitions: V, or Q where there is no V; None where there is no critic."""
        return next((name for name in VALUES if name in self.quantities), None)

    @property
    def outside_share(self) -> float | None:
        """Share of the ratios t that lie outside their clip range, which `epsilon_schedule=spread` narrows for each."""
        ratio = self.quantities.get("ratio/t")
        if ratio is None or self.series is None:
            return None
        epsilon = self.quantities.get("series/epsilon", self.series.epsilon)
        inside = (ratio >= np.maximum(1.0 - epsilon, series.LOWEST)) & (ratio <= 1.0 + epsilon)  # NaN is not
        return float(1.0 - inside.mean())

    def terms(self) -> tuple[str, ...]:
        """Tags of the two terms of the policy loss, where it has two."""
        return next((pair for pair in TERMS if all(tag in self.curves for tag in pair)), ())

    def by_episode(self, name: str) -> np.ndarray:
        """Mean over the seeds and the quartiles of a quantity in each episode: (episodes, 3), mean, 25 % and 75 %."""
        pieces = np.split(self.quantities[name], np.cumsum(self.lengths)[:-1], axis=1)
        return np.array([[piece.mean(), *np.quantile(piece, (0.25, 0.75))] for piece in pieces])


def diagnose(path: Path | str, also: Sequence[str] = ()) -> Diagnosis:
    """Take the quantities of a checkpoint on its held-out episodes, and what its run recorded over time.

    Args:
        path: a checkpoint inside a run folder; of the folder the last one.
        also: further quantities of the algorithm's `diagnose` and tags of its events to show.

    Raises:
        UserError: it is not inside a run folder, cannot be used, its data set is not here or has changed; or it has nothing
            of a name in `also`.
    """
    path = saved_runs.checkpoint_of(path, "last")
    folder = saved_runs.folder_of(path)
    if not folder.holds_run():
        raise UserError(
            f"{path} is not inside a run folder (no {folder.config}). Give a run folder, or a checkpoint in one."
        )
    algorithm, config = saved_runs.load_algorithm(path)
    datamodule = training.make_datamodule(config)
    resume.check_data(path, datamodule.spec, algorithm.spec, " to diagnose this run")
    lengths, returns = some_episodes(datamodule)
    found = Diagnosis(
        folder=folder,
        checkpoint=path.name,
        algorithm=algorithm,
        batch_size=config["batch_size"],
        seeds=algorithm.seeds.tolist(),
        held_out=datamodule.heldout_transitions is not None,
        quantities=quantities(algorithm, datamodule, int(lengths.sum())),
        lengths=lengths,
        returns=returns,
        returns_to_go=returns_to_go(transitions_of(datamodule), lengths, algorithm.discount),
        curves=read_curves(folder),
        value_gaps=read_value_gaps(folder),
        also=tuple(dict.fromkeys(also)),
    )
    tags = [tag for tag in found.curves if not tag.startswith(("evaluation_by_seed/", "heldout/"))]  # which are many
    for name in found.also:
        if name not in found.quantities and name not in found.curves:
            raise UserError(
                f"--also {name}: this run has no such name. Quantities of held-out transitions: "
                f"{', '.join(found.quantities)}. Tags of its events, among others: {', '.join(tags) or 'none'}."
            )
    return found


def some_episodes(datamodule: OfflineDataModule) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and returns of the held-out episodes (of training ones where none are), up to `MOST_TRANSITIONS`."""
    if datamodule.heldout_transitions is not None:
        lengths, returns = datamodule.heldout_lengths, datamodule.heldout_returns
    else:
        lengths, returns = datamodule.flat.lengths, datamodule.flat.returns
    count = max(int(np.searchsorted(np.cumsum(lengths), MOST_TRANSITIONS, side="right")), 1)
    return lengths[:count], returns[:count]


def transitions_of(datamodule: OfflineDataModule) -> Transitions:
    """The transitions of the episodes that `some_episodes` begins with."""
    return datamodule.heldout_transitions or datamodule.train_transitions


def returns_to_go(transitions: Transitions, lengths: np.ndarray, discount: float) -> np.ndarray:
    """Discounted sum of the scaled rewards from each transition to the end of its episode in the data, (transitions,)."""
    found = transitions.gather(torch.arange(int(lengths.sum()))[None]).rewards[0].double().numpy()
    last = set((np.cumsum(lengths) - 1).tolist())
    for index in reversed(range(len(found))):
        if index not in last:
            found[index] += discount * found[index + 1]
    return found


@torch.no_grad()
def quantities(algorithm: OfflineAlgorithm, datamodule: OfflineDataModule, count: int) -> dict[str, np.ndarray]:
    """What evaluations take of held-out batches, on the first `count` transitions: each (seeds, count).

    They go through in pieces that are spread over all of them: weights that are normalized by the mean of their batch
    then have nearly the same normalizer in each piece.
    """
    transitions = transitions_of(datamodule)
    seeds, pieces = len(algorithm.seeds), math.ceil(count / PIECE)
    found: dict[str, np.ndarray] = {}
    for piece in range(pieces):
        indices = torch.arange(piece, count, pieces)
        for name, values in distributions(algorithm, transitions.gather(indices.expand(seeds, -1))).items():
            found.setdefault(name, np.empty((seeds, count)))[:, indices.numpy()] = values.double().numpy()
    algorithm.discard_records()
    return found


def read_curves(folder: RunFolder) -> dict[str, Curve]:
    """Every scalar of the run's event files; empty where there are none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path), size_guidance={"scalars": 0, "histograms": 1, "tensors": 1})
    events.Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        curves[tag] = Curve(np.array([p.step for p in points], float), np.array([p.value for p in points]))
    return curves


def read_value_gaps(folder: RunFolder) -> dict[int, Curve]:
    """The value gap of each seed at each evaluation like the last one, from `metrics.csv`; empty without any.

    Raises:
        UserError: `metrics.csv` is not one of ours.
    """
    if not folder.metrics.exists():
        return {}
    points: dict[int, list[tuple[float, float]]] = {}
    try:
        with folder.metrics.open(newline="") as file:
            for row in comparable(csv.DictReader(file)):
                if row.get("value_gap"):  # a toy task has no such column
                    points.setdefault(int(row["seed"]), []).append((float(row["update"]), float(row["value_gap"])))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.metrics} is not a table of ours: {type(error).__name__} {error}.") from error
    return {seed: Curve(*np.array(pairs).T) for seed, pairs in points.items()}


# --- Numbers ----------------------------------------------------------------------------------------------------------


def numbers(diagnosis: Diagnosis, absent: Mapping[str, str]) -> dict[str, Any]:
    """All of it in plain containers, as `diagnosis.json` holds it.

    Args:
        diagnosis: of a run.
        absent: the panels that the picture lacks, each with its reason.
    """
    spec = diagnosis.algorithm.spec
    return {
        "algo": diagnosis.name,
        "dataset": {"id": spec.dataset_id, "digest": spec.digest},
        "checkpoint": diagnosis.checkpoint,
        "update": diagnosis.algorithm.update_count,
        "seeds": diagnosis.seeds,
        "held_out": diagnosis.held_out,
        "transitions": int(diagnosis.lengths.sum()),
        "quantities": {name: describe(name, values) for name, values in diagnosis.quantities.items()},
        "episodes": {
            "length": diagnosis.lengths.tolist(),
            "return": diagnosis.returns.tolist(),
            **{name: [finite(row[0]) for row in diagnosis.by_episode(name)] for name in diagnosis.fits},
        },
        "series": describe_series(diagnosis),
        "over_time": {
            tag: {"first": finite(curve.binned(10).values[0]), "last": finite(curve.binned(10).values[-1])}
            for tag, curve in diagnosis.curves.items()
            if tag in (*CLIPPED, AT_BOUND, *EFFECTIVE, *diagnosis.terms(), *diagnosis.also)
        },
        "value_gap": {
            str(seed): {"updates": curve.updates.astype(int).tolist(), "values": curve.values.tolist()}
            for seed, curve in diagnosis.value_gaps.items()
        },
        "value": describe_value(diagnosis),
        "absent": dict(absent),
    }


def describe(name: str, values: np.ndarray) -> dict[str, Any]:
    """Mean, quantiles and share of finite values of a quantity (seeds, n); of weights and ratios the effective share."""
    kept = values[np.isfinite(values)]
    found: dict[str, Any] = {"finite_share": kept.size / values.size}
    if not kept.size:
        return found
    found["mean"] = float(kept.mean())
    found |= {
        f"q{round(100 * level):02d}": float(q) for level, q in zip(QUANTILES, np.quantile(kept, QUANTILES), strict=True)
    }
    if name in WEIGHTS:
        found |= {"max": float(kept.max()), "zero_share": float((kept == 0).mean()), "effective_share": effective(values)}
    return found


def effective(values: np.ndarray) -> list[float | None]:
    """Effective sample share of weights (seeds, n), for each seed."""
    return [finite(share) for share in weights.effective_sample_share(torch.from_numpy(values)).tolist()]


def describe_series(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """The series term of the policy loss: its order, clip range and largest error there, and how often t is clipped."""
    series = diagnosis.series
    if series is None:
        return None
    return {
        "divergence": series.divergence.name,
        "exact": series.exact,
        "order": len(series.coefficients) - 1,
        "epsilon": series.epsilon,
        "radius": finite(series.divergence.series_radius),
        "converges": series.converges,
        "remainder": series.remainder,
        "clipped_share": diagnosis.outside_share,
    }


def describe_value(diagnosis: Diagnosis) -> dict[str, Any] | None:
    """The critic's mean value of the transitions, and the mean return-to-go of the behaviour from them."""
    if diagnosis.value is None:
        return None
    return {
        "quantity": diagnosis.value,
        "mean": finite(diagnosis.quantities[diagnosis.value].mean()),
        "mean_return_to_go": float(diagnosis.returns_to_go.mean()),
    }


def finite(value: float) -> float | None:
    """The number, or None where it is none: JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def markdown(found: Mapping[str, Any]) -> str:
    """The numbers as a page to read."""
    kind = "held-out" if found["held_out"] else "training"
    episodes = f"{kind} episode{'s' * (len(found['episodes']['length']) > 1)}"
    episodes += "" if found["held_out"] else " (none are held out)"
    lines = [
        f"# {found['algo']} on {found['dataset']['id']}",
        "",
        f"{found['checkpoint']}, update {found['update']}, seeds {', '.join(map(str, found['seeds']))}; "
        f"{found['transitions']} transitions of {len(found['episodes']['length'])} {episodes}; "
        f"data digest {found['dataset']['digest'][:12]}.",
        "",
        "| quantity | mean | 5 % | 25 % | median | 75 % | 95 % | finite | effective share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["quantities"].items():
        cells = [number(row.get(key)) for key in ("mean", "q05", "q25", "q50", "q75", "q95")]
        shares = ", ".join(number(share) for share in row.get("effective_share", ()))
        lines.append(f"| `{name}` | {' | '.join(cells)} | {100 * row['finite_share']:.1f} % | {shares} |")
    if found["series"]:
        lines += ["", "Series: " + ", ".join(f"{key} {number(value)}" for key, value in found["series"].items()) + "."]
    if found["over_time"]:
        lines += ["", "| over time | first tenth | last tenth |", "|---|---|---|"]
        for tag, row in found["over_time"].items():
            lines.append(f"| `{tag}` | {number(row['first'])} | {number(row['last'])} |")
    if found["value_gap"]:
        last = ", ".join(f"seed {seed}: {number(curve['values'][-1])}" for seed, curve in found["value_gap"].items())
        lines += ["", f"Value gap at the last evaluation, in scaled rewards (above 0 is over-estimation): {last}."]
    if found["value"]:
        mean, behind = (number(found["value"][key]) for key in ("mean", "mean_return_to_go"))
        lines += [
            "",
            f"In the mean `{found['value']['quantity']}` is {mean}, and the data's discounted return-to-go {behind} (scaled "
            f"rewards; of the behaviour: no rollouts).",
        ]
    lines += [""] * bool(found["absent"]) + [f"- No {panel}: {reason}." for panel, reason in found["absent"].items()]
    return "\n".join(lines) + "\n"


def number(value: object) -> str:
    """A number in four digits; words as they are."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
