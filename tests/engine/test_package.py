"""Model folders: what is written is what is read, and whatever is wrong is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from flame.engine.folder import replaced_folder
from flame.engine.models import expected_tensors
from flame.engine.package import ModelPackage, load, save
from flame.engine.presets import names, preset, random_weights
from flame.engine.spec_check import parse_spec
from flame.engine.toml_text import to_toml
from flame.errors import PackageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = preset("tiny-climber-bias")
    save(tmp_path / "model", spec, random_weights(spec, 3))
    return tmp_path / "model"


def edit(folder: Path, *changes: tuple[str, str]) -> None:
    text = (folder / "model.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "model.toml").write_text(text)


def rewrite(folder: Path, change) -> None:
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "weights.safetensors")


def refused(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        load(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("tiny")])
def test_what_is_saved_is_what_is_loaded(name: str, tmp_path: Path) -> None:
    made = load(f"preset:{name}")
    save(tmp_path / "model", made.spec, made.weights)
    read = load(tmp_path / "model")
    assert read.spec == made.spec
    assert read.fingerprint == made.fingerprint
    assert read.weights.keys() == made.weights.keys()
    assert all(torch.equal(read.weights[name], made.weights[name]) for name in made.weights)


def test_a_loaded_model_shares_the_memory_of_its_weights(folder: Path) -> None:
    package = load(folder)
    model = package.model()
    name = "layers.1.qkv.weight"
    assert model.state_dict()[name].data_ptr() == package.weights[name].data_ptr()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_the_fingerprint_changes_with_any_weight_and_any_field(folder: Path) -> None:
    before = load(folder).fingerprint
    assert len(before) == 32
    rewrite(folder, lambda weights: weights["head.gates.bias"][1].add_(2**-20))
    changed = load(folder).fingerprint
    edit(folder, ('activation = "sigmoid"', 'activation = "identity"'))
    assert len({before, changed, load(folder).fingerprint}) == 3


def test_every_wrong_tensor_is_named_in_one_error(folder: Path) -> None:
    def spoil(weights) -> None:
        weights["layers.0.qkv.wieght"] = weights.pop("layers.0.qkv.weight")
        weights["input.actions.weight"] = weights["input.actions.weight"].half()
        weights["layers.1.qkv.bias"] = torch.zeros(2)
        weights["layers.2.qkv.bias"][0, 3] = float("nan")
        weights["layers.2.qkv.bias"][1, 0] = float("inf")
        weights["leftover"] = torch.zeros(1)
        del weights["fusion.squeeze.bias"]

    rewrite(folder, spoil)
    message = refused(folder)
    for part in (
        "has 7 problems",
        "missing tensor 'layers.0.qkv.weight' (3, 72, 24)",
        "missing tensor 'fusion.squeeze.bias' (18,)",
        "unknown tensor 'layers.0.qkv.wieght'; did you mean 'layers.0.qkv.weight'?",
        "unknown tensor 'leftover'",
        "tensor 'input.actions.weight' is float16, the model needs float32",
        "tensor 'layers.1.qkv.bias' has shape (2,), the model needs (3, 72)",
        "tensor 'layers.2.qkv.bias' holds 2 values that are not finite",
    ):
        assert part in message


def test_every_wrong_field_is_named_in_one_error(folder: Path) -> None:
    edit(
        folder,
        ("layers = 3", "layres = 3"),
        ("experts = 3", "experts = 0"),
        ("max_history = 37", 'max_history = "long"'),
        ('dtype = "int32"', 'dtype = "int31"'),
        ('kind = "actions"', 'kind = "part"'),
        ("version", "vresion"),
    )
    message = refused(folder)
    for part in (
        "unknown field 'vresion'; did you mean 'version'?",
        "missing field 'version'",
        "unknown field 'climber.layres'; did you mean 'layers'?",
        "missing field 'climber.layers'",
        "climber.experts: Expected `int` >= 1",
        "input.max_history: Expected `int`, got `str`",
        "input.item[0].dtype: Invalid enum value 'int31'",
        """input.sequences[2]: sequence 'liked': `actions` belongs to kind "actions\"""",
    ):
        assert part in message
    assert "has 8 problems" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("heads = 2", "heads = 5"), "climber.dim 24 is not a multiple of climber.heads 5"),
        (("[climber]", "[hstu]\ndim = 24\n\n[climber]"), "missing field 'hstu.heads'"),
        (("[climber]", "[climbre]"), "unknown field 'climbre'; did you mean 'climber'?"),
        (('name = "like"', 'name = "share"'), "tasks with unique names"),
        (("[input.item_id]", "[input.item_id"), "model.toml is not TOML"),
        (('name = "tiny-climber-bias"', 'name = "music/ranker"'), "model.toml: name: Expected `str` matching regex"),
        (('version = "1"', 'version = ""'), "model.toml: version: Expected `str` matching regex"),
        (('name = "like"', 'name = ""'), "tasks[1].name: Expected `str` of length >= 1"),
        (('name = "newer"', 'name = "older"'), "sequence names must be unique"),
        (('kind = "part"', 'kind = "all"'), "`part` and `of` belong to kind"),
        (('wiring = "flame"', 'wiring = "flmae"'), "'flmae'; it is one of 'flame', 'climber'"),
        (("max_history = 37", f"max_history = {2**70}"), "input.max_history: Expected `int` <= 2147483647"),
        (("vocabulary = 1000", "vocabulary = 1"), "input.item_id.vocabulary: Expected `int` >= 2"),
        (("shape = [3]", "shape = [0]"), "input.item[1].shape[0]: Expected `int` >= 1"),
        (("tasks", "toasks"), "unknown field 'toasks'; did you mean 'tasks'?"),
    ],
)
def test_a_contradiction_in_the_spec_is_told(folder: Path, change: tuple[str, str], message: str) -> None:
    edit(folder, change)
    assert message in refused(folder)


