"""What is said of two results, by hand."""

import copy
from typing import Any

from brpo.results import agreement

FIRST: dict[str, Any] = {
    "dataset": {"id": "a-v0", "digest": "0"},
    "parts": [{"code": "1"}],
    "versions": {"torch": "2.11", "numpy": "2.4"},
    "engine": {"device": "cpu, 1 thread(s)"},
    "config": {"seeds": 2, "algo": {"x": 1}, "run_dir": "a"},
    "final": {"return": [1.0, 2.0], "score": None},
}


def test_all_the_same() -> None:
    other = copy.deepcopy(FIRST)
    other["config"]["run_dir"] = "b"
    words = "the same data, code, versions, device, options; the final numbers are the same to the last digit"
    assert agreement(FIRST, other) == words


def test_each_that_differs_is_said() -> None:
    other = copy.deepcopy(FIRST)
    other["dataset"]["digest"] = "1"
    other["parts"].append({"code": "2"})
    other["versions"] = {"torch": "2.13", "numpy": "2.4", "minari": "0.5"}
    other["engine"]["device"] = "H100"
    other["config"]["algo"]["x"] = 2
    other["final"]["return"] = [1.0, 4.0]
    assert agreement(FIRST, other) == (
        "other data, other code, other versions (torch 2.11 there and 2.13 here, minari none there and 0.5 here), "
        "other device, other options (algo.x); final return 1.50 ± 0.50 there and 2.50 ± 1.50 here"
    )


def test_code_that_changed_between_the_parts_of_a_run_is_other_code() -> None:
    earlier = copy.deepcopy(FIRST)
    earlier["parts"] = [{"code": "0"}, {"code": "1"}]
    assert "other code" in agreement(earlier, FIRST)


def test_results_of_before_there_was_a_digest_of_the_code() -> None:
    earlier = {key: value for key, value in FIRST.items() if key not in ("parts", "versions", "engine")}
    assert agreement(earlier, FIRST).startswith(
        "the same data, options; other code (there not known), other versions (torch none"
    )
