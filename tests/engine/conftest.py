"""Models of every kind, small and with odd sizes, and random inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from flame.engine.inputs import ModelInputs, unpack
from flame.engine.models import RankModel, create
from flame.engine.presets import preset, random_weights
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, ModuleConfig, Profile

VARIANTS = (
    "tiny-climber",
    "tiny-climber-bias",
    "tiny-climber-causal",
    "tiny-climber-own-wiring",
    "tiny-climber-bias-causal",
    "tiny-hstu",
    "tiny-hstu-bidirectional",
    "tiny-climber-appendable",
    "tiny-hstu-appendable",
)

MakeModel = Callable[[ModelSpec], RankModel]
MakeInputs = Callable[..., ModelInputs]


def variant_spec(name: str) -> ModelSpec:
    if name != "tiny-climber-bias-causal":
        return preset(name)
    spec = preset("tiny-climber-bias")
    return msgspec.structs.replace(spec, climber=msgspec.structs.replace(spec.climber, causal=True))


@pytest.fixture(params=VARIANTS)
def any_spec(request: pytest.FixtureRequest) -> ModelSpec:
    """Each variant in turn."""
    return variant_spec(request.param)


@pytest.fixture(params=[name for name in VARIANTS if "climber" in name])
def climber_spec(request: pytest.FixtureRequest) -> ModelSpec:
    """Each Climber in turn."""
    return variant_spec(request.param)


@pytest.fixture(params=[name for name in VARIANTS if "hstu" in name])
def hstu_spec(request: pytest.FixtureRequest) -> ModelSpec:
    """Each HSTU in turn."""
    return variant_spec(request.param)


@pytest.fixture
def make_model() -> MakeModel:
    """A model with random weights, in float32."""

    def make(spec: ModelSpec, seed: int = 0) -> RankModel:
        model = create(spec)
        weights = random_weights(spec, seed)
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        return model

    return make


@pytest.fixture
def make_inputs() -> MakeInputs:
    """Random inputs with the given events per user and sequence and candidates per user; unused words are NaN."""

    def make(
        spec: ModelSpec,
        lengths: Sequence[Sequence[int]],
        counts: Sequence[int],
        *,
        profile: Profile | None = None,
        seed: int = 0,
    ) -> ModelInputs:
        limits = spec.input
        layout = spec.layout(profile or Profile(len(counts), limits.max_history, limits.max_candidates))
        words = random_words(spec, layout, lengths, counts, np.random.default_rng(seed))
        return unpack(torch.from_numpy(words), layout)

    return make


OWN_MODULE = """
import torch
from torch import nn

from flame.engine.models import RankModel


class MeanRanker(RankModel):
    def __init__(self, spec, width=8):
        super().__init__()
        self.items = nn.Embedding(spec.input.item_id.vocabulary, width)
        self.out = nn.Linear(2 * width, len(spec.tasks))
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("scale", torch.tensor([0.5]), persistent=False)

    def encode(self, inputs):
        valid = inputs.event_valid
        items = self.items(torch.where(valid, inputs.event_item, 0)) * valid[..., None]
        return (items.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)[:, None],)

    def score(self, state, inputs):
        items = self.items(torch.where(inputs.candidate_valid, inputs.candidate_item, 0))
        return self.out(torch.cat([state[0][:, None].expand_as(items), items], -1)) * self.scale
"""


@pytest.fixture
def own_source(tmp_path: Path) -> Path:
    """A Python file with an architecture that is not ours."""
    source = tmp_path / "mean_ranker.py"
    source.write_text(OWN_MODULE)
    return source


@pytest.fixture
def own_spec() -> ModelSpec:
    """The spec of that architecture."""
    module = ModuleConfig(file="mean_ranker.py", class_name="MeanRanker", options={"width": 6})
    return msgspec.structs.replace(preset("tiny-hstu"), name="own", hstu=None, module=module)
