"""The emulated GPU shows what a real one may forgive for long: kernels with a fault in them do not pass for right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flame.engine.kernels.climber_stack import variants


class Fault(NamedTuple):
    """`right` stands once in `file`, and `wrong` takes its place."""

    file: str
    right: str
    wrong: str


FAULTS = {
    "products waited for too late": Fault(
        "wide_products.cuh",
        "    else\n      wgmma_wait<1>();\n    if (i == 0",
        "    else\n      wgmma_wait<2>();\n    if (i == 0",
    ),
    "strides of the values' matrices exchanged": Fault(
        "wide_products.cuh", "b(values, HALF_UNIT, MATRIX)", "b(values, MATRIX, HALF_UNIT)"
    ),
    "nothing behind the last keys": Fault("stages.cuh", "if (!HEADS_TOGETHER)", "if (false)"),
    "keys that are not live": Fault("wide_products.cuh", "if (LAST && left < CHUNK * UNIT) mask", "if (false) mask"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_shows(
    make_fresh_bed: Callable[..., Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, folder = FAULTS[name], tmp_path / "cuda"
    shutil.copytree(variants._SOURCES, folder)
    text = (folder / fault.file).read_text()
    assert text.count(fault.right) == 1
    (folder / fault.file).write_text(text.replace(fault.right, fault.wrong))
    monkeypatch.setattr(variants, "_SOURCES", folder)
    bed = make_fresh_bed(((65, 127),), (9,))
    wide = next(variant for variant in variants.VARIANTS if variant.name == "wide-128")
    found, expected = bed.launch("rank", wide)[0].float(), bed.expected()[0].float()
    assert not (found - expected).norm() < 1e-2 * expected.norm()
