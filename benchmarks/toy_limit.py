"""How near a chain of Gaussian steps can come to the toy targets: BDPO with perfect networks, solved on grids.

    python benchmarks/toy_limit.py [TASK...] [--schedule vp_toy] [--steps 50] [--cells 768]
    python benchmarks/toy_limit.py --run RUN        # what the behaviour model of a run allows, re-weighted; no table then
    python benchmarks/toy_limit.py --run RUN --exchange             # parts of a run of BDPO in the best chain
    python benchmarks/toy_limit.py rings --profile [--run RUN]      # the KL of the best chain (of a run of BDPO) by step

A step of the actor has the variance of the behaviour's and chooses its mean, which is not the form of the exact posterior.
The best such chain follows from the last step backwards (V_0 the energy, the last step without noise):

    V_n(x) = max_m  E V_{n-1}(m + sqrt(beta_n) z) - eta |m - m_D(x)|^2 / (2 beta_n)

with m_D the mean of the exact behaviour's step, out of the data's density on the grid. Ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from common import machine
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from brpo import saved_runs
from brpo.datasets import toy
from brpo.datasets.ids import TOY
from brpo.evaluation.distances import resample, sliced_wasserstein, tilted_weights
from brpo.evaluation.toy import Target
from brpo.exits import run_command
from brpo.experiments.toy import ETA
from brpo.functional.diffusion import ReverseStep, Schedule

DENSITY = 2_000_000  # points that the density is made of
SAMPLES = 10_000  # that are compared
FIRST = 8  # steps whose KL is shown one by one
EXCHANGES = 3  # starts of the chains of --exchange
ROUNDS = 10  # so many times as many samples of a behaviour model are drawn again by their weights; also starts of V_N
EDGE = 1.3  # the grid of clean actions reaches from -EDGE to EDGE
Energy = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Grid:
    """Values (cells, cells) on a square from -edge to edge, with linear interpolation; constant beyond it."""

    values: np.ndarray
    edge: float

    @property
    def spacing(self) -> float:
        """Distance of neighbouring cells."""
        return 2.0 * self.edge / (len(self.values) - 1)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Values at points (..., 2)."""
        places = np.moveaxis((points + self.edge) / self.spacing, -1, 0)
        return map_coordinates(self.values, places, order=1, mode="nearest")


@dataclass(frozen=True)
class Step:
    """The best step from n to n - 1.

    Attributes:
        mean: of the behaviour's step at x_n, its two entries.
        gain: what a mean m is worth before its penalty, at its best: the maximum over where the actor moves it.
        std: of the noise that is added, 0 at the last step.
        shift: `beta_n / eta`: the actor adds this times the slope of `gain` to the behaviour's mean.
    """

    mean: tuple[Grid, Grid]
    gain: Grid
    std: float
    shift: float

    def behavior(self, noisy: np.ndarray) -> np.ndarray:
        """The behaviour's mean at x_n (n, 2)."""
        return np.stack([entry.at(noisy) for entry in self.mean], axis=-1)

    def actor(self, noisy: np.ndarray) -> np.ndarray:
        """The best mean at x_n (n, 2)."""
        mean = self.behavior(noisy)
        return mean + self.move(mean)

    def move(self, mean: np.ndarray) -> np.ndarray:
        """What is best added to a behaviour's mean (n, 2)."""
        slopes = [Grid(slope, self.gain.edge).at(mean) for slope in np.gradient(self.gain.values, self.gain.spacing)]
        return self.shift * np.stack(slopes, axis=-1)


def mesh(edge: float, cells: int) -> np.ndarray:
    """Points of a grid, (cells, cells, 2)."""
    line = np.linspace(-edge, edge, cells)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)


