"""What the ladder is measured on: scenarios, and one packed input for each number of users."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flame.engine.flops import needed_encode_flops, needed_flops, needed_score_flops, needed_stack_flops
from flame.engine.inputs import ModelInputs, unpack
from flame.engine.package import ModelPackage
from flame.engine.sampling import random_words
from flame.engine.spec import ModelSpec, Profile

CLIMBER = (
    "eager-dense",
    "sdpa",
    "compile-graph",
    "flex-graph",
    "flex-graph-together",
    "onnxruntime",
    "flame-no-stack",
    "flame-no-feed-forward",
    "flame-no-tokens",
    "flame-no-head",
    "flame-no-graph",
    "flame-fp32",
    "flame-fp16",
    "flame",
)
HSTU = ("eager-dense", "compile-graph", "flex-graph", "flame-no-graph", "flame-fp32", "flame-fp16", "flame")
WIDE = ("flex-graph", "flex-graph-together", "flame")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A model, its traffic (history events, candidate counts of the users of a launch), and what is measured on it.

    `width` other than 0 is the model's dim in the place of the source's own (`flame.bench.ladder.packages`).
    """

    source: str
    history: int
    candidates: tuple[int, ...]
    users: tuple[int, ...]
    variants: tuple[str, ...]
    width: int = 0

    @property
    def model(self) -> tuple[str, int]:
        """Scenarios with the same share a model."""
        return self.source, self.width


# One model for the paper's two shapes, so that its engines are built once: they differ in the longest history alone.
SCENARIOS: dict[str, Scenario] = {
    "base": Scenario("preset:flame-long", 512, (128,), (1, 8, 32), CLIMBER),
    "long": Scenario("preset:flame-long", 1024, (512,), (1, 8, 32), CLIMBER),
    "mixed": Scenario("preset:flame-long", 1024, (128, 256, 512, 1024), (1, 8, 32), CLIMBER),
    "hstu": Scenario("preset:hstu-1k", 1024, (2048,), (32,), HSTU),
    "dlrm": Scenario("preset:hstu-7k", 6700, (2048,), (8,), HSTU),
    "wide-512": Scenario("preset:flame-long", 1024, (512,), (1, 8, 32), WIDE, width=512),
    "wide-1024": Scenario("preset:flame-long", 1024, (512,), (1, 8, 32), WIDE, width=1024),
}


@dataclass(frozen=True)
class Case:
    """One launch: a profile and a packed input `words` on the device, with `counts` candidates for its users."""

    scenario: str
    package: ModelPackage
    profile: Profile
    counts: tuple[int, ...]
    words: Tensor

    @classmethod
    def draw(cls, scenario: str, package: ModelPackage, users: int, seed: int, device: torch.device) -> Case:
        """Full histories; the candidate counts of the scenario, each as often, in random order."""
        shape = SCENARIOS[scenario]
        rng = np.random.default_rng([seed, users])
        profile = Profile(users, shape.history, max(shape.candidates))
        counts = np.resize(rng.permutation(shape.candidates), users).tolist()
        spec = package.spec
        lengths = [tuple(one.capacity(profile.history) for one in spec.input.sequences)] * users
        words = random_words(spec, spec.layout(profile), lengths, counts, rng)
        return cls(scenario, package, profile, tuple(counts), torch.from_numpy(words).to(device))

    @property
    def spec(self) -> ModelSpec:
        return self.package.spec

    @property
    def device(self) -> torch.device:
        return self.words.device

    @property
    def pairs(self) -> int:
        """Candidates that are asked for, of all users."""
        return sum(self.counts)

    @cached_property
    def inputs(self) -> ModelInputs:
        """Views of `words`."""
        return unpack(self.words, self.spec.layout(self.profile))

    @property
    def events(self) -> int:
        """Event slots of a sequence."""
        return self.spec.layout(self.profile).events

    def flops(self, part: str, kind: str) -> int:
        """Operations that the answers of this launch need."""
        spec, history = self.spec, self.profile.history
        if kind == "encode":
            return len(self.counts) * needed_encode_flops(spec, history)
        needed = {"rank": needed_flops, "score": needed_score_flops, "stack": needed_stack_flops}
        own = needed["stack" if part == "stack" else kind]
        return sum(own(spec, history, count) for count in self.counts)

    def dense_bytes(self, width: int) -> int:
        """Memory of one user's dense attention in numbers of `width` bytes: the matrices and eager's copies."""
        sizes = self.spec.climber or self.spec.hstu
        assert sizes is not None
        rows = self.events + self.profile.candidates
        return 4 * len(self.spec.input.sequences) * sizes.heads * rows * rows * width

    def asked(self, scores: Tensor) -> Tensor:
        """The part of `scores` `[users, candidates, tasks]` that means something: fp32 `[pairs, tasks]`."""
        return scores[self.inputs.candidate_valid].float()

    def asked_rows(self, rows: Tensor) -> Tensor:
        """Rows of the candidates that are asked for `[pairs, blocks * dim]`.

        `rows` is `[users, blocks, candidates, dim]`, or without blocks.
        """
        return self.asked(rows if rows.ndim == 3 else rows.transpose(1, 2).flatten(2))
