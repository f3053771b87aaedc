import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from brpo.functional import streams


def reference_splitmix64(state: int) -> int:
    """SplitMix64 in unbounded Python integers."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_known_first_outputs_of_seed_zero() -> None:
    """The published generator's first output for seed 0 is 0xE220A8397B1DCDAF."""
    assert reference_splitmix64(0) == 0xE220A8397B1DCDAF
    assert streams.splitmix64(torch.tensor(0)).item() % (1 << 64) == 0xE220A8397B1DCDAF


@settings(deadline=None)  # machines may be busy
@given(st.integers(-(2**63), 2**63 - 1))
def test_int64_arithmetic_equals_unsigned(state: int) -> None:
    assert streams.splitmix64(torch.tensor(state)).item() % (1 << 64) == reference_splitmix64(state % (1 << 64))


def keys(seeds: int = 1, updates: int = 1, name: str = "test") -> torch.Tensor:
    return streams.key(torch.arange(seeds).unsqueeze(0), streams.purpose(name), torch.arange(updates).unsqueeze(1))


@pytest.mark.parametrize("high", [2, 7, 1000, 60_000])
def test_integers_are_uniform(high: int) -> None:
    drawn = streams.integers(keys(4, 500), 256, high).flatten().numpy()
    assert drawn.min() >= 0
    assert drawn.max() < high
    counts = np.histogram(drawn, bins=min(high, 50), range=(0, high))[0]
    edges = np.linspace(0, high, min(high, 50) + 1)
    expected = np.diff(np.ceil(edges)) / high * drawn.size
    assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_uniform_and_normal_have_their_distributions() -> None:
    assert stats.kstest(streams.uniform(keys(3, 100), (100,), torch.float64).flatten().numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(streams.normal(keys(3, 100), (100,), torch.float64).flatten().numpy(), "norm").pvalue > 1e-4


def test_streams_of_seeds_updates_and_purposes_are_uncorrelated() -> None:
    base = streams.normal(keys(), (20_000,), torch.float64).flatten()
    others = [
        streams.normal(streams.key(torch.tensor([1]), streams.purpose("test"), 0), (20_000,), torch.float64).flatten(),
        streams.normal(streams.key(torch.tensor([0]), streams.purpose("test"), 1), (20_000,), torch.float64).flatten(),
        streams.normal(keys(name="other"), (20_000,), torch.float64).flatten(),
        base.roll(1),
    ]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([base, other]))[0, 1].item()) < 5 / 20_000**0.5


def test_a_seed_draws_the_same_alone_and_in_a_group() -> None:
    group = streams.normal(streams.key(torch.tensor([3, 7, 11]), streams.purpose("x"), torch.tensor(5)), (4, 2))
    alone = streams.normal(streams.key(torch.tensor([7]), streams.purpose("x"), torch.tensor(5)), (4, 2))
    assert torch.equal(group[1], alone[0])


def test_uniform_never_gives_zero_or_one() -> None:
    """An inverse distribution function of 0 or 1 would be infinite."""
    extremes = (torch.tensor([0, 2**52 - 1]).double() + 0.5) * 2.0**-52
    assert extremes[0] > 0
    assert extremes[1] < 1
    assert torch.special.ndtri(extremes).isfinite().all()
    assert streams.normal(keys(50, 50), (100,)).isfinite().all()


@pytest.mark.parametrize("high", [0, -1, 1 << 31])
def test_refuses_ranges_it_cannot_draw_from(high: int) -> None:
    with pytest.raises(ValueError, match=r"high must be in \[1, 2\^31\)"):
        streams.integers(keys(), 1, high)
