"""The truth of these kernels is that of the fusion in one kernel."""

from __future__ import annotations

from flame.engine.kernels.fusion.reference import fused

__all__ = ["fused"]