def best_moves(values: Grid, eta: float, beta: float) -> Grid:
    """`max_d values(m + d) - eta |d|^2 / (2 beta)` for every m: one axis after the other, as the square splits."""
    span, cells = float(np.ptp(values.values)), len(values.values)
    reach = min(int(np.sqrt(2.0 * beta * span / eta) / values.spacing) + 1, cells)  # a longer way costs more than any gain
    best = values.values
    for _ in range(2):
        padded = np.pad(best, [(reach, reach), (0, 0)], mode="edge")
        costs = eta * (np.arange(-reach, reach + 1) * values.spacing) ** 2 / (2.0 * beta)
        best = reduce(np.maximum, (padded[k : k + cells] - cost for k, cost in enumerate(costs))).T  # then the other axis
    return Grid(best, values.edge)


def clean_mean(points: np.ndarray, bar: float, edge: float, cells: int) -> np.ndarray:
    """`E[x_0 | x_n]` of the data at every point of a grid of x_n, (cells, cells, 2)."""
    spacing = 2.0 * edge / (cells - 1)
    places = np.rint((points * np.sqrt(bar) + edge) / spacing).astype(np.int64).clip(0, cells - 1)
    counts = np.bincount(places[:, 0] * cells + places[:, 1], minlength=cells**2).reshape(cells, cells) / len(points)
    at, width = mesh(edge, cells), np.sqrt(1.0 - bar) / spacing
    density = gaussian_filter(counts, width, mode="constant", truncate=6.0)
    weighted = [gaussian_filter(counts * at[..., axis], width, mode="constant", truncate=6.0) for axis in (0, 1)]
    mean = np.stack(weighted, axis=-1) / np.maximum(density, 1e-300)[..., None]
    if (far := density < 1e-14).any():  # no data near: the nearest of it
        some = cKDTree(points[:20_000] * np.sqrt(bar))
        mean[far] = some.data[some.query(at[far])[1]]
    return mean / np.sqrt(bar)


def solve(points: np.ndarray, energy: Energy, eta: float, schedule: Schedule, cells: int) -> tuple[list[Step], Grid]:
    """The best steps, n = 1 first, and V_N."""
    following = Grid(energy(mesh(EDGE, cells).reshape(-1, 2)).reshape(cells, cells).astype(np.float64), EDGE)
    steps = []
    for n in range(1, schedule.steps + 1):
        bar, beta, plan = schedule.alpha_bars[n], schedule.betas[n], schedule.step(n)
        if plan.std > 0:
            blurred = gaussian_filter(following.values, plan.std / following.spacing, mode="nearest", truncate=4.5)
            following = Grid(blurred, following.edge)
        gain = best_moves(following, eta, beta)
        edge = max(EDGE * np.sqrt(bar) + 4.3 * np.sqrt(1.0 - bar), EDGE)
        mean = plan.from_clean * clean_mean(points, bar, edge, cells) + plan.from_noisy * mesh(edge, cells)
        steps.append(Step((Grid(mean[..., 0], edge), Grid(mean[..., 1], edge)), gain, float(plan.std), beta / eta))
        following = Grid(gain.at(mean), edge)
    return steps, following


def samples(steps: list[Step], start: np.ndarray, noise: np.random.Generator, behavior: bool = False) -> np.ndarray:
    """Actions of the best chain, or of the behaviour's, from starts (n, 2)."""
    noisy = start
    for step in reversed(steps):
        mean = step.behavior(noisy) if behavior else step.actor(noisy)
        noisy = mean + step.std * noise.standard_normal(start.shape)
    return noisy


def penalties(steps: list[Step], noise: np.random.Generator, schedule: Schedule) -> list[float]:
    """Mean KL of each step of the best chain, n = 1 first."""
    noisy, found = noise.standard_normal((SAMPLES, 2)), []
    for n, step in reversed(list(enumerate(steps, start=1))):
        mean = step.actor(noisy)
        found.append(float(((mean - step.behavior(noisy)) ** 2).sum(-1).mean() / (2.0 * schedule.betas[n])))
        noisy = mean + step.std * noise.standard_normal(noisy.shape)
    return found[::-1]


