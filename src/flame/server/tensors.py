"""Input tensors of the Open Inference Protocol as arrays: every number that a client writes is checked here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.errors import InvalidTensor
from flame.server.oip import Values

DATATYPES: dict[str, np.dtype[Any]] = {
    "INT64": np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
    "FP32": np.dtype("<f4"),
}
"""The datatypes a ranker takes, little-endian as the protocol has them."""

_MOST_DIMENSIONS = 16
_LARGEST_DIMENSION = 2**31 - 1
_LARGEST_EXTENT = 2**48
_QUOTED = 64


def quoted(text: str) -> str:
    """A client's text for an error message: in quotes, and cut where it is long."""
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "...")


def datatype_of(values: Values) -> str:
    """The protocol's name of an array's dtype."""
    return next((name for name, dtype in DATATYPES.items() if dtype == values.dtype), str(values.dtype))


def checked(name: str, datatype: str, shape: Sequence[int]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """The dtype, the shape and the number of elements that a tensor declares. Raises `InvalidTensor`."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise InvalidTensor(f"tensor {quoted(name)} has datatype {quoted(datatype)}; a ranker takes {_KNOWN}")
    if not 1 <= len(shape) <= _MOST_DIMENSIONS:
        raise InvalidTensor(f"tensor {quoted(name)} has {len(shape)} dimensions; 1 to {_MOST_DIMENSIONS} are possible")
    count = extent = 1
    for size in shape:
        if not 0 <= size <= _LARGEST_DIMENSION:
            raise InvalidTensor(f"tensor {quoted(name)} has a dimension of {size}; it must lie in [0, 2**31)")
        count *= size
        extent *= size or 1
    if extent > _LARGEST_EXTENT:  # numpy refuses such a shape even where a zero makes it empty
        raise InvalidTensor(f"tensor {quoted(name)} has shape {list(shape)}, which no array can have")
    return dtype, tuple(shape), count


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Values:
    """A read-only view of `data` as a tensor; copies only what no processor reads well, an unaligned start."""
    dtype, sizes, count = checked(name, datatype, shape)
    if len(data) != count * dtype.itemsize:
        raise InvalidTensor(
            f"tensor {quoted(name)} came with {len(data)} bytes; "
            f"{datatype} {list(sizes)} needs {count * dtype.itemsize}"
        )
    values: Values = np.frombuffer(data, dtype).reshape(sizes)
    return values if values.flags.aligned else values.copy()


def from_numbers(name: str, datatype: str, shape: Sequence[int], numbers: Sequence[Any]) -> Values:
    """A tensor from numbers that lie flat, row by row, or nested as `shape` says. Raises `InvalidTensor`."""
    dtype, sizes, count = checked(name, datatype, shape)
    try:
        with np.errstate(over="ignore"):  # too large for FP32 is infinity, refused where features are checked
            values: NDArray[Any] = np.array(numbers, dtype)
    except (OverflowError, ValueError, TypeError) as error:
        raise InvalidTensor(f"the data of tensor {quoted(name)} is not {datatype} {list(sizes)}: {error}") from error
    if values.size != count or (values.ndim != 1 and values.shape != sizes):
        raise InvalidTensor(
            f"the data of tensor {quoted(name)} has shape {list(values.shape)}, its `shape` is {list(sizes)}"
        )
    return values.reshape(sizes)


def named(tensors: Iterable[tuple[str, Values]]) -> dict[str, Values]:
    """Tensors by name; a name that comes twice raises `InvalidTensor`."""
    found: dict[str, Values] = {}
    for name, values in tensors:
        if name in found:
            raise InvalidTensor(f"tensor {quoted(name)} is given twice")
        found[name] = values
    return found


_KNOWN = ", ".join(DATATYPES)
