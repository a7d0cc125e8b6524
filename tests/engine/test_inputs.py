"""The packed buffer as tensors: every field where the layout says, and nothing copied."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from flame.engine.inputs import unpack
from flame.engine.presets import preset
from flame.engine.spec import ModelSpec, Profile
from flame.layout import CANDIDATES, EVENT_ACTION, EVENT_AGE, EVENT_ITEM, LENGTHS, SCENARIO


def with_lookup(spec: ModelSpec, lookup: str) -> ModelSpec:
    table = msgspec.structs.replace(spec.input.item_id, lookup=lookup)
    return msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, item_id=table))


@pytest.mark.parametrize("lookup", ["device", "host"])
@pytest.mark.parametrize("profile", [Profile(3, 37, 23), Profile(1, 1, 1), Profile(2, 0, 5)], ids=str)
def test_every_field_shows_its_words_of_the_buffer(profile: Profile, lookup: str) -> None:
    spec = with_lookup(preset("tiny-climber-bias"), lookup)
    layout, record = spec.layout(profile), spec.record
    words = np.arange(layout.words, dtype=np.int32)
    inputs = unpack(torch.from_numpy(words), layout)
    header, events, candidates = layout.views(words)

    expected = {
        "scenario": header[:, SCENARIO],
        "candidate_count": header[:, CANDIDATES],
        "lengths": header[:, LENGTHS : LENGTHS + 3],
        "event_item": events[..., EVENT_ITEM],
        "event_action": events[..., EVENT_ACTION],
        "event_age": events[..., EVENT_AGE],
        "event_integers": events[..., 3:6],
        "event_floats": events[..., 6:10].view(np.float32),
        "candidate_item": candidates[..., 0],
        "candidate_integers": candidates[..., 1:4],
        "candidate_floats": candidates[..., 4:8].view(np.float32),
        "user_integers": header[:, record.user_start : record.user_start + 1],
        "user_floats": header[:, record.user_start + 1 : record.context_start].view(np.float32),
        "context_integers": header[:, record.context_start : record.context_start + 1],
        "context_floats": header[:, record.context_start + 1 :].view(np.float32),
    }
    if lookup == "host":
        expected["event_embedding"] = events[..., 10:34].view(np.float32)
        expected["candidate_embedding"] = candidates[..., 8:32].view(np.float32)
    else:
        assert inputs.event_embedding is None
        assert inputs.candidate_embedding is None
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(inputs, name).numpy(), values, err_msg=name)


def test_nothing_is_copied() -> None:
    spec = preset("tiny-climber")
    layout = spec.layout(Profile(2, 8, 4))
    words = torch.zeros(layout.words, dtype=torch.int32)
    inputs = unpack(words, layout)
    layout.views(words.numpy()).candidates[1, 3, 4:8] = np.array([1.5, -2.0, 0.25, 8.0], np.float32).view(np.int32)
    assert inputs.candidate_floats[1, 3].tolist() == [1.5, -2.0, 0.25, 8.0]
    assert inputs.first(2).candidate_floats.data_ptr() == inputs.candidate_floats.data_ptr()


def test_a_larger_buffer_is_read_from_its_start() -> None:
    spec = preset("tiny-climber")
    layout = spec.layout(Profile(1, 4, 2))
    words = torch.zeros(layout.words + 100, dtype=torch.int32)
    words[layout.candidates_start] = 77
    assert unpack(words, layout).candidate_item[0, 0] == 77


def test_a_slice_holds_its_users_and_what_is_valid(make_inputs) -> None:
    spec = preset("tiny-climber-bias")
    inputs = make_inputs(spec, [(3, 0, 1), (1, 2, 0), (0, 0, 11)], [2, 0, 5])
    part = inputs.slice(1, 3)
    assert part.users == 2
    assert part.lengths.tolist() == [[1, 2, 0], [0, 0, 11]]
    assert part.candidate_valid.sum(1).tolist() == [0, 5]
    assert inputs.event_valid.sum(2).tolist() == [[3, 0, 1], [1, 2, 0], [0, 0, 11]]
    assert torch.isnan(inputs.event_floats[~inputs.event_valid]).all(), "unused slots must be poisoned in these tests"
