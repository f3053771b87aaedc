import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from brpo.datasets import statistics, transforms
from brpo.datasets.datamodule import OfflineDataModule, batch_indices, chunks_until_evaluation
from brpo.datasets.minari_io import Columns
from brpo.datasets.transitions import EpisodeDraw, Transitions
from brpo.errors import UserError
from brpo.functional import streams
from brpo.types import DataSpec
from tests.conftest import random_episode, write_dataset

OPTIONS: dict[str, Any] = {
    "storage": "device",
    "normalize_observations": False,
    "reward_scale": 1.0,
    "reward_shift": 0.0,
    "heldout": 0.25,
    "evaluate_every": 10,
    "max_updates": 25,
    "chunk": 4,
}


def make(dataset_id: str = "tests/pendulum/tiny-v0", **changes: Any) -> OfflineDataModule:
    datamodule = OfflineDataModule(dataset_id, **{**OPTIONS, **changes})
    datamodule.setup()
    return datamodule


def test_split_is_by_whole_episodes(datasets: Path) -> None:
    datamodule = make()
    assert datamodule.heldout_transitions is not None
    assert (len(datamodule.train_transitions), len(datamodule.heldout_transitions)) == (9 * 20, 3 * 20)
    rows = {row.tobytes() for row in datamodule.flat.rows}
    train = {row.numpy().tobytes() for row in datamodule.train_transitions.rows}
    heldout = {row.numpy().tobytes() for row in datamodule.heldout_transitions.rows}
    assert train | heldout == rows
    assert not train & heldout
    held = {
        int(np.flatnonzero((datamodule.flat.rows == r.numpy()).all(1))[0]) // 20 for r in datamodule.heldout_transitions.rows
    }
    assert len(held) == 3  # three whole episodes


def test_the_parts_of_a_split_are_views_of_one_matrix(datasets: Path) -> None:
    """Held-out episodes last; lengths, returns and ends of the episodes follow their rows."""
    rng = np.random.default_rng(4)
    write_dataset(datasets, "tests/uneven-v0", [random_episode(rng, 3 + 2 * k) for k in range(9)])
    datamodule = make("tests/uneven-v0")
    flat, heldout = datamodule.flat, datamodule.heldout_transitions
    assert heldout is not None
    assert datamodule.train_transitions.rows.data_ptr() == flat.rows.ctypes.data
    assert heldout.rows.data_ptr() == flat.rows[-len(heldout) :].ctypes.data
    assert len(heldout) == flat.lengths[-2:].sum()
    observation, _, reward, _, next_observation, _ = flat.columns.slices
    for rows, total in zip(np.split(flat.rows, np.cumsum(flat.lengths)[:-1]), flat.returns, strict=True):
        assert np.array_equal(rows[1:, observation], rows[:-1, next_observation])
        assert rows[:, reward].sum() == pytest.approx(total, abs=1e-4)


def test_nothing_is_held_out_on_request_or_of_a_single_episode(datasets: Path) -> None:
    assert make(heldout=0.0).heldout_transitions is None
    write_dataset(datasets, "tests/single-v0", [random_episode(np.random.default_rng(0), 5)])
    datamodule = make("tests/single-v0")
    assert datamodule.heldout_transitions is None
    assert datamodule.diagnostic_batch(2).observations.shape == (2, 5, 3)


