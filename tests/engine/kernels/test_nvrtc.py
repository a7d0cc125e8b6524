"""CUDA C++ compiled without a GPU, and what is said of a source that does not compile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flame.engine.kernels.kernel import CudaKernel, KernelError
from flame.engine.kernels.nvrtc import architecture, compile_cuda

SOURCE = """
#include "sizes.cuh"
struct Parameters { float* x; int count; float scale[SIZE]; };
extern "C" __global__ void scale(Parameters p, int add) {
    extern __shared__ float tile[];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    tile[threadIdx.x] = p.x[i];
    p.x[i] = tile[threadIdx.x] * p.scale[0] + add + EXTRA;
}
"""


@pytest.fixture
def kernel(tmp_path: Path) -> CudaKernel:
    (tmp_path / "scale.cu").write_text(SOURCE)
    (tmp_path / "sizes.cuh").write_text("constexpr int EXTRA = 3;")
    signature = {"p": "bytes", "add": "i32"}
    return CudaKernel("scale-4", str(tmp_path / "scale.cu"), "scale", signature, {"SIZE": 4}, 128, 512)


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
def test_a_source_with_its_header_compiles_for(kernel: CudaKernel, capability: int) -> None:
    cubin = compile_cuda(kernel, capability)
    assert cubin.code.startswith(b"\x7fELF")
    assert (cubin.name, cubin.entry, cubin.threads, cubin.shared) == ("scale-4", "scale", 128, 512)
    assert (cubin.signature, cubin.hidden) == (("bytes", "i32"), 0)


def test_constants_reach_the_code(kernel: CudaKernel) -> None:
    assert compile_cuda(kernel, 90).code == compile_cuda(kernel, 90).code
    assert compile_cuda(replace(kernel, defines={"SIZE": 8}), 90).code != compile_cuda(kernel, 90).code


def test_an_empty_log_is_written_into_memory_of_our_own(kernel: CudaKernel) -> None:
    """Python has one object for each single byte, and the compiler writes into what it is given."""
    compile_cuda(kernel, 90)
    assert [value for value in range(256) if bytes([value]) != bytes(bytearray([value, 0]))[:-1]] == []
    assert b" ".decode() == " "


def test_what_the_compiler_says_is_told(kernel: CudaKernel) -> None:
    with pytest.raises(KernelError, match=r'(?s)kernel scale-4 does not compile.*identifier "SIZE" is undefined'):
        compile_cuda(replace(kernel, defines={}), 90)


def test_an_architecture_that_does_not_exist_is_told(kernel: CudaKernel) -> None:
    with pytest.raises(KernelError, match="kernel scale-4 does not compile"):
        compile_cuda(kernel, 11)


def test_cubins_use_the_instructions_of_their_own_architecture() -> None:
    assert [architecture(capability) for capability in (80, 89, 90, 100)] == ["sm_80", "sm_89", "sm_90a", "sm_100a"]
