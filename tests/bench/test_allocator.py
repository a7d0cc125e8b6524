"""Freed memory stays with the process, so that a launch that takes and frees it touches no new pages."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import resource, sys
import torch
from flame.bench.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for turn in range(6):
    if turn == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # 48 MiB each: beyond 32 MiB, glibc takes every block from the system, whatever it learned before.
    held = [torch.ones(12 * 2**20) for _ in range(4)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """Pages touched for the first time in three rounds of taking and freeing 192 MiB, after three others."""
    done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_that_was_freed_is_used_again() -> None:
    assert faults("keep") < 100 < faults("usual")
