"""`model.toml` as a `ModelSpec`, with everything that is wrong with it told at once."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from flame.engine.spec import ModelSpec


def parse_spec(content: bytes) -> tuple[ModelSpec | None, list[str]]:
    """The spec in a `model.toml`, or None and the problems, each with the field it is about."""
    try:
        tree = msgspec.toml.decode(content.removeprefix(codecs.BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, [f"model.toml is not TOML: {error}"]
    found = _problems(tree, ModelSpec, "")
    return (None, [f"model.toml: {problem}" for problem in found]) if found else (msgspec.convert(tree, ModelSpec), [])


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` where one of `known` is close to `name`, else nothing."""
    close = get_close_matches(name, list(known), 1, cutoff=0.75)
    return f"; did you mean {close[0]!r}?" if close else ""


def _problems(value: Any, kind: Any, where: str) -> list[str]:
    """What keeps `value` from being a `kind`; `where` is its path, empty at the top."""
    arms = [arm for arm in get_args(kind) if arm is not type(None)] if _is_union(kind) else [kind]
    kind = arms[0] if len(arms) == 1 else kind
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, Mapping):
        return _struct_problems(value, kind, where)
    if get_origin(kind) is tuple and isinstance(value, list):
        part = get_args(kind)[0]
        return [text for index, each in enumerate(value) for text in _problems(each, part, f"{where}[{index}]")]
    return _conversion_problem(value, kind, where)


def _struct_problems(table: Mapping[str, Any], kind: type[msgspec.Struct], where: str) -> list[str]:
    """Unknown, missing and wrong fields; with none of them, what the fields contradict in each other."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    kinds = get_type_hints(kind, include_extras=True)
    found = [f"unknown field {_join(where, name)!r}{suggestion(name, fields)}" for name in table if name not in fields]
    found += [
        f"missing field {_join(where, name)!r}"
        for name, field in fields.items()
        if field.required and name not in table
    ]
    for name in fields:
        if name in table:
            found += _problems(table[name], kinds[name], _join(where, name))
    return found or _conversion_problem(table, kind, where)


def _conversion_problem(value: Any, kind: Any, where: str) -> list[str]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        choices = f"; it is one of {', '.join(map(repr, get_args(kind)))}" if get_origin(kind) is Literal else ""
        return [f"{where}: {error}{choices}" if where else str(error)]
    return []


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
