"""Numbers that a client declares, against what it sends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.errors import InvalidTensor, RequestError
from flame.server import tensors


def test_bytes_become_a_view_of_them() -> None:
    data = np.arange(6, dtype="<i8").tobytes()
    values = tensors.from_bytes("candidates", "INT64", [2, 3], data)
    assert values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.shares_memory(values, np.frombuffer(data, "<i8"))


def test_bytes_at_an_odd_place_are_read_right() -> None:
    data = b"x" + np.array([7, -8], "<i8").tobytes()
    values = tensors.from_bytes("candidates", "INT64", [1, 2], memoryview(data)[1:])
    assert values.tolist() == [[7, -8]]
    assert values.flags.aligned


@pytest.mark.parametrize(
    ("datatype", "shape", "size", "said"),
    [
        ("INT64", [1, 2], 15, "15 bytes"),
        ("INT64", [1, 2], 17, "needs 16"),
        ("INT64", [1, 0], 1, "1 bytes"),
        ("FP64", [1], 8, "'FP64'"),
        ("", [1], 8, "''"),
        ("INT64", [-1, 2], 16, "dimension of -1"),
        ("INT64", [2**40, 2**40], 16, str(2**40)),
        ("INT64", [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], 0, "shape"),
        ("INT64", [], 8, "0 dimensions"),
        ("INT64", [1] * 40, 8, "40 dimensions"),
    ],
)
def test_what_does_not_fit_is_named(datatype: str, shape: list[int], size: int, said: str) -> None:
    with pytest.raises(InvalidTensor, match="tensor 'ids'") as caught:
        tensors.from_bytes("ids", datatype, shape, bytes(size))
    assert said in str(caught.value)


@pytest.mark.parametrize("numbers", [[1, 2, 3, 4], [[1, 2], [3, 4]]], ids=["flat", "nested"])
def test_numbers_lie_flat_or_nested(numbers: list[int]) -> None:
    values = tensors.from_numbers("ids", "INT64", [2, 2], numbers)
    assert values.dtype == np.int64
    assert values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "numbers", [[1, 2, 3], [[1, 2, 3, 4]], [[1, 2], [3]], [2**63, 0, 0, 0], [[[1], [2]], [[3], [4]]]]
)
def test_numbers_of_another_shape_or_size_are_refused(numbers: list[int]) -> None:
    with pytest.raises(InvalidTensor, match="ids"):
        tensors.from_numbers("ids", "INT64", [2, 2], numbers)


def test_a_name_comes_once() -> None:
    with pytest.raises(InvalidTensor, match="'user_id' is given twice"):
        tensors.named([("user_id", np.zeros(1)), ("user_id", np.zeros(1))])


def test_a_long_name_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidTensor) as caught:
        tensors.from_bytes("n" * 10**6, "INT64", [1], b"")
    assert len(str(caught.value)) < 300


@settings(deadline=None)
@given(
    st.text(max_size=8),
    st.sampled_from([*tensors.DATATYPES, "BYTES", "BOOL"]),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=6),
    st.binary(max_size=64),
)
def test_any_declaration_of_any_bytes_is_a_tensor_or_a_request_error(
    name: str, datatype: str, shape: list[int], data: bytes
) -> None:
    try:
        values = tensors.from_bytes(name, datatype, shape, data)
    except RequestError:
        return
    assert values.shape == tuple(shape)
    assert values.tobytes() == data