def test_normalization_and_its_inverse(datasets: Path) -> None:
    plain, normalized = make(heldout=0.0), make(heldout=0.0, normalize_observations=True)
    rows = normalized.train_transitions.rows[:, :3]
    assert torch.allclose(rows.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(rows.std(0, correction=0), torch.ones(3), atol=2e-3)
    restored = rows * torch.tensor(normalized.spec.observation_std) + torch.tensor(normalized.spec.observation_mean)
    assert torch.allclose(restored, plain.train_transitions.rows[:, :3], atol=1e-5)
    observation, *_, next_observation, _ = normalized.flat.columns.slices  # 12 episodes of 20
    seen, followed = (normalized.flat.rows[:, columns].reshape(12, 20, 3) for columns in (observation, next_observation))
    assert np.array_equal(seen[:, 1:], followed[:, :-1])  # what follows is in the same units


def test_reward_scale_of_the_return_range(datasets: Path) -> None:
    plain, scaled = make(heldout=0.0), make(heldout=0.0, reward_scale="return_range", reward_shift=-1.0)
    returns = plain.flat.returns
    factor = 1000.0 / (returns.max() - returns.min())
    reward = plain.flat.columns.slices[2]
    assert scaled.spec.reward_scale == pytest.approx(factor)
    expected = plain.train_transitions.rows[:, reward] * factor - 1.0
    assert torch.allclose(scaled.train_transitions.rows[:, reward], expected, rtol=1e-5, atol=1e-3)


def test_reward_factor_edge_cases() -> None:
    assert transforms.reward_factor("return_range", np.array([3.0, 3.0]), 3.0) == 1.0
    assert transforms.reward_factor("return_range", np.array([0.1 + 0.2, 0.3]), 0.3) == 1.0  # equal but for rounding
    assert transforms.reward_factor("return_range", np.array([-1.0, 1.0]), 9e5) == 500.0
    assert transforms.reward_factor(2, np.array([1.0]), 1.0) == 2.0
    for bad in ("range", 0.0, -1.0, True, None, math.inf, [1.0]):
        with pytest.raises(ValueError, match=r"data.reward_scale=.* is not allowed"):
            transforms.reward_factor(bad, np.array([1.0]), 1.0)


def test_heldout_out_of_range() -> None:
    with pytest.raises(UserError, match=r"data.heldout=1.0 is not allowed; it must be a share of the episodes in \[0, 1\)"):
        OfflineDataModule("a-v0", **{**OPTIONS, "heldout": 1.0})


@pytest.mark.parametrize("draw", [None, EpisodeDraw.of(np.full(10, 100), np.arange(10.0))], ids=["uniform", "weighted"])
def test_batches_do_not_depend_on_group_chunk_or_history(draw: EpisodeDraw | None) -> None:
    """The indices of update t of seed s are a function of (s, t)."""
    transitions = Transitions(torch.zeros(1000, 6), Columns(1, 1), draw)
    together = batch_indices(torch.tensor([3, 7]), torch.arange(10, 20), 32, transitions)
    alone = batch_indices(torch.tensor([7]), torch.arange(12, 13), 32, transitions)
    assert torch.equal(together[2, 1], alone[0, 0])
    assert not torch.equal(together[2, 1], together[3, 1])
    assert not torch.equal(together[2, 0], together[2, 1])


def test_episodes_are_drawn_by_their_weights_and_their_transitions_alike() -> None:
    lengths, weights = np.array([3, 0, 50, 7, 4]), np.array([0.0, 1.0, 0.02, 1.0, 0.5])
    count = 200_000
    drawn = EpisodeDraw.of(lengths, weights).draw(streams.key(torch.arange(1), streams.purpose("test")), count)
    expected = np.repeat(weights, lengths)
    expected *= count / expected.sum()
    seen = np.bincount(drawn.flatten().numpy(), minlength=64)
    assert len(seen) == 64 and (seen[:3] == 0).all()  # what weighs nothing is never drawn
    assert scipy.stats.chisquare(seen[3:], expected[3:]).pvalue > 1e-3


def test_draws_at_the_ends_stay_within_their_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and the largest number that is drawn, and those beside a border between two episodes."""
    draw = EpisodeDraw.of(np.array([1, 3, 2]), np.array([3.0, 1.0, 1.0]))  # shares 3/8, 3/8, 2/8
    borders = [2.0**-53, 0.375 - 2.0**-53, 0.375, 0.5, 0.75 - 2.0**-53, 0.75, 0.875, 1.0 - 2.0**-53]
    monkeypatch.setattr(streams, "uniform", lambda keys, shape, dtype: torch.tensor([borders], dtype=dtype))
    assert draw.draw(torch.zeros(1).long(), len(borders)).tolist() == [[0, 0, 1, 2, 3, 4, 5, 5]]
    assert draw.effective == pytest.approx(1 / (2 * 0.375**2 + 0.25**2))


def test_the_data_module_draws_by_returns(datasets: Path) -> None:
    """An episode's share among batches is what its return says; held-out episodes keep out, the data stay as they are."""
    plain, weighted = make(), make(return_temperature=0.5)
    assert plain.train_transitions.episodes is None
    assert torch.equal(plain.train_transitions.rows, weighted.train_transitions.rows) and plain.spec == weighted.spec
    returns, lengths = weighted.flat.returns[:9], weighted.flat.lengths[:9]
    shares = lengths * np.exp(2.0 * returns / np.ptp(returns))
    indices = batch_indices(torch.arange(2), torch.arange(50), 500, weighted.train_transitions)
    seen = np.bincount(np.searchsorted(np.cumsum(lengths), indices.flatten().numpy(), side="right"), minlength=9)
    assert scipy.stats.chisquare(seen, shares / shares.sum() * seen.sum()).pvalue > 1e-3
    (notice,) = (text for text in statistics.notices(weighted) if "return_temperature" in text)
    effective = shares.sum() ** 2 / (shares**2).sum()
    assert f"data.return_temperature=0.5: batches are as of {effective:.1f} of the 9 training episodes" in notice
    assert weighted.heldout_transitions is not None and weighted.heldout_transitions.episodes is None


def test_equal_returns_weigh_the_same(datasets: Path) -> None:
    write_dataset(datasets, "tests/alike-v0", [random_episode(np.random.default_rng(0), 5)] * 3)
    datamodule = make("tests/alike-v0", return_temperature=0.1)
    (notice,) = (text for text in statistics.notices(datamodule) if "return_temperature" in text)
    assert notice == "all returns are equal: data.return_temperature=0.1 has no effect"
    draw = datamodule.train_transitions.episodes
    assert draw is not None and draw.effective == pytest.approx(len(draw.lengths))


def test_episodes_weighted_by_return_are_those_of_the_regularized_optimum() -> None:
    """Deterministic dynamics, no discount: the policy in re-weighted episodes is that of soft values, by backward induction.

    Every way of three actions among three, rewards of the whole way so far, and a behaviour that differs by state.
    """
    rng, temperature = np.random.default_rng(3), 0.3
    ways = list(itertools.product(range(3), repeat=3))
    reward = {way[:t]: rng.normal() for way in ways for t in (1, 2, 3)}
    behavior = {way[:t]: rng.dirichlet(np.ones(3)) for way in ways for t in (0, 1, 2)}
    returns = np.array([sum(reward[way[:t]] for t in (1, 2, 3)) for way in ways])
    eta = temperature * np.ptp(returns)

    def q(way: tuple[int, ...]) -> float:
        return reward[way] + (value(way) if len(way) < 3 else 0.0)

    def value(way: tuple[int, ...]) -> float:
        return eta * math.log(sum(behavior[way][a] * math.exp(q((*way, a)) / eta) for a in range(3)))

    recorded = np.array([math.prod(behavior[way[:t]][way[t]] for t in range(3)) for way in ways])
    weighted = recorded * transforms.return_weights(returns, np.abs(returns).max(), temperature)
    for begun in behavior:
        through = np.array([way[: len(begun)] == begun for way in ways])
        for action in range(3):
            taken = np.array([way[: len(begun) + 1] == (*begun, action) for way in ways])
            optimal = behavior[begun][action] * math.exp((q((*begun, action)) - value(begun)) / eta)
            assert weighted[taken].sum() / weighted[through].sum() == pytest.approx(optimal, rel=1e-9)


def test_gather_gives_the_rows(datasets: Path) -> None:
    datamodule = make(heldout=0.0)
    indices = torch.tensor([[0, 5], [7, 19]])
    batch = datamodule.train_transitions.gather(indices)
    observation, action, reward, terminated, next_observation, next_action = datamodule.flat.columns.slices
    rows = datamodule.train_transitions.rows[indices]
    assert torch.equal(batch.observations, rows[..., observation])
    assert torch.equal(batch.actions, rows[..., action])
    assert torch.equal(batch.rewards, rows[..., reward].squeeze(-1))
    assert torch.equal(batch.terminated, rows[..., terminated].squeeze(-1))
    assert torch.equal(batch.next_observations, rows[..., next_observation])
    assert torch.equal(batch.next_actions, rows[..., next_action])


def test_chunks_end_at_evaluations_and_at_the_end() -> None:
    assert list(chunks_until_evaluation(0, 4, 10, 25)) == [(0, 4), (4, 8), (8, 10)]
    assert list(chunks_until_evaluation(10, 4, 10, 25)) == [(10, 12), (12, 16), (16, 20)]
    assert list(chunks_until_evaluation(20, 4, 10, 25)) == [(20, 24), (24, 25)]
    assert list(chunks_until_evaluation(25, 4, 10, 25)) == []
    # a run that was resumed at a chunk's end has the chunks of an uninterrupted one
    assert list(chunks_until_evaluation(4, 4, 10, 25)) == [(4, 8), (8, 10)]


def test_spec_survives_a_checkpoint(datasets: Path) -> None:
    spec = make().spec
    assert DataSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ValueError, match="DataSpec has the keys"):
        DataSpec.from_dict({"digest": ""})


