"""Statistics of reports against numbers computed by hand, scipy's tests and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from brpo.reports import statistics


def arrays(*tasks: list[float]) -> list[np.ndarray]:
    return [np.array(task) for task in tasks]


def test_mean_of_tasks_weighs_tasks_and_not_runs() -> None:
    """(2 + 10) / 2, though the first task has three runs."""
    assert statistics.mean_of_tasks(*arrays([1.0, 2.0, 3.0], [10.0])) == pytest.approx(6.0)


def test_iqm_cuts_a_quarter_at_each_end_of_all_runs() -> None:
    """Of 1..8 the middle four are 3, 4, 5, 6; of three runs none is cut."""
    assert statistics.iqm(*arrays([8.0, 1.0, 3.0, 4.0], [2.0, 7.0, 5.0, 6.0])) == pytest.approx(4.5)
    assert statistics.iqm(*arrays([-100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0])) == pytest.approx(3.5)
    assert statistics.iqm(*arrays([0.0, 1.0, 5.0])) == pytest.approx(2.0)


def repeated(tasks: list[np.ndarray]) -> np.ndarray:
    """Runs of tasks with 2, 3 and 5 of them, repeated to 30 each."""
    return np.concatenate([np.repeat(task, 30 // len(task)) for task in tasks])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_every_task_counts_the_same_in_pooled_statistics(seed: int) -> None:
    """Against scipy, and a plain mean, on runs that are repeated until all tasks have as many."""
    rng = np.random.default_rng(seed)
    tasks = [rng.normal(k, 2.0, size) for k, size in enumerate((2, 3, 5))]
    assert statistics.iqm(*tasks) == pytest.approx(stats.trim_mean(repeated(tasks), 0.25), abs=1e-12)
    assert statistics.worst_tenth(*tasks) == pytest.approx(np.sort(repeated(tasks))[:9].mean(), abs=1e-12)
    equal = [rng.normal(size=7) for _ in range(3)]
    assert statistics.iqm(*equal) == pytest.approx(stats.trim_mean(np.concatenate(equal), 0.25), abs=1e-12)
    rows = [rng.normal(size=(4, size)) for size in (3, 5)]  # as the bootstrap calls it
    assert statistics.iqm(*rows, axis=-1) == pytest.approx(
        [float(statistics.iqm(*(row[k] for row in rows))) for k in range(4)]
    )


def test_interval_resamples_within_tasks() -> None:
    """Tasks a hundred apart whose runs agree: drawn within tasks nothing varies, drawn across them the mean would."""
    low, high = statistics.interval(statistics.mean_of_tasks, arrays([1.0, 1.0, 1.0], [101.0, 101.0])) or (0, 0)
    assert (low, high) == (51.0, 51.0)


def test_interval_of_two_runs_is_known() -> None:
    """Means of two draws from {0, 1} are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4: the 95 % interval is [0, 1]."""
    assert statistics.interval(statistics.mean_of_tasks, arrays([0.0, 1.0])) == (0.0, 1.0)


def test_interval_is_that_of_the_normal_limit_and_the_same_twice() -> None:
    values = np.random.default_rng(1).normal(50.0, 10.0, 400)
    found = statistics.interval(statistics.mean_of_tasks, [values])
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert found == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1)
    assert statistics.interval(statistics.mean_of_tasks, [values]) == found


def test_one_run_has_no_interval() -> None:
    assert statistics.interval(statistics.iqm, arrays([1.0, 2.0], [3.0])) is None
    assert statistics.interval(statistics.iqm, []) is None


def test_improvement_is_the_share_of_pairs() -> None:
    """Pairs of (2, 3) against (1, 2): 2 > 1, 2 = 2, 3 > 1, 3 > 2: 3.5 of 4."""
    assert statistics.improvement(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(0.875)
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(size=7), rng.normal(0.3, size=5)
    expected = stats.mannwhitneyu(ours, theirs).statistic / 35
    assert statistics.improvement(ours, theirs) == pytest.approx(expected)


def test_probability_of_improvement_is_the_mean_over_tasks_and_complementary() -> None:
    """Always better on the first task, never on the second of three, always on the third."""
    ours = arrays([2.0, 3.0], [0.0, 0.0], [5.0, 6.0])
    theirs = arrays([0.0, 1.0], [1.0, 2.0], [1.0, 1.0])
    value, found = statistics.probability_of_improvement(ours, theirs)
    assert (value, found) == (pytest.approx(2 / 3), pytest.approx((2 / 3, 2 / 3)))
    assert statistics.probability_of_improvement(theirs, ours)[0] == pytest.approx(1 / 3)
    assert statistics.probability_of_improvement(ours, ours[::-1])[1] is not None
    assert statistics.probability_of_improvement(arrays([1.0]), arrays([0.0])) == (1.0, None)


def test_performance_profile() -> None:
    """At 5: two of three runs of the first task, none of the second. It falls, and lies in its band."""
    tasks = arrays([1.0, 6.0, 9.0], [4.0, 5.0])
    shares, band = statistics.performance_profile(tasks, np.array([0.0, 5.0, 10.0]))
    assert shares == pytest.approx([1.0, 1 / 3, 0.0])
    assert band is not None
    assert (band[0] <= shares).all() and (shares <= band[1]).all() and band[1][1] > band[0][1]
    assert statistics.performance_profile(arrays([1.0], [2.0]), np.array([1.5]))[1] is None
