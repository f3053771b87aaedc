"""What `benchmarks/seeds.py` says of several seeds in one process."""

from pathlib import Path

import numpy as np
import pytest
import seeds

from brpo.errors import UserError


def answers(*rates: float, mib: float = 100.0) -> list[dict[str, float]]:
    return [{"rate": rate, "mib": mib + k, "device_mib": 0.0} for k, rate in enumerate(rates)]


def test_times_are_relative_to_the_fewest_seeds_of_the_same_round() -> None:
    """30/10, 60/30 and 40/10: 3, 2 and 4."""
    one, four = seeds.rows({1: answers(30.0, 60.0, 40.0), 4: answers(10.0, 30.0, 10.0, mib=300.0)})
    assert (one["relative_time"], four["relative_time"]) == (1.0, 3.0)
    assert (four["relative_time_min"], four["relative_time_max"]) == (2.0, 4.0)
    assert (one["updates_per_second"], four["updates_per_second"], four["seed_updates_per_second"]) == (40.0, 10.0, 40.0)
    assert (one["mib"], four["mib"]) == (102.0, 302.0)


def test_peak_memory_is_a_peak_in_bytes() -> None:
    before = seeds.peak_memory()
    size = before + (64 << 20)
    block = np.ones(size, np.uint8)
    del block
    assert size < seeds.peak_memory() < size + before + (32 << 20)  # what else the process takes meanwhile


def test_a_training_answers_until_it_ends(datasets: Path) -> None:
    options = [
        "algo=bc",
        "dataset=tests/pendulum/tiny-v0",
        "trainer=cpu",
        "batch_size=8",
        "engine=eager",
        "engine.threads=1",
    ]
    with seeds.Training(2, options, "cpu") as training:
        first, second = training.run(2), training.run(3)
        assert min(first["rate"], second["rate"]) > 0
        assert second["mib"] >= first["mib"] > 10
        assert first["device_mib"] == 0
        training.process.terminate()
        training.process.wait()
        with pytest.raises(UserError, match="A training ended with exit code"):
            training.run(1)
    assert training.process.returncode != 0


def test_files_hold_the_rows(tmp_path: Path) -> None:
    table = seeds.rows({count: answers(60.0 / count, 70.0 / count) for count in (1, 2, 4)})
    seeds.write(tmp_path / "new" / "seeds.csv", table, {"algo": "iql", "threads": 1})
    head, first, *_ = (tmp_path / "new" / "seeds.csv").read_text().splitlines()
    assert head.startswith("seeds,updates_per_second,") and head.endswith(",algo,threads")
    assert first.startswith("1,65.0,60.0,70.0,") and first.endswith(",iql,1")
    seeds.draw(tmp_path / "seeds.png", table, "title")
    assert (tmp_path / "seeds.png").read_bytes().startswith(b"\x89PNG")