def test_a_constant_column_is_only_shifted_and_a_narrow_one_is_scaled() -> None:
    """Divided by the usual 1e-3, a sensor that is off by 1 would be 1,000 units away; added to 1e-5, it would hide it."""
    mean, std = np.array([230.0, 0.0, 1e-4, 5.0]), np.array([1e-6, 0.0, 1e-5, 2.0])
    units = transforms.Units.of_observations(mean, std, True, factor=1.0, shift=0.0)
    assert units.std.tolist() == pytest.approx([1.0, 1.0, 1e-5, 2.001])
    assert units.mean.tolist() == pytest.approx(mean.tolist())
    raw = transforms.Units.of_observations(mean, std, False, factor=1.0, shift=0.0)
    assert raw.std.tolist() == [1.0] * 4 and raw.mean.tolist() == [0.0] * 4


def test_what_networks_would_fit_badly_is_said(datasets: Path) -> None:
    rng, episodes = np.random.default_rng(0), []
    for _ in range(4):
        episode = random_episode(rng, 5)
        episode["observations"][:, 0] = 230.0
        episode["observations"][:, 2] += 1e5
        episodes.append(episode)
    write_dataset(datasets, "tests/scales-v0", episodes)
    constant, far = statistics.notices(make("tests/scales-v0"))
    assert constant.startswith("observation 0 is constant")
    assert far.startswith("observation 2 is taken as recorded") and "data.normalize_observations=true" in far
    assert statistics.notices(make("tests/scales-v0", normalize_observations=True)) == [constant]
    assert statistics.notices(make()) == []


