"""Rows of the ladder: complete, counted by what was asked for, and without times where something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flame.bench import report
from flame.bench.ladder import flame_entrants, run, torch_entrants
from flame.bench.ladder.cases import SCENARIOS, Case
from flame.bench.ladder.clock import interleaved
from flame.bench.ladder.entrant import Entrant
from flame.bench.ladder.packages import widened
from flame.bench.ladder.torch_entrants import TorchEntrants
from flame.bench.ladder.truth import Truths, distance
from flame.cli import bench_engine
from flame.cli.main import main
from flame.config import EngineConfig
from flame.engine.backends.fused.engine import FusedEngine
from flame.engine.backends.fused.lanes import HostLane
from flame.engine.backends.fused.precision import PRECISIONS
from flame.engine.backends.fused.programs import program_type
from flame.engine.flops import needed_flops, needed_stack_flops
from flame.engine.presets import preset
from flame.errors import ConfigError

CaseOf = Callable[..., Case]
TIMES = ("ms_median", "ms_p99", "ms_min", "pairs_per_s", "tflops", "share_of_peak")


def rows_of(**ladder: Any) -> list[dict[str, Any]]:
    chosen = run.Ladder(**({"rounds": 3, "precision": "fp32"} | ladder))
    return run.run(chosen, EngineConfig(), "cpu", lambda *_: None)[0]


def test_a_row_for_each_part_counted_by_what_was_asked() -> None:
    rows = rows_of(scenarios=["mixed"], users=[3], variants=["eager-dense", "sdpa"])
    assert [(row["variant"], row["part"], row["kind"]) for row in rows] == [
        (variant, part, "rank") for variant in ("eager-dense", "sdpa") for part in ("stack", "model")
    ]
    spec = preset("tiny-climber")
    work = {
        "model": sum(needed_flops(spec, 36, count) for count in (5, 11, 23)),
        "stack": sum(needed_stack_flops(spec, 36, count) for count in (5, 11, 23)),
    }
    assert work["stack"] < work["model"]
    for row in rows:
        assert (row["history"], row["candidates"], row["pairs"]) == (36, 23, 39)
        assert 0 < row["ms_min"] <= row["ms_median"] <= row["ms_p99"]
        assert row["pairs_per_s"] == pytest.approx(39e3 / row["ms_median"])
        assert row["tflops"] == pytest.approx(1e-9 * work[row["part"]] / row["ms_median"])
        assert row["share_of_peak"] == pytest.approx(row["tflops"] / row["peak_tflops"])
        assert row["error"] < 2e-6
        assert row["ratio"] is None, "flex-graph did not take part"
        assert row["ratio_to_best"] <= 1


def test_ratios_are_over_flex_attention_of_the_same_part(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = torch_entrants._WAYS | {"flex-graph": torch_entrants._WAYS["sdpa"]}
    monkeypatch.setattr(torch_entrants, "_WAYS", ways)
    rows = {(row["variant"], row["part"]): row for row in rows_of(scenarios=["base"], variants=["flex-graph", "sdpa"])}
    for (variant, part), row in rows.items():
        base, stack = rows["flex-graph", part], rows["flex-graph", "stack"]
        assert row["ratio"] == pytest.approx(base["ms_median"] / row["ms_median"])
        assert row["ratio_to_stack"] == pytest.approx(stack["ms_median"] / row["ms_median"])
        assert (row["ratio"] == 1) == (variant == "flex-graph")


def test_what_cannot_run_here_leaves_its_reason_and_no_times() -> None:
    (row,) = rows_of(scenarios=["base"], variants=["flame"])
    assert row["variant"] == "flame"
    assert "fused" in row["reason"]
    assert not row.keys() & set(TIMES)


def test_other_scores_than_the_oracles_leave_a_reason_and_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TorchEntrants.of

    def wrong(self: TorchEntrants, variant: str) -> Iterator[Entrant]:
        for one in real(self, variant):
            assert one.found is not None
            good = one.found
            yield replace(one, found=lambda good=good: good() * 1.001) if one.part == "model" else one

    monkeypatch.setattr(TorchEntrants, "of", wrong)
    (row,) = rows_of(scenarios=["base"], variants=["sdpa"])
    assert "model, rank: differs from the oracle by 0.001" in row["reason"]
    assert not row.keys() & set(TIMES)


def test_a_variant_that_breaks_down_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TorchEntrants, variant: str) -> Iterator[Entrant]:
        if variant == "sdpa":
            raise RuntimeError("out of memory\nand more")
        return real(self, variant)

    real = TorchEntrants.of
    monkeypatch.setattr(TorchEntrants, "of", broken)
    first, *others = rows_of(scenarios=["base"], variants=["sdpa", "eager-dense"])
    assert first["reason"] == "RuntimeError: out of memory"
    assert [row["variant"] for row in others] == ["eager-dense"] * 2


def test_what_there_is_is_kept_after_every_case() -> None:
    kept: list[int] = []
    ladder = run.Ladder(["base", "mixed"], [1, 2], ["sdpa"], rounds=1, precision="fp32")
    rows, _ = run.run(ladder, EngineConfig(), "cpu", lambda *_: None, lambda rows, facts: kept.append(len(rows)))
    assert kept == [2, 4, 6, 8]
    assert len(rows) == 8


@pytest.mark.parametrize("ladder", [{"scenarios": ["short"]}, {"variants": ["fast"]}])
def test_unknown_names_are_refused(ladder: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"there is no (scenario 'short'|variant 'fast') here; there are"):
        rows_of(**ladder)


def test_the_command_writes_what_was_measured_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command's way on a GPU, on a CPU: eager rows in bf16."""
    monkeypatch.setattr(bench_engine, "_run_on_cpu", lambda args, config: bench_engine._run_on_gpu(args, config, "cpu"))
    output, picture = tmp_path / "engine.json", tmp_path / "engine.png"
    words = ["--scenario", "base", "--users", "2", "--variants", "eager-dense,flame", "--rounds", "2"]
    assert main(["bench", "engine", "--device", "cpu", *words, "--output", str(output), "--plot", str(picture)]) == 0
    content = report.read(output)
    assert content == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["variant"] for row in content["rows"]] == ["flame", "eager-dense", "eager-dense"]
    assert content["precision"] == "bf16"
    assert 1e-5 < content["rows"][-1]["error"] < 5e-2
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize(
    ("device", "code", "reason"), [("cuda", 1, "finds no CUDA device"), ("tpu", 2, "cpu, cuda or")]
)
def test_a_device_that_is_not_here_is_told(
    device: str, code: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "engine", "--device", device]) == code
    assert reason in capsys.readouterr().err


