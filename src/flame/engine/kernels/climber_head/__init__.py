"""A Climber's fusion, experts and towers: CUDA C++ for compute capability 9.0, bf16.

Every row is one candidate's alone, so four warps keep 64 rows in registers from the first product to the last, and
multiply them by `wgmma`. Weights lie as 8 x 8 matrices, as `climber_stack` has them, and come through rings of slots in
shared memory that a thread of its own fills by bulk copies, always ahead of the arithmetic.

    fusion    a warp has 8 candidates with both their blocks: nothing passes between threads but sums over a row
    experts   experts, gates, mixture and towers; where that does not fill the machine, several CTAs have the same rows
              and share the experts, and a launch of its own mixes what they made

Between the two, columns lie in the order of lanes: of 32, those together that one lane of a product has, so that both
move them 16 bytes at a time. All configurations give the same bits: no sum depends on how many rows or experts a CTA
has.
"""

from __future__ import annotations

from flame.engine.kernels.climber_head.experts import ClimberExperts, experts_fit
from flame.engine.kernels.climber_head.fusion import ClimberFusion, fusion_fits

__all__ = ["CAPABILITY", "ClimberExperts", "ClimberFusion", "experts_fit", "fusion_fits"]

CAPABILITY = 90
