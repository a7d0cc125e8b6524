"""Staging buffers: never in two hands, reused, bounded."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.features.staging import StagingPool, size_class


def address(words: np.ndarray) -> int:
    return int(words.__array_interface__["data"][0])


@given(st.integers(1, 10**8))
def test_size_classes_waste_at_most_a_quarter_and_a_page(words: int) -> None:
    size = size_class(words)
    assert words <= size <= words * 1.25 + 1024
    assert size % 1024 == 0
    assert size_class(size) == size


def test_a_buffer_starts_on_a_page_and_is_used_again() -> None:
    pool = StagingPool()
    first = pool.take(5000)
    assert first.shape == (5000,)
    assert address(first) % 4096 == 0
    pool.release(first)
    again = pool.take(4900)
    assert address(again) == address(first)
    other = pool.take(4900)
    assert address(other) != address(first)


def test_releasing_twice_or_what_is_not_ours_is_our_error() -> None:
    pool = StagingPool()
    words = pool.take(10)
    pool.release(words)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(words)
    with pytest.raises(AssertionError, match="not of this pool"):
        pool.release(np.zeros(10, np.int32))


def test_no_more_is_kept_than_allowed() -> None:
    pool = StagingPool(keep_bytes=3 * 4096)
    buffers = [pool.take(1000) for _ in range(10)]
    kept = {address(words) for words in buffers[:3]}
    for words in buffers:
        pool.release(words)
    assert {address(pool.take(1000)) for _ in range(3)} == kept
    pool.close()
    words = pool.take(1000)
    pool.release(words)
    assert pool._kept_bytes == 0


def test_a_buffer_is_in_one_hand_under_threads() -> None:
    pool = StagingPool()
    wrong: list[int] = []

    def run(worker: int) -> None:
        random = np.random.default_rng(worker)
        for _ in range(400):
            held = [pool.take(int(size)) for size in random.integers(1, 9000, 3)]
            for words in held:
                words[:] = worker
            if any((words != worker).any() for words in held):
                wrong.append(worker)
            for words in held:
                pool.release(words)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_cuda_pinned_buffers_are_plain_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    pool = StagingPool(pinned=True)
    assert "not page-locked" in caplog.text
    pool.release(pool.take(100))
    pool.close()


class Runtime:
    """In CUDA's place: registers memory until it is told not to."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.status = 0

    def cudaHostRegister(self, at: int, size: int, flags: int) -> int:  # noqa: N802
        assert flags == 1 | 2, "for every device, and mapped"
        if not self.status:
            self.registered[at] = size
        return self.status

    def cudaHostUnregister(self, at: int) -> int:  # noqa: N802
        return 0 if self.registered.pop(at, None) else 1


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    torch = pytest.importorskip("torch")
    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    return runtime


def test_a_pool_says_whether_gpus_read_its_buffers(runtime: Runtime) -> None:
    assert not StagingPool().pinned
    pool = StagingPool(pinned=True)
    words = pool.take(5000)
    assert pool.pinned
    assert runtime.registered == {address(words): 4 * size_class(5000)}
    pool.release(words)
    pool.close()
    assert not runtime.registered


def test_after_one_buffer_that_cannot_be_page_locked_none_is_said_to_be(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    pool = StagingPool(pinned=True)
    pool.take(100)
    runtime.status = 2
    pool.take(100)
    assert not pool.pinned
    assert "CUDA error 2" in caplog.text
    runtime.status = 0
    pool.take(100)
    assert not pool.pinned


@pytest.mark.gpu
def test_pinned_buffers_are_page_locked_until_they_are_dropped() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    pool = StagingPool(pinned=True, keep_bytes=8192)
    words = pool.take(2000)
    assert torch.from_numpy(words).is_pinned()
    big = pool.take(100_000)
    assert torch.from_numpy(big).is_pinned()
    pool.release(big)
    assert not torch.from_numpy(big).is_pinned(), "dropped memory is page-locked no more"
    pool.release(words)
    assert torch.from_numpy(words).is_pinned(), "kept memory stays page-locked"
    pool.close()
    assert not torch.from_numpy(words).is_pinned()
