"""The same as the kernel in plain fp32 PyTorch, token by token of the definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flame.engine.kernels.tokens import TokenPlaces, TokenSizes

Weights = Mapping[str, Tensor]


def event_tokens(sizes: TokenSizes, weights: Weights, places: TokenPlaces, words: Tensor) -> list[list[Tensor]]:
    """Tokens `[length, dim]` of every user's sequences, from packed words and an input stage's weights by name."""
    headers = words[: places.users * sizes.header_words].view(places.users, -1)
    shape = (places.users, sizes.blocks, places.event_slots, sizes.event_words)
    records = words[places.events_start :][: torch.Size(shape).numel()].view(shape)
    lengths = headers[:, sizes.lengths_word :][:, : sizes.blocks].tolist()
    return [
        [_events(sizes, weights, records[user, block, :length]) for block, length in enumerate(own)]
        for user, own in enumerate(lengths)
    ]


def candidate_tokens(sizes: TokenSizes, weights: Weights, places: TokenPlaces, words: Tensor) -> list[Tensor]:
    """Tokens `[count, dim]` of every user's candidates."""
    headers = words[: places.users * sizes.header_words].view(places.users, -1)
    shape = (places.users, places.candidate_slots, sizes.candidate_words)
    records = words[places.candidates_start :][: torch.Size(shape).numel()].view(shape)
    return [
        _candidates(sizes, weights, records[user, : int(header[sizes.count_word])], header)
        for user, header in enumerate(headers)
    ]


def _events(sizes: TokenSizes, weights: Weights, records: Tensor) -> Tensor:
    places = torch.arange(1, len(records) + 1)
    places = places if sizes.oldest else places.flip(0)
    total = _items(sizes, weights, records, 3) + weights["actions.weight"][records[:, 1].long()]
    total = total + weights["positions.weight"][places]
    if sizes.times:
        bounds = [2**power - 1 for power in range(1, min(sizes.times, 63))]
        seconds = records[:, 2]
        seconds = torch.cat([seconds[:1], seconds[:-1]]) - seconds if sizes.gaps else seconds
        buckets = [sum(time >= bound for bound in bounds) for time in seconds.tolist()]
        total = total + weights["times.weight"][torch.tensor(buckets, dtype=torch.int64)]
    return total


def _candidates(sizes: TokenSizes, weights: Weights, records: Tensor, header: Tensor) -> Tensor:
    if not len(records):
        return torch.zeros(0, sizes.dim)
    user = header[sizes.user_start : sizes.context_start]
    context = header[sizes.context_start :]
    total = _items(sizes, weights, records, 1) + weights["positions.weight"][0]
    total = total + _features(weights, "user_features", user[None], sizes.user_offsets, sizes.user_floats)
    total = total + _features(weights, "context_features", context[None], sizes.context_offsets, sizes.context_floats)
    if sizes.times:
        total = total + weights["times.weight"][0]
    if sizes.scenarios:
        total = total + weights["scenarios.weight"][header[sizes.scenario_word].long()]
    return total


def _items(sizes: TokenSizes, weights: Weights, records: Tensor, row: int) -> Tensor:
    """Item and item features of records whose feature row starts at word `row`."""
    if sizes.host:
        found = records[:, records.shape[1] - sizes.item_dim :].contiguous().view(torch.float32)
    else:
        found = weights["items.weight"][records[:, 0].long()]
    if sizes.projected:
        found = found @ weights["item_projection.weight"].T + weights["item_projection.bias"]
    return found + _features(weights, "item_features", records[:, row:], sizes.item_offsets, sizes.item_floats)


def _features(weights: Weights, part: str, rows: Tensor, offsets: Sequence[int], floats: int) -> Tensor:
    """Feature rows `[rows, words]` as vectors; zeros for a row without fields."""
    total = torch.zeros(len(rows), weights["positions.weight"].shape[1])
    for word, offset in enumerate(offsets):
        total = total + weights[f"{part}.categories.weight"][offset + rows[:, word].long()]
    if floats:
        dense = rows[:, len(offsets) : len(offsets) + floats].contiguous().view(torch.float32)
        total = total + dense @ weights[f"{part}.dense.weight"].T + weights[f"{part}.dense.bias"]
    return total
