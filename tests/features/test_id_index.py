"""The index from ids to positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.features.id_index import DuplicateId, IdIndex

IDS = st.one_of(st.integers(-50, 50), st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=80, deadline=None)
@given(known=st.lists(IDS, unique=True, max_size=200), asked=st.lists(IDS, max_size=100))
def test_it_finds_what_a_dictionary_finds(known: list[int], asked: list[int]) -> None:
    index = IdIndex.build(np.array(known, np.int64))
    places = {value: place for place, value in enumerate(known)}
    wanted = asked + known[::2]
    assert index.find(np.array(wanted, np.int64)).tolist() == [places.get(value, -1) for value in wanted]


def test_an_id_given_twice_is_named_with_both_places() -> None:
    with pytest.raises(DuplicateId) as caught:
        IdIndex.build(np.array([5, 0, 7, 0, 5], np.int64))
    assert (caught.value.value, caught.value.first, caught.value.second) == (0, 1, 3)
