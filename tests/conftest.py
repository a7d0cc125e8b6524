"""What holds for all tests: signals as in a foreground shell, how kernels run, threads, and the C++ compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from flame.engine.kernels.cpu.compiler import CompileError, find_compiler
from tests.compile_once import COMPILER, FOLDER

# A shell ignores Ctrl-C for what it starts in the background, and children inherit that: the tests that interrupt a
# process would wait for ever. A signal that is handled here is back to its default in a child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Every worker of the run keeps one core busy. PyTorch's own threads, one for each core, would only spin while they
# wait for the next of many small operations: tests of the oracle took five times as much of the processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton decides when it is imported whether it interprets or compiles, so this process does one of the two. The
# driver's own files tell whether there is a GPU: torch takes seconds to import, and most tests do without.
HAS_DRIVER = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
if not HAS_DRIVER:
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Puts `compile_once.py` in the compiler's place, for this process and all that it starts: workers and servers."""
    if FOLDER in os.environ:
        return
    try:
        compiler = find_compiler()
    except CompileError:
        return
    folder = tempfile.TemporaryDirectory(prefix="flame-libraries-")
    config.add_cleanup(folder.cleanup)
    os.environ |= {
        COMPILER: shlex.join(compiler),
        FOLDER: folder.name,
        "CXX": str(Path(__file__).with_name("compile_once.py")),
    }


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped where there is none."""
    if item.get_closest_marker("gpu") is None:
        return
    if not HAS_DRIVER:
        pytest.skip("no NVIDIA driver on this machine")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this PyTorch sees no CUDA device")
