"""How long a diffusion policy takes to act: by sampler, number of steps, batch and device.

python benchmarks/latency.py [--algo bdpo] [--size small] [--device cuda] [--threads 1]

An action of BDPO is the best of some candidates; `candidates` 1 draws one, 0 takes what comes out of no noise. Weights are
untrained: only times are measured.
"""

import statistics
from typing import Any

import torch
from common import composed, machine, rotated, seconds

from brpo import training
from brpo.exits import run_command
from brpo.types import DataSpec

OBSERVATION, ACTION = 17, 6  # of HalfCheetah and Walker2d
BATCHES = (1, 256)


def spec() -> DataSpec:
    """Sizes alone: nothing is read."""
    return DataSpec(
        dataset_id="none/latency-v0", digest="", observation_dim=OBSERVATION, action_dim=ACTION, action_low=(-1.0,) * ACTION,
        action_high=(1.0,) * ACTION, observation_mean=(0.0,) * OBSERVATION, observation_std=(1.0,) * OBSERVATION,
        reward_scale=1.0, reward_shift=0.0, return_min=0.0, return_max=1.0, return_mean=0.5, reference_min=None,
        reference_max=None, environment=None, transitions=1, episodes=1,
    )  # fmt: skip


def milliseconds(algorithm: Any, batch: int, device: str, repeats: int) -> float:
    """Mean time of one call of `act`, (1, batch) observations in, the actions back on the CPU."""
    observations = torch.randn(1, batch, OBSERVATION, device=device)

    def run() -> None:
        for step in range(repeats):
            algorithm.act(observations, step=step).cpu()

    return 1e3 * seconds(run) / repeats


def main(
    algo: str = "bdpo", size: str = "paper", device: str = "cpu", threads: int = 1, repeats: int = 20, rounds: int = 5
) -> None:
    """Print a table: median over the rounds of the time of one call."""
    sized = [f"algo/size={size}"] if algo == "bdpo" else []
    kinds = [("ddpm", None), ("ddim", None), ("ddim", 2), ("ddim", 1)]
    counts = ("10", "1", "0") if algo == "bdpo" else ("null",)
    runs = {}
    for sampler, steps in kinds:
        for count in counts:
            own = [f"algo.acting.sampler={sampler}", f"algo.acting.steps={'null' if steps is None else steps}"]
            own += [f"algo.acting.candidates={count}"] if count != "null" else []
            config = composed(f"algo={algo}", *sized, *own, f"engine.threads={threads}")
            algorithm = training.make_algorithm(config["algo"], spec(), seeds=[0], max_updates=1).to(device)
            drawn = config["algo"]["acting"].get("candidates", 1)
            for batch in BATCHES:
                key = (sampler, steps or config["algo"]["actor"]["steps"], drawn, batch)
                runs[str(key)] = lambda a=algorithm, b=batch: milliseconds(a, b, device, repeats)
    print(f"{machine()}, {device}; algo={algo} {' '.join(sized)}")
    print("| sampler, steps, candidates, batch | ms per call |\n|---|---|")
    for name, times in rotated(runs, rounds).items():
        print(f"| {name} | {statistics.median(times):.2f} |")


if __name__ == "__main__":
    run_command(main)
