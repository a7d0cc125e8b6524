"""What the tokens kernel has to know of any model: its records, their features, and the tables beside them."""

from __future__ import annotations

from flame.engine.kernels.rows import Header
from flame.engine.kernels.tokens import TokenSizes
from flame.engine.models.input_stage import category_offsets
from flame.engine.spec import ModelSpec
from flame.layout import CANDIDATES, LENGTHS
from flame.schema import RowLayout


def token_sizes(
    spec: ModelSpec, dim: int, *, ages: int | None = None, times: int = 0, scenarios: int = 0
) -> TokenSizes:
    """The sizes of the input stage of a model `dim` wide; `ages`, `times` and `scenarios` as in `TokenSizes`."""
    schema, record = spec.input, spec.record
    rows = {"item": schema.item_row, "user": schema.user_row, "context": schema.context_row}
    categories = {f"{name}_categories": _categories(row) for name, row in rows.items()}
    offsets = {f"{name}_offsets": tuple(category_offsets(row)) for name, row in rows.items()}
    floats = {f"{name}_floats": row.float_words for name, row in rows.items()}
    return TokenSizes(
        dim=dim,
        blocks=len(schema.sequences),
        item_dim=schema.item_id.dim,
        host=schema.item_id.lookup == "host",
        actions=schema.actions,
        positions=schema.sequence_capacity(schema.max_history) + 1,
        header_words=record.header_words,
        event_words=record.event_words,
        candidate_words=record.candidate_words,
        user_start=record.user_start,
        context_start=record.context_start,
        times=times,
        scenarios=scenarios,
        ages=ages,
        oldest=schema.positions == "oldest",
        gaps=spec.hstu is not None and spec.hstu.times == "gap",
        prefix_word=header_of(spec).prefix,
        **categories,  # type: ignore[arg-type]
        **offsets,  # type: ignore[arg-type]
        **floats,  # type: ignore[arg-type]
    )


def header_of(spec: ModelSpec) -> Header:
    """Where all kernels find the counts of a user."""
    record = spec.record
    prefix = record.prefix if spec.appendable else None
    return Header(record.header_words, CANDIDATES, LENGTHS, -1 if prefix is None else prefix)


def _categories(row: RowLayout) -> int:
    return sum(field.vocabulary or 0 for field in row.fields)
