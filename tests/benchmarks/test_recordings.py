"""The data sets of docs/results.md: who acts for how long, and that brpo reads what is recorded."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import recordings
import typer

from brpo.datasets import sources


def test_shares_are_exact() -> None:
    assert recordings.shared_out(10, [1.0, 1.0, 1.0]).tolist() == [4, 3, 3]
    assert recordings.shared_out(100, [0.5, 0.25, 0.25]).tolist() == [50, 25, 25]
    for task in recordings.TASKS.values():
        assert sum(part.share for part in task.replay) == pytest.approx(1.0)
        assert [part.agent for part in task.parts("medium-expert")] == [task.medium.agent, task.expert.agent]


def test_an_agent_without_spread_does_the_same_each_time_and_clipped_noise_stays_in_bounds() -> None:
    space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    observation, rng = np.linspace(-1, 1, 11), np.random.default_rng(0)
    still = recordings.policy("hopper", recordings.Part("sac", spread=0.0), space)
    moving = recordings.policy("hopper", recordings.Part("sac"), space)
    noisy = recordings.policy("hopper", recordings.Part("sac", noise=10.0), space)
    assert np.array_equal(still(observation, rng), still(observation, rng))
    assert not np.array_equal(moving(observation, rng), moving(observation, rng))
    assert set(np.abs(noisy(observation, rng))) == {1.0}


@pytest.mark.parametrize("name", recordings.TASKS)
def test_every_agent_fits_its_environment(name: str) -> None:
    env = gymnasium.make(recordings.TASKS[name].environment)
    observation, _ = env.reset(seed=0)
    space: Any = env.action_space
    for kind in recordings.KINDS:
        for part in recordings.TASKS[name].parts(kind):
            action = recordings.policy(name, part, space)(observation, np.random.default_rng(0))
            assert space.contains(action), part


def test_what_is_recorded_is_read_and_recorded_again_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))  # main sets it: put back afterwards
    digests = []
    for folder in ("one", "two"):
        recordings.main(tmp_path / folder, steps=120, only="hopper/replay")
        flat = sources.load("brpo/hopper/replay-v0")
        digests.append(flat.digest)
        assert flat.lengths.sum() == 120
        assert set(flat.ended) == {1, 2}  # falls, and episodes that were cut where an agent had made its share
        assert flat.references == recordings.TASKS["hopper"].references
    assert digests[0] == digests[1]
    recordings.main(tmp_path / "two", steps=120, only="hopper/replay")
    assert "(there already): " in capsys.readouterr().out


def test_a_name_that_is_none_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(
        typer.BadParameter, match="--only ant: no data set of that name; there are brpo/halfcheetah/medium-v0"
    ):
        recordings.main(tmp_path, only="ant")


def test_agents_without_spread_act_by_their_means() -> None:
    (one,), (two,) = (recordings.recorded("hopper", "medium", 5, seed, spread=0.0) for seed in (0, 0))
    (noisy,) = recordings.recorded("hopper", "medium", 5, 0)
    assert np.array_equal(one["actions"], two["actions"])
    env = gymnasium.make("Hopper-v5")
    space: Any = env.action_space
    still = recordings.policy("hopper", recordings.Part("sac", spread=0.0), space)
    rows = zip(one["observations"], one["actions"], strict=False)  # one observation more
    assert all(np.array_equal(still(observation, np.random.default_rng(9)), action) for observation, action in rows)
    assert not np.array_equal(noisy["actions"], one["actions"])


def test_digests_are_compared_for_recordings_of_the_docs_alone() -> None:
    known = recordings.DIGESTS["brpo/hopper/medium-v0"]
    assert set(recordings.DIGESTS) == set(recordings.DATASETS)
    assert recordings.beside_known("brpo/hopper/medium-v0", known[1] + "0", recordings.STEPS, 1) == ", as in the docs"
    assert known[0] in recordings.beside_known("brpo/hopper/medium-v0", "f" * 64, recordings.STEPS, 0)
    assert recordings.beside_known("brpo/hopper/medium-v0", known[0], 120, 0) == ""
