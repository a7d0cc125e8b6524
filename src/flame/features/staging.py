"""Buffers that requests are packed into: page-aligned, reused, and page-locked where a GPU reads them."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.features.memory import allocate
from flame.layout import Words

_log = logging.getLogger(__name__)

_PAGE_WORDS = 1024


class StagingPool:
    """Hands out buffers of int32 words; safe for any number of threads.

    As many buffers can be out as callers take: admission bounds them. What comes back is kept for the next request,
    up to `keep_bytes` in all. With `pinned`, buffers are page-locked so that GPUs read them where they lie, if CUDA
    does that.
    """

    def __init__(self, *, pinned: bool = False, keep_bytes: int = 256 * 2**20) -> None:
        self._pins = _Pins() if pinned else None
        self._keep_bytes = keep_bytes
        self._kept_bytes = 0
        self._free: dict[int, list[Words]] = {}
        self._out: dict[int, Words] = {}
        self._lock = threading.Lock()

    @property
    def pinned(self) -> bool:
        """Whether GPUs read all buffers that were handed out so far where they lie."""
        return self._pins is not None and self._pins.all_pinned

    def take(self, words: int) -> Words:
        """A buffer of exactly `words` words, nobody else's until it is released; its contents may be anything."""
        size = size_class(words)
        with self._lock:
            shelf = self._free.get(size)
            buffer = shelf.pop() if shelf else None
            if buffer is not None:
                self._kept_bytes -= buffer.nbytes
        if buffer is None:
            buffer = self._new(size)
        with self._lock:
            self._out[_address(buffer)] = buffer
        return buffer[:words]

    def release(self, words: Words) -> None:
        """Takes back what `take` gave; nobody may read or write it afterwards. Once only, which is asserted."""
        with self._lock:
            buffer = self._out.pop(_address(words), None)
            assert buffer is not None, "a staging buffer was released twice, or is not of this pool"
            kept = self._kept_bytes + buffer.nbytes <= self._keep_bytes
            if kept:
                self._kept_bytes += buffer.nbytes
                self._free.setdefault(len(buffer), []).append(buffer)
        if not kept and self._pins is not None:
            self._pins.unregister(buffer)

    def close(self) -> None:
        """Drops the buffers that are not out, and those that are when they come back."""
        with self._lock:
            self._keep_bytes = 0
            dropped = [buffer for shelf in self._free.values() for buffer in shelf]
            self._free, self._kept_bytes = {}, 0
        if self._pins is not None:
            for buffer in dropped:
                self._pins.unregister(buffer)

    def _new(self, size: int) -> Words:
        buffer = allocate((size,), np.int32)
        if self._pins is not None:
            self._pins.register(buffer)
        return buffer


def size_class(words: int) -> int:
    """`words` rounded up to whole pages, and above four pages to a quarter of a power of two."""
    pages = max(1, -(-words // _PAGE_WORDS))
    step = 1 << max(0, (pages - 1).bit_length() - 3)
    return -(-pages // step) * step * _PAGE_WORDS


def _address(words: Words) -> int:
    address: int = words.__array_interface__["data"][0]
    return address


_PORTABLE, _MAPPED = 1, 2
"""`cudaHostRegisterPortable` and `Mapped`: page-locked for every device of the process, not for the thread's current
one alone, and at the same address for all of them."""


class _Pins:
    """Page-locks memory through CUDA; without CUDA it says so once and leaves memory as it is.

    `all_pinned` as long as all that was registered is: at the host's own address, as with unified addressing it is for
    every GPU of an x86 machine with Linux.
    """

    def __init__(self) -> None:
        import torch

        self._runtime: Any = torch.cuda.cudart() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
        self.all_pinned = self._runtime is not None
        if self._runtime is None:
            _log.warning("no CUDA device: staging buffers are not page-locked")

    def register(self, buffer: NDArray[np.int32]) -> None:
        if self._runtime is not None:
            status = self._runtime.cudaHostRegister(_address(buffer), buffer.nbytes, _PORTABLE | _MAPPED)
            if not self._done(status, "register"):
                self.all_pinned = False

    def unregister(self, buffer: NDArray[np.int32]) -> None:
        if self._runtime is not None:
            self._done(self._runtime.cudaHostUnregister(_address(buffer)), "unregister")

    def _done(self, status: Any, what: str) -> bool:
        if int(status) != 0:
            _log.warning("cannot %s page-locked memory: CUDA error %s; the host copies requests", what, int(status))
        return int(status) == 0
