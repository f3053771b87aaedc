"""IQL updates per second beside d3rlpy's IQL: the same networks, batch size, data and machine, in turn, in one process.

    pip install --no-deps d3rlpy==2.8.1
    pip install gym==0.26.2 gym-notices structlog colorama dataclasses-json scikit-learn
    python benchmarks/peers.py [--precision highest|medium] [--threads 1]

d3rlpy 2.8.1 asks for gymnasium 1.0.0 but runs beside newer ones when it is installed without its dependencies.
Both sides draw their batches from memory and make whole updates (three losses, three optimizers, target networks).
"""

import time

import typer
from common import build, composed, machine, paired


def main(updates: int = 300, rounds: int = 7, precision: str = "highest", threads: int = 1) -> None:
    """Print both rates and their ratio."""
    try:
        import d3rlpy
    except ImportError:
        raise typer.BadParameter("d3rlpy is not installed; the head of this file says how") from None
    import numpy as np

    config = composed("algo=iql", "trainer=cpu", f"engine.matmul_precision={precision}", f"engine.threads={threads}")
    algorithm, datamodule = build(config)
    algorithm.configure_optimizers()
    runner, state = algorithm.runner, {"at": 0}
    assert runner is not None

    def ours() -> float:
        start = time.perf_counter()
        for _ in range(updates // 100):
            runner.run(algorithm, state["at"], state["at"] + 100)
            state["at"] += 100
            algorithm.take_records()  # as training does: one transfer a chunk
        return updates / (time.perf_counter() - start)

    flat = datamodule.flat
    columns = flat.columns.slices
    ends = np.zeros(len(flat.rows))
    ends[np.cumsum(flat.lengths) - 1] = 1.0
    terminals = flat.rows[:, columns[3]].ravel()
    dataset = d3rlpy.dataset.MDPDataset(
        observations=flat.rows[:, columns[0]],
        actions=flat.rows[:, columns[1]],
        rewards=flat.rows[:, columns[2]],
        terminals=terminals,
        timeouts=ends * (1 - terminals),
    )
    peer = d3rlpy.algos.IQLConfig(batch_size=config["batch_size"]).create(device="cpu")
    peer.build_with_dataset(dataset)

    def theirs() -> float:
        start = time.perf_counter()
        for _ in range(updates):
            peer.update(dataset.sample_transition_batch(config["batch_size"]))
        return updates / (time.perf_counter() - start)

    rate, peer_rate, ratio = paired(ours, theirs, rounds)
    print(machine())
    print(f"IQL, 2x256, batch {config['batch_size']}, matmul precision {precision}, median of {rounds} rounds of {updates}")
    print(f"brpo           {rate:.0f} updates/s")
    print(f"d3rlpy {d3rlpy.__version__}   {peer_rate:.0f} updates/s")
    print(f"ratio {ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
