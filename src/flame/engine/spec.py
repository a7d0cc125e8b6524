"""What a model is and which shapes it runs in: plain data, free of torch, readable by the orchestrator."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from flame.errors import PackageError
from flame.layout import PackedLayout, RecordLayout
from flame.schema import InputSchema, Positive, Text

PathName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._~-]+$")]
"""Part of a URL as it stands: /v2/models/NAME/versions/VERSION."""


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output of the model: a score per candidate."""

    name: Text
    activation: Literal["sigmoid", "identity"] = "sigmoid"


class RelativeBias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Learned bias added to attention logits, by distance in position and in time.

    A candidate stands right after the last event, at its time (M-FALCON). `positions` is the largest distance told
    apart; `time_buckets` counts buckets of log2(1 + seconds).
    """

    positions: Positive = 128
    time_buckets: Positive = 32


class ClimberConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of a Climber (arXiv 2502.09888), one block per sequence of the schema.

    `wiring` says where residual and norm stand: as FLAME's figure 8 draws them, or as Climber's own figure does.
    """

    dim: Positive
    layers: Positive
    heads: Positive
    ffn: Positive
    causal: bool = False
    wiring: Literal["flame", "climber"] = "flame"
    relative_bias: RelativeBias | None = None
    gate_reduction: Positive = 4
    experts: Positive = 4
    expert_hidden: Positive = 128
    expert_dim: Positive = 64
    tower_hidden: Positive = 64


class HstuConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of an HSTU (arXiv 2402.17152) in the form of the public STU code.

    `times` says which time an event's token tells: its `age`, which every later event changes, or the `gap` to the
    event before it.
    """

    dim: Positive
    layers: Positive
    heads: Positive
    attention_dim: Positive
    linear_dim: Positive
    causal: bool = True
    time_buckets: Positive = 64
    tower_hidden: Positive = 128
    times: Literal["age", "gap"] = "age"


class ModuleConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user's own architecture: a Python file of the package and the class in it."""

    file: str
    class_name: str
    options: dict[str, Any] = {}


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model without its weights: the contents of `model.toml`. Exactly one architecture is given."""

    name: PathName
    version: PathName
    tasks: tuple[Task, ...]
    input: InputSchema
    climber: ClimberConfig | None = None
    hstu: HstuConfig | None = None
    module: ModuleConfig | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in ("climber", "hstu", "module") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise PackageError(f"a model has exactly one of [climber], [hstu], [module]; got {given or 'none'}")
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) != len(names):
            raise PackageError(f"a model needs tasks with unique names, got {names}")
        if self.climber and self.climber.dim % self.climber.heads:
            dim, heads = self.climber.dim, self.climber.heads
            raise PackageError(f"climber.dim {dim} is not a multiple of climber.heads {heads}")
        if self.hstu and len(self.input.sequences) != 1:
            raise PackageError(f"an HSTU reads one sequence, input.sequences has {len(self.input.sequences)}")

    @property
    def architecture(self) -> str:
        return "climber" if self.climber else "hstu" if self.hstu else "module"

    @property
    def appendable(self) -> bool:
        """Whether the encoded events of a history stay as they are when newer ones are appended.

        No event may look at later ones, by attention, by its position or by its time, nor move to another sequence.
        """
        sequences = self.input.sequences
        if len(sequences) != 1 or sequences[0].kind == "part" or self.input.positions != "oldest":
            return False
        if self.hstu:
            return self.hstu.causal and self.hstu.times == "gap"
        return self.climber is not None and self.climber.causal

    @property
    def record(self) -> RecordLayout:
        return RecordLayout.of(self.input)

    def layout(self, profile: Profile) -> PackedLayout:
        """The packed buffer of one launch of `profile`."""
        events = self.input.sequence_capacity(profile.history)
        return PackedLayout(self.record, profile.users, events, profile.candidates)


class Profile(NamedTuple):
    """A shape that exists: at most so many users, history events per user and candidates per user in one launch."""

    users: int
    history: int
    candidates: int

    @property
    def rows(self) -> int:
        """Events and candidates of a full launch, by which profiles are larger and smaller."""
        return self.users * (self.history + self.candidates)

    def __str__(self) -> str:
        return f"{self.users}x{self.history}+{self.candidates}"


class ProfileCost(msgspec.Struct, frozen=True):
    """Milliseconds of one full launch of a profile, measured when the engine was built: medians."""

    rank: float
    encode: float
    score: float
