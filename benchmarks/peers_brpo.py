"""brpo's side of `peers.py`: the runner of the chosen engine, a chunk at a time, and one transfer a chunk."""

import torch
from peers_workload import Peer, Workload

from brpo import __name__ as name


def make(workload: Workload) -> Peer:
    """The runner, which goes on where it stopped."""
    algorithm, chunk = workload.algorithm, workload.config["engine"]["chunk"]
    runner = algorithm.runner
    assert runner is not None

    def run(updates: int) -> None:
        first = algorithm.update_count
        for start in range(first, first + updates, chunk):
            runner.run(algorithm, start, min(start + chunk, first + updates))
            algorithm.take_records()  # as training does
        if workload.device == "cuda":
            torch.cuda.synchronize()

    return Peer(f"{name} (engine {workload.config['engine']['name']})", run)