@torch.no_grad()
def penalties_of(run: Path) -> list[float]:
    """The same of the actor of a run of BDPO (the first seed's), by its own behaviour model."""
    algorithm, _ = saved_runs.load_algorithm(saved_runs.checkpoint_of(run, "last"))
    seeds, generator = algorithm.seeds.numel(), torch.Generator().manual_seed(0)
    noise = torch.randn(seeds, SAMPLES, algorithm.steps * 2, generator=generator)
    return algorithm.sampled_path(torch.zeros(seeds, SAMPLES, 1), noise)[1][:, 0].mean(-1).tolist()[::-1]


def shown(found: list[float]) -> str:
    """The first steps one by one, the others together, and all."""
    return " | ".join(f"{value:.3f}" for value in [*found[:FIRST], sum(found[FIRST:]), sum(found)])


def limits(dataset_id: str, eta: float, schedule: Schedule, cells: int) -> list[str]:
    """A line of the table."""
    target, noise = Target.of(dataset_id, eta), np.random.default_rng(0)
    points = toy.sample(dataset_id, DENSITY, seed=toy.SEED + 1).astype(np.float64)
    steps, last = solve(points, lambda at: toy.energy(dataset_id, at), eta, schedule, cells)
    start, reference = noise.standard_normal((ROUNDS * SAMPLES, 2)), target.draw(SAMPLES, "reference")
    value = float(last.at(start).mean())
    drawn = {
        "second": target.draw(SAMPLES, "second"),
        "behavior": retilted(samples(steps, start, noise, behavior=True), target, eta),
        "best": samples(steps, start[:SAMPLES], noise),
    }
    distances = [f"{sliced_wasserstein(points, reference):.4f}" for points in drawn.values()]
    values = [f"{target.value:.3f}", f"{value:.3f}", f"{100 * (value / target.value - 1):+.1f} %"]
    return [dataset_id.removeprefix(TOY), *distances, *values]


def retilted(points: np.ndarray, target: Target, eta: float) -> np.ndarray:
    """Samples of a behaviour model, drawn again by `exp(energy / eta)`: the optimum that it allows, (SAMPLES, 2)."""
    weights = tilted_weights(toy.energy(target.dataset_id, points), eta)
    return points[resample(weights, np.random.default_rng(0).uniform(size=SAMPLES))]


@torch.no_grad()
def reweighted(run: Path) -> tuple[str, float]:
    """The task of a run, and how far samples of its behaviour model (the first seed's), drawn again, are from the target.

    Of a run of BDPO, or of diffusion cloning.
    """
    algorithm, config = saved_runs.load_algorithm(saved_runs.checkpoint_of(run, "last"))
    target = Target.of(algorithm.spec.dataset_id, config["data"]["eta"])
    model = getattr(algorithm, "behavior_target", algorithm.actor_target).module
    generator, drawn, seeds = torch.Generator().manual_seed(0), [], algorithm.seeds.numel()
    for _ in range(ROUNDS):
        noise = torch.randn(seeds, SAMPLES, model.noise_dim, generator=generator)
        drawn.append(model.sample(torch.zeros(seeds, SAMPLES, 1), noise)[0].numpy())
    chosen = retilted(np.concatenate(drawn), target, config["data"]["eta"])
    return target.dataset_id, sliced_wasserstein(chosen, target.draw(SAMPLES, "reference"))


