"""Freed memory that a process keeps."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

from dp_basicsr.runs.limits import keep_freed_memory

import pytest

from tests.support.processes import CONTEXT


def count_faults(keep: bool, file: str) -> None:
    """Count the page faults of writing 64 MiB a second time, after it was freed."""
    assert not keep or keep_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    faults = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = ctypes.c_void_p(libc.malloc(1 << 26))
        ctypes.memset(block, 1, 1 << 26)
        libc.free(block)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    Path(file).write_text(str(faults[1]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has mallopt")
def test_freed_memory_is_not_cleared_again() -> None:
    """In processes of their own, because it cannot be undone."""
    faults = []
    for keep in (True, False):
        process = CONTEXT.Process(target=count_faults, args=(keep, str(Path("faults").absolute())))
        process.start()
        process.join()
        faults.append(int(Path("faults").read_text()))
    assert faults[0] < 100 < faults[1]
