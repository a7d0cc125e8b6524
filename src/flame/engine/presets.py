"""Models to try and to measure: the paper's two sizes, the public HSTU's, and small ones for tests.

`flame-base` and `flame-long` are reconstructed: the paper tells history, candidates, blocks, layers and FLOPs, and
dim 96 follows from these (its hidden size, heads, feature set and head are not published). `hstu-7k` has the history
and the candidates of MLPerf's DLRMv3.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

import msgspec

from flame.engine.random_weights import random_weights
from flame.engine.spec import ClimberConfig, HstuConfig, ModelSpec, RelativeBias, Task
from flame.errors import PackageError
from flame.schema import Field, InputSchema, ItemTable, SequenceSpec

__all__ = ["TASKS", "names", "preset", "random_weights"]

TASKS = tuple(Task(name) for name in ("complete_play", "like", "share", "comment"))

_HALVES = (SequenceSpec("older", "part", part=0, of=2), SequenceSpec("newer", "part", part=1, of=2))

_MUSIC_ITEM = (
    Field("artist", "int32", vocabulary=10_000),
    Field("album", "int32", vocabulary=20_000),
    Field("label", "int32", vocabulary=1_000),
    Field("genre", "int32", vocabulary=64),
    Field("language", "int32", vocabulary=32),
    Field("era", "int32", vocabulary=16),
    Field("mood", "int32", vocabulary=32),
    Field("vocals", "int32", vocabulary=4),
    Field("tags", "int32", shape=(4,), vocabulary=512),
    Field("duration", "float32"),
    Field("tempo", "float32"),
    Field("popularity", "float32"),
    Field("completion_rate", "float32"),
)
_MUSIC_USER = (
    Field("age_band", "int32", vocabulary=12),
    Field("region", "int32", vocabulary=400),
    Field("subscription", "int32", vocabulary=4),
    Field("tenure", "float32"),
    Field("daily_plays", "float32"),
)
_MUSIC_CONTEXT = (
    Field("hour", "int32", vocabulary=25),
    Field("network", "int32", vocabulary=6),
    Field("session_minutes", "float32"),
)


def preset(name: str) -> ModelSpec:
    """The spec of that name; raises `PackageError` for a name that is not in `names()`."""
    if name not in _PRESETS:
        close = get_close_matches(name, names(), 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise PackageError(f"there is no preset {name!r}; {hint}presets are {', '.join(names())}")
    return _PRESETS[name](name)


def names() -> tuple[str, ...]:
    """All preset names."""
    return tuple(_PRESETS)


def _flame(name: str, history: int) -> ModelSpec:
    """The paper's model: two blocks of twelve layers over the two halves of the history."""
    return ModelSpec(
        name=name,
        version="1",
        tasks=TASKS,
        input=InputSchema(
            item_id=ItemTable(vocabulary=100_000, dim=96),
            max_history=history,
            max_candidates=1024,
            actions=8,
            scenarios=4,
            item=_MUSIC_ITEM,
            user=_MUSIC_USER,
            context=_MUSIC_CONTEXT,
            sequences=_HALVES,
        ),
        climber=ClimberConfig(
            dim=96, layers=12, heads=3, ffn=384, experts=8, expert_hidden=512, expert_dim=64, tower_hidden=64
        ),
    )


def _tiny_schema(sequences: tuple[SequenceSpec, ...], item_dim: int) -> InputSchema:
    """Odd sizes throughout, fields of several words, and an item dim that need not be the model's."""
    return InputSchema(
        item_id=ItemTable(vocabulary=1000, dim=item_dim),
        max_history=37,
        max_candidates=23,
        actions=5,
        scenarios=3,
        item=(
            Field("genre", "int32", vocabulary=11, default=1),
            Field("mood", "float32", shape=(3,)),
            Field("tags", "int32", shape=(2,), vocabulary=7),
            Field("length", "float32"),
        ),
        user=(Field("region", "int32", vocabulary=9), Field("activity", "float32", shape=(2,))),
        context=(Field("hour", "int32", vocabulary=25), Field("battery", "float32", default=1.0)),
        sequences=sequences,
    )


def _tiny_climber(name: str, *, bias: bool = False, **options: object) -> ModelSpec:
    sizes: dict[str, object] = {"dim": 24, "layers": 3, "heads": 2, "ffn": 40, "expert_hidden": 20, "expert_dim": 12}
    if bias:
        sizes["relative_bias"] = RelativeBias(positions=9, time_buckets=12)
    climber = ClimberConfig(**(sizes | {"tower_hidden": 10, "experts": 3} | options))  # type: ignore[arg-type]
    liked = SequenceSpec("liked", "actions", actions=(2, 3), limit=11)
    sequences = (*_HALVES, liked) if bias else _HALVES
    return ModelSpec(name, "1", TASKS[:3], _tiny_schema(sequences, item_dim=24 if bias else 18), climber=climber)


def _tiny_hstu(name: str, *, causal: bool = True) -> ModelSpec:
    sizes = HstuConfig(
        dim=24, layers=3, heads=2, attention_dim=10, linear_dim=14, causal=causal, time_buckets=20, tower_hidden=12
    )
    return ModelSpec(name, "1", TASKS[:3], _tiny_schema((SequenceSpec("all"),), item_dim=18), hstu=sizes)


def _appendable(spec: ModelSpec) -> ModelSpec:
    """A causal model as one of whose events nothing changes when newer ones are appended."""
    schema = msgspec.structs.replace(spec.input, sequences=(SequenceSpec("all"),), positions="oldest")
    hstu = spec.hstu and msgspec.structs.replace(spec.hstu, times="gap")
    return msgspec.structs.replace(spec, input=schema, hstu=hstu)


def _hstu(name: str, history: int) -> ModelSpec:
    """The public HSTU's sizes: 5 layers of 4 heads of 128 over width 512, with small tables and few features."""
    return ModelSpec(
        name=name,
        version="1",
        tasks=TASKS,
        input=InputSchema(
            item_id=ItemTable(vocabulary=20_000, dim=512),
            max_history=history,
            max_candidates=2048,
            actions=8,
            scenarios=4,
            item=(Field("artist", "int32", vocabulary=1_000), Field("popularity", "float32")),
            user=(Field("region", "int32", vocabulary=400),),
            context=(Field("hour", "int32", vocabulary=25),),
        ),
        hstu=HstuConfig(dim=512, layers=5, heads=4, attention_dim=128, linear_dim=128),
    )


_PRESETS: dict[str, Callable[[str], ModelSpec]] = {
    "flame-base": lambda name: _flame(name, history=512),
    "flame-long": lambda name: _flame(name, history=1024),
    "hstu-1k": lambda name: _hstu(name, history=1024),
    "hstu-7k": lambda name: _hstu(name, history=6700),
    "tiny-climber": _tiny_climber,
    "tiny-climber-bias": lambda name: _tiny_climber(name, bias=True),
    "tiny-climber-causal": lambda name: _tiny_climber(name, causal=True),
    "tiny-climber-own-wiring": lambda name: _tiny_climber(name, wiring="climber"),
    "tiny-hstu": _tiny_hstu,
    "tiny-hstu-bidirectional": lambda name: _tiny_hstu(name, causal=False),
    "tiny-climber-appendable": lambda name: _appendable(_tiny_climber(name, causal=True)),
    "tiny-hstu-appendable": lambda name: _appendable(_tiny_hstu(name)),
}
