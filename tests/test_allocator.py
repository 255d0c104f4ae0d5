"""Memory that is asked for again is still there."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from semisynth import allocator


def work(times):
    for _ in range(times):
        torch.empty(2**23).fill_(1)


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_is_freed_is_not_mapped_anew():
    assert allocator.keep()
    work(10)
    before = faults()
    work(10)
    assert faults() - before < 20_000  # of 81,920 pages


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep()
