"""The public face: what `import flame` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import ModuleType

import numpy as np
import pytest

import flame
from flame import Ranker, RankRequest, RankResponse, ranker


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


@pytest.mark.parametrize("module", [flame, ranker])
def test_the_example_of_a_docstring_runs(module: ModuleType) -> None:
    text = module.__doc__ or ""
    example = textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    names: dict[str, object] = {"np": np, "Ranker": Ranker, "RankRequest": RankRequest}
    exec(example, names)
    assert isinstance(names["response"], RankResponse)
    assert names["response"].scores.shape == (20, 3)
