"""The best single-precision matrix rate of this machine, the ceiling that CPU engines are held against."""

from __future__ import annotations

import time

import torch


def matrix_rate(threads: int, *, size: int = 2048, rounds: int = 12) -> float:
    """GFLOP/s of PyTorch's square product of `size`, the best of `rounds`.

    Sets PyTorch's number of threads for the time it runs. Other load lowers it: measure in the same run, interleaved
    with what is compared.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
        torch.mm(left, right, out=out)
        return 2e-9 * size**3 / min(_seconds(left, right, out) for _ in range(rounds))
    finally:
        torch.set_num_threads(before)


def _seconds(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(left, right, out=out)
    return time.perf_counter() - start
