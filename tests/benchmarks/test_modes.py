"""Which ways of acting `benchmarks/modes.py` evaluates, and its table."""

import modes

from tests.helpers import compose_config


def test_ways_of_each_kind_of_policy() -> None:
    """Candidates are for BDPO; the mean of diffusion cloning is what no noise gives, that of a Gaussian is its mean."""
    gaussian, cloning, bdpo = (compose_config(f"algo={algo}")["algo"] for algo in ("bc", "diffusion_bc", "bdpo"))
    assert [list(modes.ways(algo, [])) for algo in (gaussian, cloning, bdpo)] == [["mean", "sampled"]] * 3
    assert list(modes.ways(gaussian, [0, 2])) == ["mean", "sampled"]
    assert list(modes.ways(cloning, [0, 2])) == ["no noise", "sampled"]
    assert modes.ways(bdpo, [0, 2]) == {
        "no noise": {"mode": "mean", "acting": {"candidates": 0}},
        "best of 2": {"mode": "mean", "acting": {"candidates": 2}},
        "sampled": {"mode": "sampled"},
    }


def test_table_leaves_open_what_was_not_evaluated() -> None:
    results = [
        {"dataset": "a/b-v0", "algo": algo, "mode": mode, "score": score}
        for algo, mode, score in (("BDPO", "best of 2", 3.0), ("BDPO", "best of 2", 5.0), ("DiffusionBC", "sampled", 1.0))
    ]
    assert modes.table(results).splitlines() == [
        "| data set | method | best of 2 | sampled |",
        "|---|---|---|---|",
        "| `a/b-v0` | BDPO | 4.0 ± 1.0 | - |",
        "| `a/b-v0` | DiffusionBC | - | 1.0 |",
    ]
