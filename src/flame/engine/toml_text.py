"""Plain data as TOML text; the standard library only reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flame.errors import PackageError


def to_toml(tree: Mapping[str, Any]) -> str:
    """`tree` of strings, numbers, booleans, lists and mappings as TOML; None values are left out.

    A list of mappings becomes an array of tables, so a feature is one block of lines.
    """
    lines: list[str] = []
    _table(tree, (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    """Plain values first, as TOML wants them, then the tables below this one."""
    present = {name: value for name, value in table.items() if value is not None}
    below = {name: value for name, value in present.items() if isinstance(value, Mapping) or _is_table_array(value)}
    for name, value in present.items():
        if name not in below:
            lines.append(f"{_key(name)} = {_value(value)}")
    for name, value in below.items():
        where = (*path, name)
        opening = "[{}]" if isinstance(value, Mapping) else "[[{}]]"
        for part in [value] if isinstance(value, Mapping) else value:
            lines += ["", opening.format(".".join(map(_key, where)))]
            _table(part, where, lines)


def _is_table_array(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(part, Mapping) for part in value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_value(part)}" for name, part in value.items()) + "}"
    raise PackageError(f"{value!r} of type {type(value).__name__} cannot be written to TOML")


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("-", "_").isidentifier()
    return name if plain else _text(name)


def _text(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
