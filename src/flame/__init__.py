"""FLAME: online serving for generative-recommendation rankers.

    import numpy as np
    from flame import RankRequest, Ranker

    with Ranker.load("preset:tiny-climber") as ranker:
        response = ranker.rank(RankRequest(user=42, candidates=np.arange(1, 21)))

Names are imported when they are first used: `import flame` alone loads neither torch nor a server.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame.config import Config
    from flame.errors import FlameError
    from flame.ranker import Ranker
    from flame.records import FeatureCounts, History, RankRequest, RankResponse, StageTimes

__version__ = "0.1.0"

__all__ = [
    "Config",
    "FeatureCounts",
    "FlameError",
    "History",
    "RankRequest",
    "RankResponse",
    "Ranker",
    "StageTimes",
    "__version__",
    "compiled",
]

_HOME = {
    "Config": "config",
    "FlameError": "errors",
    "Ranker": "ranker",
    **dict.fromkeys(["FeatureCounts", "History", "RankRequest", "RankResponse", "StageTimes"], "records"),
}


def compiled() -> bool:
    """Whether the request path runs as machine code, as in a wheel that was built so, or as Python."""
    found = importlib.util.find_spec("flame.orchestrator.schedule")
    return found is not None and (found.origin or "").endswith(tuple(EXTENSION_SUFFIXES))


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'flame' has no attribute {name!r}")
    return getattr(importlib.import_module(f"flame.{_HOME[name]}"), name)
