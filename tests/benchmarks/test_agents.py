"""What `benchmarks/agents.py` says of the two kinds of episodes, by hand."""

from pathlib import Path
from types import SimpleNamespace

import agents
import pytest
import torch
import typer

from brpo import training
from brpo.types import Batch
from tests.conftest import write_dataset
from tests.datasets.test_minari_io import ID, hand_made
from tests.helpers import compose_config


def diagnose(batch: Batch) -> dict[str, torch.Tensor]:
    """V is the reward, Q - V the first entry of the observation, times the seed's place."""
    place = torch.arange(1.0, 3.0)[:, None]
    first = batch.observations[..., 0]
    return {
        "value/v": batch.rewards,
        "q/target": batch.rewards + place * first,
        "weight/w": first / 10,
        "actor/log_prob": -first * place,
    }


def test_rows_of_both_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One episode at the time limit, with the observation 10 and the reward -4; one of 0, 1, 2 and 1, 2, 3, which ended."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(agents, "FIRST", 2)
    monkeypatch.setattr(agents, "CHUNK", 3)
    write_dataset(tmp_path, ID, hand_made())
    config = compose_config("algo=iql", f"dataset={ID}", "data.heldout=0", "data.reward_scale=1")
    algorithm = SimpleNamespace(seeds=torch.tensor([4, 7]), diagnose=diagnose)
    lines = agents.table(algorithm, training.make_datamodule(config), [1.0, None]).splitlines()
    assert lines[2:] == [
        "| 4 | 1.0 | -4.00; 1.50 | 10.00; 1.00 | 1.00; 0.10 | -10.00; -1.00 |",
        "| 7 | - | -4.00; 1.50 | 20.00; 2.00 | 1.00; 0.10 | -20.00; -2.00 |",
    ]
    write_dataset(tmp_path, "tests/ended-v0", hand_made()[:1])
    ended = training.make_datamodule({**config, "dataset": "tests/ended-v0"})
    assert (
        agents.table(algorithm, ended, [1.0, None]).splitlines()[2] == "| 4 | 1.0 | -; 1.50 | -; 1.00 | -; 0.10 | -; -1.00 |"
    )
    algorithm.diagnose = lambda batch: {"actor/error": batch.rewards}
    with pytest.raises(typer.BadParameter, match="SimpleNamespace knows no actor/log_prob, q/target, value/v, weight/w"):
        agents.table(algorithm, ended, [1.0, None])
