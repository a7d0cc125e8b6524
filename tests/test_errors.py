"""The error tree: drawn in full, with a status both protocols know."""

from __future__ import annotations

import http
import pickle

import grpc
import pytest

from flame import errors
from flame.errors import FlameError


def family(root: type[FlameError]) -> list[type[FlameError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in family(child))]


CLASSES = [cls for cls in family(FlameError) if cls.__module__ == errors.__name__]
"""Those a server can answer with; benchmarks and examples have some more for the person who runs them."""


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_drawn_tree_names_the_class(cls: type[FlameError]) -> None:
    assert cls.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_both_protocols_know_the_status(cls: type[FlameError]) -> None:
    assert grpc.StatusCode[cls.grpc_code]
    assert cls.http_status == 499 or http.HTTPStatus(cls.http_status) >= 400


def test_kinds_tell_the_classes_apart() -> None:
    kinds = [cls.kind for cls in CLASSES]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_values_are_put_into_the_message_when_it_is_read(cls: type[FlameError]) -> None:
    error = cls("{} candidates in {:.2f} ms", 3, 1.5)
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert str(one) == "3 candidates in 1.50 ms"
    assert str(cls("a {} that a client sent")) == "a {} that a client sent"
    assert str(cls()) == ""


def test_arguments_that_are_no_template_are_told_as_they_are() -> None:
    assert str(FlameError("{} of {:.1f} ms", 2, 3.04)) == "2 of 3.0 ms"
    assert str(FlameError('bad JSON {"a": 1}', OSError("gone"))) == 'bad JSON {"a": 1} gone'
    assert str(FlameError("cannot reach {host}", "cache")) == "cannot reach {host} cache"
