"""The fusions that can be switched off, to see what each is worth."""

from __future__ import annotations

from flame.errors import ConfigError

PARTS = {
    "stack": "all layers of all blocks in one launch; without it, kernels of their own for every layer",
    "feed-forward": "the feed-forward half as one kernel; without it, two products and a norm",
    "tokens": "the input stage as one kernel; without it, PyTorch's operations",
    "head": "fusion and heads as fused kernels; without it, PyTorch's operations",
    "graph": "captured graphs; without them, kernels launched one by one",
}


def check_parts(without: tuple[str, ...]) -> frozenset[str]:
    """The parts to leave out. Raises `ConfigError` for one that is not in `PARTS`."""
    unknown = sorted(set(without) - set(PARTS))
    if unknown:
        raise ConfigError(f"engine.without names {unknown}; parts are {', '.join(PARTS)}")
    return frozenset(without)