@torch.no_grad()
def exchanged(run: Path, cells: int) -> list[float]:
    """Distances of four chains to the target, means over EXCHANGES starts.

    The best one, with the behaviour model of a run of BDPO (the first seed's), with its moves from there, and with both.
    """
    algorithm, config = saved_runs.load_algorithm(saved_runs.checkpoint_of(run, "last"))
    target, schedule = Target.of(algorithm.spec.dataset_id, config["data"]["eta"]), algorithm.actor.schedule
    points = toy.sample(target.dataset_id, DENSITY, seed=toy.SEED + 1).astype(np.float64)
    steps, _ = solve(points, lambda at: toy.energy(target.dataset_id, at), config["data"]["eta"], schedule, cells)
    policy, seeds, reference = algorithm.actor_target.module, algorithm.seeds.numel(), target.draw(SAMPLES, "reference")
    observations = torch.zeros(seeds, SAMPLES, 1)

    def learned(model: torch.nn.Module, noisy: np.ndarray, n: int, step: ReverseStep) -> np.ndarray:
        rows = torch.as_tensor(noisy, dtype=torch.float32).expand(seeds, -1, -1)
        return policy.back(rows, model(observations, rows, n), step, None)[0].double().numpy()

    def chain(start: int, its_behavior: bool, its_moves: bool) -> float:
        noise = np.random.default_rng(start)
        noisy = noise.standard_normal((SAMPLES, 2))
        for (n, plan), step in zip(policy.full_path, reversed(steps), strict=True):
            own = learned(algorithm.behavior_target, noisy, n, plan)
            mean = own if its_behavior else step.behavior(noisy)
            move = learned(policy, noisy, n, plan) - own if its_moves else step.move(mean)
            noisy = mean + move + step.std * noise.standard_normal(noisy.shape)
        return sliced_wasserstein(noisy, reference)

    parts = [(False, False), (True, False), (False, True), (True, True)]
    return [float(np.mean([chain(start, *part) for start in range(EXCHANGES)])) for part in parts]


def main(
    tasks: Annotated[list[str] | None, typer.Argument(help="All of them, unless given.")] = None,
    schedule: str = "vp_toy",
    steps: int = 50,
    eta: float = ETA,
    cells: int = 768,
    run: Annotated[list[Path] | None, typer.Option(help="Run folders of BDPO or diffusion cloning; no table then.")] = None,
    profile: Annotated[bool, typer.Option(help="The KL to the behaviour by step instead.")] = False,
    exchange: Annotated[bool, typer.Option(help="Parts of the runs in the best chain instead.")] = False,
) -> None:
    """Print what is asked for."""
    if exchange and not run:
        raise typer.BadParameter("--exchange puts parts of a run into the best chain: name one with --run")
    print(machine())
    if profile:
        print(f"| KL of | {' | '.join(f'n = {n}' for n in range(1, FIRST + 1))} | further | all |\n|{'---|' * (FIRST + 3)}")
        for dataset_id in [TOY + task.removeprefix(TOY) for task in tasks or []]:
            points = toy.sample(dataset_id, DENSITY, seed=toy.SEED + 1).astype(np.float64)
            plan = Schedule.of(schedule, steps)
            best = solve(points, lambda at, name=dataset_id: toy.energy(name, at), eta, plan, cells)[0]
            found = penalties(best, np.random.default_rng(0), plan)
            print(f"| the best chain on {dataset_id} | {shown(found)} |", flush=True)
        for folder in run or []:
            print(f"| {folder.name} | {shown(penalties_of(folder))} |")
        return
    if run and exchange:
        print("| run | best chain | with its behaviour | with its moves | with both |\n|---|---|---|---|---|")
        for folder in run:
            distances = " | ".join(f"{distance:.4f}" for distance in exchanged(folder, cells))
            print(f"| {folder.name} | {distances} |", flush=True)
        return
    if run:
        print("| run | task | its behaviour model, re-weighted |\n|---|---|---|")
        for folder in run:
            task, distance = reweighted(folder)
            print(f"| {folder.name} | {task} | {distance:.4f} |")
        return
    print("| task | floor | exact behaviour, re-weighted | best chain | V_N: exact | best chain | change |")
    print("|---|---|---|---|---|---|---|")
    for dataset_id in [TOY + task.removeprefix(TOY) for task in tasks or toy.ids()]:
        print(f"| {' | '.join(limits(dataset_id, eta, Schedule.of(schedule, steps), cells))} |", flush=True)


if __name__ == "__main__":
    run_command(main)