def test_model_toml_is_utf8_with_or_without_the_mark_some_editors_write(folder: Path) -> None:
    content = (folder / "model.toml").read_bytes()
    (folder / "model.toml").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    load(folder)
    (folder / "model.toml").write_bytes(content + "# très".encode("latin-1"))
    assert "model.toml is not TOML: 'utf-8' codec" in refused(folder)


def test_a_size_that_the_weights_do_not_have_is_told_tensor_by_tensor(folder: Path) -> None:
    edit(folder, ("ffn = 40", "ffn = 41"))
    message = refused(folder)
    assert "has 12 problems" in message
    assert "tensor 'layers.0.ffn_in.weight' has shape (3, 40, 24), the model needs (3, 41, 24)" in message


def test_missing_and_broken_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    assert "weights.safetensors is not a safetensors file" in refused(folder)
    os.remove(folder / "weights.safetensors")
    os.remove(folder / "model.toml")
    message = refused(folder)
    assert "there is no file 'model.toml'" in message
    assert "there is no file 'weights.safetensors'" in message
    assert "neither a model folder nor preset:NAME" in refused(tmp_path / "nowhere")
    with pytest.raises(PackageError, match=r"no preset 'flame-bass'; did you mean 'flame-base'\? presets are"):
        load("preset:flame-bass")


def test_a_truncated_weights_file_is_refused(folder: Path) -> None:
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "is not a safetensors file" in refused(folder)


def test_saving_refuses_what_loading_would(tmp_path: Path) -> None:
    spec = preset("tiny-hstu")
    weights = random_weights(spec, 0)
    del weights["norm.bias"]
    with pytest.raises(PackageError, match=r"missing tensor 'norm\.bias'"):
        save(tmp_path / "model", spec, weights)
    wrong = msgspec.structs.replace(spec, hstu=msgspec.structs.replace(spec.hstu, layers="many"))
    with pytest.raises(PackageError, match=r"hstu\.layers: Expected `int`, got `str`"):
        save(tmp_path / "model", wrong, random_weights(spec, 0))
    assert not list(tmp_path.iterdir())


def test_weights_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    spec = preset("tiny-climber")
    weights = random_weights(spec, 0)
    both = torch.arange(2.0 * 24).reshape(2, 24)
    weights |= {"layers.0.norm.bias": both, "layers.1.norm.bias": both, "fusion.layer.norm.bias": both[1:]}
    save(tmp_path / "model", spec, weights)
    read = load(tmp_path / "model").weights
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


def test_saving_again_replaces_the_model_and_keeps_other_files(folder: Path) -> None:
    (folder / "features").mkdir()
    (folder / "features" / "items.bin").write_bytes(b"rows")
    (folder / "notes.md").write_text("mine")
    spec = preset("tiny-hstu")
    save(folder, spec, random_weights(spec, 0))
    assert load(folder).spec.name == "tiny-hstu"
    assert (folder / "features" / "items.bin").read_bytes() == b"rows"
    assert (folder / "notes.md").read_text() == "mine"
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


def write_and_be_interrupted(folder: Path) -> None:
    with replaced_folder(folder) as new:
        (new / "a").write_text("half of the n")
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    with replaced_folder(folder) as new:
        (new / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_and_be_interrupted(folder)
    assert (folder / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("kind", ["tiny-climber", "tiny-hstu"])
def test_a_table_on_the_host_is_in_the_file_and_not_in_the_model(kind: str, tmp_path: Path, make_inputs) -> None:
    spec = preset(kind)
    table = msgspec.structs.replace(spec.input.item_id, lookup="host")
    on_host = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, item_id=table))
    weights = random_weights(spec, 0)
    assert expected_tensors(on_host).keys() == expected_tensors(spec).keys()
    for name, own in (("device", spec), ("host", on_host)):
        save(tmp_path / name, own, weights)
    host, device = load(tmp_path / "host"), load(tmp_path / "device")
    assert host.model().input.items is None
    assert host.item_embeddings().shape == (1000, 18)
    assert np.shares_memory(host.item_embeddings(), host.weights["input.items.weight"].numpy())
    assert_equal_scores(host, device, make_inputs)


def assert_equal_scores(host: ModelPackage, device: ModelPackage, make_inputs) -> None:
    """Embeddings that the host writes into the records give what the model's own table gives."""
    sequences = len(host.spec.input.sequences)
    inputs = make_inputs(host.spec, [(7,) * sequences, (0,) * sequences], [5, 23])
    items = torch.from_numpy(host.item_embeddings())
    inputs.event_embedding[inputs.event_valid] = items[inputs.event_item[inputs.event_valid]]
    inputs.candidate_embedding[inputs.candidate_valid] = items[inputs.candidate_item[inputs.candidate_valid]]
    used = inputs.candidate_valid
    torch.testing.assert_close(host.model().rank(inputs)[used], device.model().rank(inputs)[used])


text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)))
scalars = text | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(text, values, max_size=4))
def test_any_plain_data_survives_toml(tree) -> None:
    read = msgspec.toml.decode(to_toml(tree).encode())
    assert json.dumps(read, sort_keys=True) == json.dumps(tree, sort_keys=True)


def test_toml_refuses_what_it_cannot_say() -> None:
    with pytest.raises(PackageError, match=r"b'raw' of type bytes cannot be written"):
        to_toml({"value": b"raw"})


@pytest.mark.parametrize("name", names())
def test_presets_survive_toml(name: str) -> None:
    spec, problems = parse_spec(to_toml(msgspec.to_builtins(preset(name))).encode())
    assert not problems
    assert spec == preset(name)
