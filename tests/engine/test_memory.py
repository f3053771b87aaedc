"""Freed memory that stays with the process."""

import platform
import resource

import pytest
import torch

from brpo.engine import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_freed_tensor_is_taken_again_without_a_page_fault() -> None:
    assert memory.keep_freed()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            first = torch.empty(4 * 2**20, dtype=torch.uint8).fill_(1)  # a thousand pages
            first.clone()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 5000  # each would be new: 20,000


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not memory.keep_freed()
