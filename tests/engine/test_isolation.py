"""Candidate isolation, for every model: what must not matter does not, and what must matter does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame.engine.inputs import ModelInputs, unpack
from flame.engine.probe import Packed, Place, repack
from flame.engine.sampling import NAN_WORD, random_words
from flame.engine.spec import ModelSpec, Profile

INPUTS = (
    *("candidate_item", "candidate_integers", "candidate_floats"),
    *("event_item", "event_action", "event_integers", "event_floats"),
    *("user_integers", "user_floats", "context_integers", "context_floats", "scenario"),
)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def lengths_of(spec: ModelSpec, *histories: int) -> list[tuple[int, ...]]:
    """As many events per sequence as a history of that size gives at most."""
    return [tuple(sequence.capacity(history) for sequence in spec.input.sequences) for history in histories]


def packed(spec: ModelSpec, histories: tuple[int, ...], counts: tuple[int, ...], profile: Profile) -> Packed:
    layout = spec.layout(profile)
    words = random_words(spec, layout, lengths_of(spec, *histories), counts, np.random.default_rng(1))
    return Packed(layout, words, len(counts))


def inputs_of(buffer: Packed) -> ModelInputs:
    return unpack(torch.from_numpy(buffer.words), buffer.layout).first(buffer.users)


@pytest.fixture(params=["rank", "encode + score"])
def run(request: pytest.FixtureRequest):
    """Both ways to the logits of a launch."""

    def ranked(model, inputs):
        return model.rank(inputs)

    def two_steps(model, inputs):
        return model.score(model.encode(inputs), inputs)

    return ranked if request.param == "rank" else two_steps


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_two_steps_equal_one(any_spec, make_model, make_inputs) -> None:
    model = make_model(any_spec)
    inputs = make_inputs(any_spec, lengths_of(any_spec, 0, 1, 2, 20, 37), [23, 1, 22, 7, 23])
    one, two = model.rank(inputs), model.score(model.encode(inputs), inputs)
    torch.testing.assert_close(two[inputs.candidate_valid], one[inputs.candidate_valid], **CLOSE)
    assert torch.isfinite(one).all()
    assert torch.isfinite(two).all()


@pytest.mark.parametrize("filler", [NAN_WORD, 0, -1, 2**31 - 1, 5])
def test_what_fills_unused_slots_does_not_matter(any_spec, make_model, run, filler) -> None:
    model = make_model(any_spec)
    buffer = packed(any_spec, (5, 37, 0), (3, 1, 22), Profile(4, 37, 23))
    places = [Place(user, range(count)) for user, count in enumerate(buffer.counts)]
    expected = run(model, inputs_of(buffer))
    found = run(model, inputs_of(repack(buffer, buffer.layout, places, filler)))
    used = inputs_of(buffer).candidate_valid
    assert torch.equal(found[used], expected[used])


def test_order_and_company_of_candidates_do_not_matter(any_spec, make_model, run) -> None:
    model = make_model(any_spec)
    rng = np.random.default_rng(2)
    buffer = packed(any_spec, (37, 9), (23, 17), Profile(2, 37, 23))
    expected = run(model, inputs_of(buffer))
    for choices in (
        [rng.permutation(23), rng.permutation(17)],
        [np.arange(0, 23, 3), np.array([16])],
        [np.arange(12), np.arange(4)],
        [np.arange(12, 23), np.arange(4, 17)],
    ):
        places = [Place(user, choice.tolist()) for user, choice in enumerate(choices)]
        found = run(model, inputs_of(repack(buffer, buffer.layout, places)))
        for user, choice in enumerate(choices):
            torch.testing.assert_close(found[user, : len(choice)], expected[user, choice], **CLOSE)


def test_other_users_and_the_size_of_the_launch_do_not_matter(any_spec, make_model, run) -> None:
    model = make_model(any_spec)
    buffer = packed(any_spec, (10, 3, 0, 1), (5, 2, 5, 1), Profile(4, 37, 23))
    expected = run(model, inputs_of(buffer))
    for profile in (Profile(1, 10, 5), Profile(3, 20, 6), Profile(2, 37, 23)):
        target = any_spec.layout(profile)
        for user, count in enumerate(buffer.counts):
            found = run(model, inputs_of(repack(buffer, target, [Place(user, range(count))])))
            torch.testing.assert_close(found[0, :count], expected[user, :count], **CLOSE)


def test_a_duplicate_candidate_gets_the_same_score(any_spec, make_model, run) -> None:
    buffer = packed(any_spec, (12,), (4,), Profile(1, 37, 23))
    model = make_model(any_spec)
    found = run(model, inputs_of(repack(buffer, buffer.layout, [Place(0, [2, 0, 2, 2])])))
    torch.testing.assert_close(found[0, 2:4], found[0, [0, 0]], **CLOSE)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sizes_score_alike_alone_and_together(any_spec, make_model, data) -> None:
    users = data.draw(st.integers(1, 4))
    histories = tuple(data.draw(st.integers(0, 37)) for _ in range(users))
    counts = tuple(data.draw(st.integers(1, 23)) for _ in range(users))
    model = make_model(any_spec)
    buffer = packed(any_spec, histories, counts, Profile(users, max(histories), max(counts)))
    together = model.rank(inputs_of(buffer))
    user = data.draw(st.integers(0, users - 1))
    candidate = data.draw(st.integers(0, counts[user] - 1))
    alone = repack(buffer, any_spec.layout(Profile(1, histories[user], 1)), [Place(user, [candidate])])
    state = model.encode(inputs_of(alone))
    torch.testing.assert_close(model.score(state, inputs_of(alone))[0, 0], together[user, candidate], **CLOSE)


def test_encoding_reads_no_candidates_and_scoring_no_events(any_spec, make_model) -> None:
    model = make_model(any_spec)
    buffer = packed(any_spec, (37, 4), (9, 23), Profile(2, 37, 23))
    expected = model.rank(inputs_of(buffer))
    for_encode = buffer.words.copy()
    buffer.layout.views(for_encode).candidates[:] = NAN_WORD
    buffer.layout.views(for_encode).header[:, any_spec.record.user_start :] = NAN_WORD
    state = model.encode(inputs_of(buffer._replace(words=for_encode)))
    for_score = buffer.words.copy()
    buffer.layout.views(for_score).events[:] = NAN_WORD
    found = model.score(state, inputs_of(buffer._replace(words=for_score)))
    used = inputs_of(buffer).candidate_valid
    torch.testing.assert_close(found[used], expected[used], **CLOSE)


@pytest.mark.parametrize("field", INPUTS)
def test_every_input_matters(any_spec, make_model, make_inputs, field) -> None:
    model = make_model(any_spec)
    inputs = make_inputs(any_spec, lengths_of(any_spec, 37), [23])
    values = getattr(inputs, field)
    changed = (values + 0.5) if values.is_floating_point() else torch.where(values > 0, values - 1, values + 1)
    difference = model.rank(dataclasses.replace(inputs, **{field: changed})) - model.rank(inputs)
    assert (difference.abs() > 1e-4).float().mean() > 0.9, "nearly every score should move"


def test_the_order_of_events_matters(any_spec, make_model, make_inputs) -> None:
    model = make_model(any_spec)
    inputs = make_inputs(any_spec, lengths_of(any_spec, 36), [23])
    turned = {
        name: torch.cat([getattr(inputs, name)[:, :, :5].flip(2), getattr(inputs, name)[:, :, 5:]], 2)
        for name in ("event_item", "event_action", "event_integers", "event_floats")
    }
    difference = model.rank(dataclasses.replace(inputs, **turned)) - model.rank(inputs)
    assert difference.abs().max() > 1e-3
