"""The exponential and what is made of it, on every lane."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from flame.engine.kernels.cpu.compiler import FLAGS, SOURCES, find_compiler

Function = Callable[[int, NDArray[np.float32]], NDArray[np.float32]]

PROGRAM = """
#include "vec.h"
extern "C" void apply(int what, const float* in, float* out, int count) {
    for (int i = 0; i < count; i += flame::LANES) {
        flame::Vec x, y;
        __builtin_memcpy(&x, in + i, sizeof(x));
        y = what == 0 ? flame::exp2(x) : what == 1 ? flame::sigmoid(x) : flame::silu(x);
        __builtin_memcpy(out + i, &y, sizeof(y));
    }
}
"""

TARGETS = {"native": (), "avx2": ("-mno-avx512f",), "none": ("-mno-avx512f", "-mno-avx2", "-mno-avx", "-mno-fma")}


@pytest.fixture(scope="module", params=TARGETS)
def apply(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Function:
    """`apply(which function, values)`, compiled for this processor and as if it had less."""
    folder = tmp_path_factory.mktemp("vec")
    (folder / "vec.cpp").write_text(PROGRAM)
    library = folder / "vec.so"
    extra = TARGETS[request.param]
    command = [*find_compiler(), *FLAGS, *extra, f"-I{SOURCES}", str(folder / "vec.cpp"), "-o", str(library)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode and extra:
        pytest.skip(f"the compiler has no {extra} on this processor: {answer.stderr[:200]}")
    assert not answer.returncode, answer.stderr
    function = ctypes.CDLL(str(library)).apply

    def call(what: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        padded = np.zeros(-(-len(values) // 16) * 16, np.float32)
        padded[: len(values)] = values
        out = np.empty_like(padded)
        function(what, ctypes.c_void_p(padded.ctypes.data), ctypes.c_void_p(out.ctypes.data), len(padded))
        return out[: len(values)]

    return call


def test_powers_of_two_are_right_to_the_last_bits(apply: Function) -> None:
    values = np.linspace(-125, 126, 100_003, dtype=np.float32)
    exact = np.exp2(values.astype(np.float64))
    assert np.abs(apply(0, values) / exact - 1).max() < 3e-7


def test_whole_powers_and_the_ends_of_the_range(apply: Function) -> None:
    whole = np.arange(-126, 127, dtype=np.float32)
    np.testing.assert_array_equal(apply(0, whole), np.exp2(whole))
    far = apply(0, np.array([-1e30, -1000.0, -150.0], np.float32))
    assert ((far >= 0) & (far < 2.0**-125)).all()
    assert (apply(0, np.array([200.0, 1e30], np.float32)) > 2.0**126).all()


@pytest.mark.parametrize("what", [1, 2])
def test_sigmoid_and_silu(what: int, apply: Function) -> None:
    values = np.concatenate([np.linspace(-80, 80, 20_001), [-1e4, 1e4, 0.0]]).astype(np.float32)
    with np.errstate(over="ignore"):
        exact = 1 / (1 + np.exp(-values.astype(np.float64)))
    exact = exact if what == 1 else exact * values
    # e^x has the relative error of x log2(e) in single precision, which grows with |x|.
    np.testing.assert_allclose(apply(what, values), exact, rtol=1e-5, atol=1e-30)