def test_a_single_episode_has_no_range_of_returns(datasets: Path) -> None:
    write_dataset(datasets, "tests/alone-v0", [random_episode(np.random.default_rng(0), 5)])
    alone, unscaled = statistics.notices(make("tests/alone-v0", reward_scale="return_range"))
    assert "nothing to hold out" in alone and "data.reward_scale=NUMBER" in unscaled


@pytest.mark.parametrize("storage", ["device", "memmap"])
def test_rounding_is_no_range_of_returns(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that cancel within each episode: what is left of them are the roundings of float32."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng, episodes = np.random.default_rng(0), []
    for _ in range(20):
        rewards = rng.normal(size=200).astype(np.float32)
        episodes.append({**random_episode(rng, 200), "rewards": rewards - rewards.mean()})
    write_dataset(tmp_path, "tests/centred-v0", episodes)
    options = {"storage": storage, "heldout": 0.1, "reward_scale": "return_range", "return_temperature": 0.1}
    datamodule = make("tests/centred-v0", **options)
    assert 0.0 < np.ptp(datamodule.flat.returns) < 1e-4 < 100.0 < datamodule.flat.gross
    assert datamodule.spec.reward_scale == 1.0
    equal = [text for text in statistics.notices(datamodule) if text.startswith("all returns are equal")]
    assert ["reward_scale" in text for text in equal] == [True, False]
    draw = datamodule.train_transitions.episodes
    assert draw is not None and draw.effective == pytest.approx(18.0)


@pytest.mark.parametrize(
    "options",
    [
        {"heldout": "0.1"}, {"reward_shift": math.nan}, {"normalize_observations": "no"}, {"storage": "disk"},
        {"return_temperature": 0.0}, {"return_temperature": "low"},
    ],
)  # fmt: skip
def test_options_of_a_wrong_kind_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"data.{name}=.* is not allowed"):
        OfflineDataModule("tests/pendulum/tiny-v0", **{**OPTIONS, **options})
