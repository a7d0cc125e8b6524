"""One user's encoded history on the device: a header that kernels read, then whatever the program keeps.

    header   int32 [64]   word 0: capacity, events per sequence, a multiple of 128; word 1 + b: length of sequence b
    body                  the program's, from byte 256 on; it finds its places from the capacity

Kernels get the addresses of a launch's states as int64 `[users]`. In a `rank` launch these are slices of the
workspace. The capacity is written when a state is made, the lengths by the launch that encodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

HEADER_WORDS = 64
HEADER_BYTES = 4 * HEADER_WORDS
MOST_BLOCKS = HEADER_WORDS - 1


@dataclass(eq=False, slots=True)
class DeviceState:
    """Memory of one state; held by whoever asked the engine for it, `encoded` once an encode has been put into it.

    `events` is how many of the first sequence that encode put there. `owner` is what made it: a state means nothing to
    another engine.
    """

    memory: torch.Tensor
    capacity: int
    encoded: bool = False
    events: int = 0
    owner: object = None

    @property
    def nbytes(self) -> int:
        return self.memory.numel()

    @property
    def address(self) -> int:
        return self.memory.data_ptr()


def new_state(capacity: int, body_bytes: int, device: torch.device, owner: object = None) -> DeviceState:
    """A state for `capacity` events per sequence with nothing encoded in it; its header is written before return."""
    memory, _ = workspace_states(1, capacity, body_bytes, device)
    return DeviceState(memory[0], capacity, owner=owner)


def workspace_states(
    users: int, capacity: int, body_bytes: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory of `users` states with their headers written, uint8 `[users, bytes]`, and their addresses int64 `[users]`.

    `body_bytes` is a multiple of 4.
    """
    memory = torch.zeros(users, HEADER_BYTES + body_bytes, dtype=torch.uint8, device=device)
    memory[:, :4].view(torch.int32).copy_(torch.full((users, 1), capacity, dtype=torch.int32))
    # Launches run on streams that wait for no other; a copy from pageable memory is over when it returns, and with it
    # all that stood before it on this stream.
    return memory, torch.tensor([state.data_ptr() for state in memory], dtype=torch.int64, device=device)
