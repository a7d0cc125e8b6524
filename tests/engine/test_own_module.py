"""A package with an architecture of the user's own: loaded on request only, then served like any other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flame.engine.backends.eager import EagerEngine
from flame.engine.models import create, expected_tensors
from flame.engine.package import load, save
from flame.engine.presets import random_weights
from flame.engine.spec import ModelSpec, Profile
from flame.engine.validate import validate
from flame.errors import ExecutionError, PackageError


@pytest.fixture
def folder(tmp_path: Path, own_spec: ModelSpec, own_source: Path) -> Path:
    weights = random_weights(own_spec, 0, module_source=own_source)
    save(tmp_path / "own", own_spec, weights, module_source=own_source)
    return tmp_path / "own"


def with_module(spec: ModelSpec, **changes) -> ModelSpec:
    return msgspec.structs.replace(spec, module=msgspec.structs.replace(spec.module, **changes))


def test_code_is_refused_unless_the_operator_allows_it(folder: Path) -> None:
    (folder / "mean_ranker.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(PackageError, match=r"mean_ranker\.py.*engine\.allow_code"):
        load(folder)


def test_an_allowed_module_is_loaded_with_its_options_and_weights(folder: Path) -> None:
    package = load(folder, allow_code=True)
    assert {name: tuple(tensor.shape) for name, tensor in package.weights.items()} == {
        "items.weight": (1000, 6),
        "out.weight": (3, 12),
        "out.bias": (3,),
        "calls": (1,),
    }
    model = package.model()
    assert model.scale.item() == 0.5, "buffers that are not saved keep what the module gave them"
    assert model.out.weight.data_ptr() == package.weights["out.weight"].data_ptr()


def test_an_own_module_passes_validation_and_isolation(folder: Path) -> None:
    package = load(folder, allow_code=True)
    profiles = [Profile(1, 37, 23), Profile(3, 9, 5)]
    report = validate(EagerEngine(package, profiles), EagerEngine(package, profiles), requests=10)
    assert report.passed, report.render()


def test_its_code_is_part_of_the_fingerprint(folder: Path) -> None:
    before = load(folder, allow_code=True).fingerprint
    source = folder / "mean_ranker.py"
    source.write_text(source.read_text() + "\n# changed\n")
    assert load(folder, allow_code=True).fingerprint != before


def test_equal_seeds_give_an_own_module_equal_weights(own_spec: ModelSpec, own_source: Path) -> None:
    one, same, other = (random_weights(own_spec, seed, module_source=own_source) for seed in (1, 1, 2))
    assert (one["items.weight"] == same["items.weight"]).all()
    assert (one["items.weight"] != other["items.weight"]).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Other: pass", "no class 'MeanRanker' derived from flame.engine.models.RankModel"),
        ("class MeanRanker: pass", "no class 'MeanRanker' derived from"),
        ("import no_such_package_here", "mean_ranker.py cannot be imported: ModuleNotFoundError"),
        ("def broken(:", "mean_ranker.py cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_is_not_what_the_spec_says(own_spec: ModelSpec, own_source: Path, text: str, message: str) -> None:
    own_source.write_text(text)
    with pytest.raises(PackageError, match=message):
        create(own_spec, module_source=own_source)


def test_options_the_class_does_not_know_are_named(own_spec: ModelSpec, own_source: Path) -> None:
    with pytest.raises(PackageError, match=r"MeanRanker.*depth.*unexpected keyword"):
        create(with_module(own_spec, options={"depth": 3}), module_source=own_source)


def test_a_missing_file_and_a_path_out_of_the_folder_are_refused(folder: Path, own_spec: ModelSpec) -> None:
    (folder / "mean_ranker.py").unlink()
    with pytest.raises(PackageError, match=r"no Python file 'mean_ranker\.py'"):
        load(folder, allow_code=True)
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace('"mean_ranker.py"', '"../mean_ranker.py"'))
    with pytest.raises(PackageError, match="plain name of a file"):
        load(folder, allow_code=True)
    with pytest.raises(PackageError, match="is needed"):
        expected_tensors(own_spec)


def test_its_file_may_hold_dataclasses_and_read_the_numbers_it_makes(folder: Path) -> None:
    source = folder / "mean_ranker.py"
    extra = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    extra += "@dataclass\nclass Sizes:\n    depth: int = 1\n"
    rates = "super().__init__()\n        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]"
    source.write_text(extra + source.read_text().replace("super().__init__()", rates))
    assert load(folder, allow_code=True).model().rates[0] == 0.0


def test_two_packages_with_files_of_one_name_stay_apart(own_source: Path, own_spec: ModelSpec, tmp_path: Path) -> None:
    other = tmp_path / "other" / own_source.name
    other.parent.mkdir()
    other.write_text(own_source.read_text())
    kinds = [type(create(own_spec, module_source=source)) for source in (own_source, other)]
    assert [sys.modules[kind.__module__].__file__ for kind in kinds] == [str(own_source), str(other)]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("items.sum((1, 2))", "it gave a Tensor"),
        ("None", "it gave a NoneType"),
        ("()", "it gave a tuple of []"),
        ("(items.sum(), 3)", "it gave a tuple of [(), 'int']"),
        ("(items.sum((1, 2)).repeat(3, 1),)", "it gave a tuple of [(3, 6)]"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_state_that_is_none_is_told(folder: Path, state: str, told: str) -> None:
    source = folder / "mean_ranker.py"
    good = "(items.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)[:, None],)"
    assert good in source.read_text()
    source.write_text(source.read_text().replace(good, state))
    engine = EagerEngine(load(folder, allow_code=True), [Profile(1, 5, 4)])
    with pytest.raises(ExecutionError, match=re.escape(told)):
        engine.state(5)


def test_failures_of_foreign_code_are_execution_errors(folder: Path) -> None:
    source = folder / "mean_ranker.py"
    good = source.read_text()
    for bad, message in (
        (good.replace("* self.scale", "@ self.scale"), "the launch failed: RuntimeError"),
        (good.replace("* self.scale", "[..., :2]"), r"gave logits \(1, 4, 2\), expected .* \(1, 4, 3\)"),
    ):
        source.write_text(bad)
        engine = EagerEngine(load(folder, allow_code=True), [Profile(1, 5, 4)])
        buffers = engine.buffers(Profile(1, 5, 4))
        with pytest.raises(ExecutionError, match=message):
            engine.rank(buffers, 1)
    assert np.isfinite(buffers.scores).all()
