"""The public face: what `import flame` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import flame


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert sorted(flame.__all__) == flame.__all__
    for name in flame.__all__:
        assert getattr(flame, name) is not None


def test_all_holds_every_public_name() -> None:
    assert set(flame.__all__) == {*flame._HOME, "__version__", "compiled"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Rnker"):
        flame.Rnker  # noqa: B018


def test_importing_flame_loads_nothing_heavy() -> None:
    code = "import flame, sys; print(sorted({'torch', 'numba', 'grpc', 'numpy', 'pyarrow'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
