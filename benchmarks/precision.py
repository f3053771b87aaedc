"""What bfloat16 does to the ratio of Sf-AC's two densities, with their networks in float32 and without.

    OMP_NUM_THREADS=1 python benchmarks/precision.py [--updates 2000] [dataset=...]

Trains in float32; then the same weights give pi / pi_D on the fixed held-out batch under bfloat16 autocast.
"""

from typing import Annotated, Any

import torch
import typer
from common import build, composed, machine
from torch import Tensor

from brpo.exits import run_command

LEVELS = (0.5, 0.95, 1.0)


def errors(ratio: Tensor, exact: Tensor) -> str:
    """Relative errors in words: median, 95 % quantile, largest."""
    relative = (ratio.double() / exact.double() - 1.0).abs().flatten()
    median, high, largest = (100 * float(relative.quantile(level)) for level in LEVELS)
    return f"median {median:.2g} %, 95 % quantile {high:.2g} %, largest {largest:.2g} %"


@torch.no_grad()
def main(overrides: Annotated[list[str] | None, typer.Argument()] = None, updates: int = 2000) -> None:
    """Print the relative errors of the ratio."""
    config = composed("algo=sfac", "trainer=cpu", "engine=eager", f"max_updates={updates}", *(overrides or []))
    algorithm: Any
    algorithm, datamodule = build(config)
    runner = algorithm.runner
    with torch.enable_grad():
        for start in range(0, updates, config["engine"]["chunk"]):
            runner.run(algorithm, start, min(start + config["engine"]["chunk"], updates))
            algorithm.discard_records()
    batch = datamodule.diagnostic_batch(len(algorithm.seeds))

    def kept() -> Tensor:
        return (algorithm.log_prob(algorithm.actor, batch) - algorithm.log_prob(algorithm.behavior, batch)).exp()

    def plain() -> Tensor:
        log_probs = [part.log_prob(batch.observations, batch.actions) for part in (algorithm.actor, algorithm.behavior)]
        return (log_probs[0] - log_probs[1]).float().exp()

    exact = kept()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = {"networks in bfloat16": plain(), "networks kept in float32, as Sf-AC does": kept()}
    print(machine())
    print(f"{config['dataset']}, {updates} updates, {exact.numel()} held-out transitions; pi/pi_D against float32:")
    for name, ratio in results.items():
        print(f"{name:40s} {errors(ratio, exact)}")


if __name__ == "__main__":
    run_command(main)
