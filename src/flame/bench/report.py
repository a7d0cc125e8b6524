"""How a benchmark ends: a table for people, and one JSON document as the last line of standard output.

{"bench": NAME, "machine": {...}, "rows": [{...}, ...]}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np

from flame.bench import machine
from flame.bench.environment import Environment
from flame.errors import ConfigError

Row = Mapping[str, Any]


def document(bench: str, rows: Sequence[Row], environment: Environment, **facts: Any) -> dict[str, Any]:
    """The JSON document of a run; `facts` (the settings of the run, say) stand between machine and rows."""
    host = machine.describe() | {"load_average": environment.load_average, "busy_share": environment.busy_share}
    return {"bench": bench, "machine": host, **facts, "rows": [plain(row) for row in rows]}


def emit(content: Mapping[str, Any], *, only_json: bool, output: Path | None = None) -> None:
    """Prints the table (unless `only_json`) and then the document in one line; writes it to `output` as well."""
    if not only_json:
        print_table(content["bench"], content["rows"])
        print(_machine_line(content["machine"]))
    if output is not None:
        write(content, output)
    print(msgspec.json.encode(content).decode(), flush=True)


def write(content: Mapping[str, Any], file: Path) -> None:
    """The document as a file, made to be read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def read(file: Path) -> dict[str, Any]:
    """A document that was written. Raises `ConfigError` for a file that is none."""
    try:
        content = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is no JSON document of a benchmark: {error}") from error
    if not isinstance(content, dict) or not {"bench", "machine", "rows"} <= content.keys():
        raise ConfigError(f"{file} is no document of a benchmark: it needs bench, machine and rows")
    return content


def merged(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Documents of one benchmark on one machine as one; later rows take the place of earlier ones of the same case.

    Everything but the rows is that of the first. Raises `ConfigError` for documents of
    different benchmarks or chips.
    """
    first = documents[0]
    for other in documents[1:]:
        for what in ("bench", "device"):
            if other.get(what) != first.get(what):
                raise ConfigError(f"documents differ in {what}: {first.get(what)!r} and {other.get(what)!r}")
    rows: list[Row] = []
    for document in documents:
        cases = {_case(row) for row in document["rows"]}
        rows = [row for row in rows if _case(row) not in cases] + list(document["rows"])
    commits = list(dict.fromkeys(document["machine"].get("commit", "unknown") for document in documents))
    return {**first, **({"commits": commits} if len(commits) > 1 else {}), "rows": rows}


def _case(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("scenario", "users", "variant", "precision", "what", "policy", "load"))


def print_table(title: str, rows: Sequence[Row], stream: TextIO | None = None) -> None:
    """Rows as a table whose columns are all their keys, in the order they first appear; lists and tables are left out.

    On a terminal the table fits its width; elsewhere it is as wide as it needs to be, so that logs stay readable.
    """
    from rich.console import Console
    from rich.table import Table

    stream = stream or sys.stdout
    columns = list(
        dict.fromkeys(key for row in rows for key, value in row.items() if value is not None and _is_cell(value))
    )
    table = Table(title=title, title_justify="left")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(text_of(row.get(column)) for column in columns))
    Console(file=stream, width=None if stream.isatty() else 1000, highlight=False).print(table)


def text_of(value: object) -> str:
    """A cell: four significant digits are all a measurement has."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def plain(row: Row) -> dict[str, Any]:
    """A row with Python's own numbers; a float that is not finite becomes None, which JSON can say."""
    return {key: _plain_value(value) for key, value in row.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def _is_cell(value: object) -> bool:
    return not isinstance(value, Mapping | list | tuple)


def _machine_line(host: Row) -> str:
    gpus = f", {', '.join(host['gpus'])}" if host["gpus"] else ""
    commit = f", commit {host['commit'][:12]}{' (changed)' if host['dirty'] else ''}" if "commit" in host else ""
    return (
        f"{host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB{gpus}; "
        f"python {host['python']}, torch {host.get('torch', 'none')}, flame {host['flame']}{commit}"
    )
