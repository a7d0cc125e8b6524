"""The table of a README, drawn from a benchmark's document and kept between two comments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flame.errors import ConfigError

Row = Mapping[str, Any]

_COLUMNS = {
    "eager-dense": "eager, dense mask",
    "compile-graph": "torch.compile",
    "flex-graph": "FlexAttention",
    "flame": "**FLAME**",
}
"""Variants whose times are columns; the last is ours."""


def engine(document: Mapping[str, Any]) -> str:
    """Markdown of a document of `flame bench engine` on a GPU: whole models, a line for each scenario and users."""
    rows = {
        (row["scenario"], row["users"], row["variant"], row["kind"]): row
        for row in document["rows"]
        if row.get("part") == "model"
    }
    launches = list(dict.fromkeys(key[:2] for key in rows if key[2] == "flame"))
    if not launches:
        raise ConfigError("the document has no rows of the whole model in the variant flame, so there is no table")
    head = [
        "scenario",
        "users a launch",
        *(f"{name}, ms" for name in _COLUMNS.values()),
        "over FlexAttention",
        "over the fastest PyTorch row",
        "M pairs/s",
        "share of the matrix rate",
        "the same history again, ms",
    ]
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line(_cells(rows, scenario, users)) for scenario, users in launches]
    return "\n".join([_caption(document), "", *lines, *_notes(document)])


def into(text: str, name: str, table: str) -> str:
    """`text` with what stands between the comments `<!-- NAME -->` and `<!-- /NAME -->` replaced by `table`.

    Raises `ConfigError` where the two are not there once each.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ConfigError(f"the table's place is not marked: one line {begin} and below it one line {end} are needed")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def update(file: Path, name: str, table: str) -> bool:
    """Writes `table` into `file`; False where it stood there already."""
    try:
        old = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    new = into(old, name, table)
    if new != old:
        file.write_text(new, encoding="utf-8")
    return new != old


def _caption(document: Mapping[str, Any]) -> str:
    host = document["machine"]
    commit = f", commit {host['commit'][:7]}" if host.get("commit") else ""
    versions = ", ".join(
        f"{name} {host[key]}" for name, key in (("PyTorch", "torch"), ("Triton", "triton")) if key in host
    )
    return (
        f"One {document.get('device', 'GPU')}, {document.get('precision', 'bf16')}, {versions}{commit}: device time of "
        "one launch of the whole model, from packed ids and features to scores. The columns with torch.compile and "
        "FlexAttention run as captured graphs too."
    )


def _notes(document: Mapping[str, Any]) -> list[str]:
    """What rows of the table say of themselves, each once."""
    noted = {
        f"{row['scenario']}, {row['variant']}: {row['note']}."
        for row in document["rows"]
        if row["variant"] in _COLUMNS and row.get("note") and row.get("part") == "model"
    }
    return ["", *sorted(noted)] if noted else []


def _cells(rows: Mapping[tuple[Any, ...], Row], scenario: str, users: int) -> Iterator[str]:
    ours = rows[scenario, users, "flame", "rank"]
    again = rows.get((scenario, users, "flame", "score"))
    yield f"{scenario}: {_count(ours['history'])} events, {_candidates(ours)} candidates"
    yield str(users)
    for variant in _COLUMNS:
        row = rows.get((scenario, users, variant, "rank"))
        text = _ms(row["ms_median"]) if row else "-"
        yield f"**{text}**" if variant == "flame" else text
    yield f"**{ours['ratio']:.1f}x**" if ours.get("ratio") else "-"
    yield f"{ours['ratio_to_best']:.1f}x" if ours.get("ratio_to_best") else "-"
    yield f"{ours['pairs_per_s'] / 1e6:.2f}"
    yield f"{ours['share_of_peak']:.0%}"
    yield _ms(again["ms_median"]) if again else "-"


def _candidates(row: Row) -> str:
    """How many a user has; the most where users differ."""
    most, pairs, users = row["candidates"], row["pairs"], row["users"]
    return _count(most) if pairs == most * users else f"up to {_count(most)}"


def _count(number: int) -> str:
    return f"{number:,}" if number >= 10_000 else str(number)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3f}" if milliseconds < 10 else f"{milliseconds:.1f}"


def _line(cells: Sequence[str] | Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"
