"""The PyTorch models of the ladder are the model: equal to the oracle, whatever they attend with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flame.bench.baselines import attention
from flame.bench.baselines.attention import Shape
from flame.bench.baselines.climber import PlainClimber
from flame.bench.baselines.compiling import as_it_is
from flame.bench.ladder import onnx_entrants, torch_entrants
from flame.bench.ladder.cases import Case
from flame.bench.ladder.entrant import Refused
from flame.bench.ladder.torch_entrants import TorchEntrants
from flame.bench.ladder.truth import Truths, distance
from flame.engine.package import load
from flame.errors import ConfigError

CaseOf = Callable[..., Case]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
EAGER = ("eager-dense", "sdpa", "flex-graph", "flex-graph-together")


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parts without a compiler, which would take seconds for each shape."""
    ways = {name: way._replace(compile_part=as_it_is) for name, way in torch_entrants._WAYS.items()}
    monkeypatch.setattr(torch_entrants, "_WAYS", ways)


@pytest.mark.parametrize("source", ["tiny-climber", "tiny-climber-causal", "tiny-climber-own-wiring"])
@pytest.mark.parametrize("variant", EAGER)
def test_a_climber_gives_the_oracles_scores_and_rows(case_of: CaseOf, source: str, variant: str) -> None:
    case = case_of("mixed", f"preset:{source}")
    truths = Truths(case, case.package.model())
    entrants = {one.part: one for one in TorchEntrants(case, "fp32").of(variant)}
    assert list(entrants) == ["stack", "model"]
    for one in entrants.values():
        one.run()
        assert one.found is not None
        found = distance(one.found(), truths.of(one), "fp32")
        assert found.error < 2e-6
        assert not found.objection


def test_variants_of_one_case_share_the_ends_and_not_the_attention(case_of: CaseOf) -> None:
    case = case_of("mixed")
    both, truth = TorchEntrants(case, "fp32"), Truths(case, case.package.model())
    for variant in ("flex-graph", "flex-graph-together", "compile-graph"):
        for one in both.of(variant):
            one.run()
            assert one.found is not None
            assert distance(one.found(), truth.of(one), "fp32").error < 2e-6


@pytest.mark.parametrize("source", ["tiny-hstu", "tiny-hstu-bidirectional"])
@pytest.mark.parametrize("variant", ["eager-dense", "compile-graph"])
def test_an_hstu_gives_the_oracles_scores(case_of: CaseOf, source: str, variant: str) -> None:
    case = case_of("hstu", f"preset:{source}")
    truth = Truths(case, case.package.model())
    for one in TorchEntrants(case, "fp32").of(variant):
        one.run()
        assert one.found is not None
        assert distance(one.found(), truth.of(one), "fp32").error < 2e-6


def test_a_softmax_in_the_place_of_silu_is_compared_with_nothing_and_says_so(case_of: CaseOf) -> None:
    for one in TorchEntrants(case_of("hstu"), "fp32").of("flex-graph"):
        one.run()
        assert one.found is None
        assert "softmax" in one.note


@pytest.mark.parametrize("variant", ["sdpa", "flex-graph-together"])
def test_what_an_hstu_has_not_is_refused(case_of: CaseOf, variant: str) -> None:
    with pytest.raises(Refused, match="one block and no softmax"):
        next(TorchEntrants(case_of("hstu"), "fp32").of(variant))


def test_a_relative_bias_is_refused() -> None:
    package, device = load("preset:tiny-climber-bias"), torch.device("cpu")
    attend = attention.sdpa(Shape(36, 9, causal=False), device)
    with pytest.raises(ConfigError, match="relative bias"):
        PlainClimber(package, attend, as_it_is, torch.float32, device)


@pytest.mark.parametrize("causal", [True, False])
def test_the_mask_is_that_of_the_model(causal: bool) -> None:
    from flame.engine.models.masks import rank_mask

    mask = Shape(7, 4, causal).mask(torch.device("cpu"))
    assert torch.equal(mask, rank_mask(torch.ones(1, 1, 7, dtype=torch.bool), 4, causal)[0, 0, 0])


def test_dense_attention_that_would_not_fit_is_refused(case_of: CaseOf, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("base")
    monkeypatch.setattr(Case, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (case.dense_bytes(4), 2**40))
    with pytest.raises(Refused, match="dense attention would take"):
        torch_entrants._require_room(case, torch.float32)


def test_onnx_runtime_that_is_not_here_is_a_reason(case_of: CaseOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(onnx_entrants.importlib, "import_module", missing)
    with pytest.raises(Refused, match="ONNX Runtime is not here: No module named 'onnxruntime'"):
        next(onnx_entrants.entrants(case_of("base"), "onnxruntime"))


def test_onnx_runtime_gives_the_oracles_scores(case_of: CaseOf, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    case = case_of("mixed")
    (one,) = onnx_entrants.entrants(case, "onnxruntime")
    assert one.found is not None
    assert distance(one.found(), Truths(case, case.package.model()).of(one), one.precision).error < 2e-6