def test_variants_of_every_scenario_exist() -> None:
    for scenario in SCENARIOS.values():
        assert set(scenario.variants) <= set(run.NAMES)


def test_counts_of_mixed_users_are_each_as_often_and_seeded(case_of: CaseOf) -> None:
    case = case_of("mixed", users=6, seed=3)
    assert sorted(case.counts) == [5, 5, 11, 11, 23, 23]
    assert torch.equal(case.words, case_of("mixed", users=6, seed=3).words)
    assert not torch.equal(case.words, case_of("mixed", users=6, seed=4).words)


def test_nan_and_a_wrong_score_are_objected_to() -> None:
    truth = torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    assert distance(truth.clone(), truth, "fp32").objection == ""
    for precision, change in (("fp32", 1e-3), ("fp16", 0.05), ("bf16", 0.2)):
        assert distance(truth * (1 + change), truth, precision).objection
        assert not distance(truth * (1 + change / 100), truth, precision).objection
    spoiled = truth.clone()
    spoiled[7, 1] = torch.nan
    assert distance(spoiled, truth, "bf16").objection


def test_rounds_alternate_and_the_first_do_not_count() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name) or float(len(order))) for name in "ab"}
    ticks: list[int] = []
    samples = interleaved(calls, 2, ticks.append)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab" + "ba"
    assert ticks == [0, 0, 0, 1, 2]
    assert samples["a"].tolist() == [7, 10]


def test_wide_models_have_heads_of_64_and_four_times_the_dim() -> None:
    spec = widened(preset("flame-long"), 512)
    assert spec.climber is not None
    assert (spec.climber.dim, spec.climber.heads, spec.climber.ffn, spec.climber.layers) == (512, 8, 2048, 12)
    assert spec.input.item_id.dim == 512
    with pytest.raises(ConfigError, match="only a Climber"):
        widened(preset("tiny-hstu"), 512)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("scenario", ["mixed", "hstu"])
def test_rows_of_the_fused_engine_are_its_own_launches(
    case_of: CaseOf, scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted: whole launches, two steps, and the layers alone find what the oracle finds, the fastest way."""
    interpreter = pytest.importorskip("flame.engine.kernels.interpreter")
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted where there is a GPU")
    case = case_of(scenario, users=2)
    program = program_type(case.spec)(
        case.spec, PRECISIONS["fp32"], interpreter.Interpreter(), case.package.weights, frozenset({"stack"}), 90
    )
    cpu = torch.device("cpu")
    engine = FusedEngine(case.spec, [case.profile], program, device=cpu, precision="fp32", lane=HostLane)
    taken: list[tuple[object, ...]] = []
    monkeypatch.setattr(flame_entrants, "fastest_ways", lambda *_: {"rank": "a way"})
    monkeypatch.setattr(engine, "take", lambda *way: taken.append(way))
    truths = Truths(case, case.package.model())
    entrants = list(flame_entrants.entrants(case, "flame", engine, 1.0))
    assert taken == [(case.profile, "rank", "a way")]
    assert [(one.part, one.kind) for one in entrants] == [
        ("model", "rank"),
        ("model", "encode"),
        ("model", "score"),
        ("stack", "rank"),
    ]
    for one in entrants:
        if one.before:
            one.before()
        one.run()
        if one.found:
            assert distance(one.found(), truths.of(one), "fp32").error < 1e-5
