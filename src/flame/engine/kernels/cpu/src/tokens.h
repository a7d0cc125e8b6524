// From ids and features to the tokens of a row tile.
#pragma once

#include <cstring>

#include "gemm.h"
#include "launch.h"

namespace flame {

// Pointers to weights, in the order of `compiled_model.py`; null where the model has no such tensor.
struct FeatureRowWeights {
    const float* categories;  // [rows, DIM]
    const float* dense;       // [floats, DIM], transposed
    const float* dense_bias;  // [DIM]
};

struct InputWeights {
    const float* items;            // [ITEM_VOCABULARY, ITEM_DIM]
    const float* item_projection;  // [DIM, ITEM_DIM]
    const float* item_projection_bias;
    FeatureRowWeights item, user, context;
    const float* actions;    // [ACTIONS, DIM]
    const float* positions;  // [POSITIONS, DIM]
};

// A row under construction: one token, or one item embedding, beside its lane in a tile.
template <int N>
struct Row {
    alignas(64) float at[N];

    void set(const float* from) { std::memcpy(at, from, sizeof(at)); }
    void add(const float* from) {
        for (int n = 0; n < N; ++n) at[n] += from[n];
    }
    void add(float factor, const float* from) {
        for (int n = 0; n < N; ++n) at[n] += factor * from[n];
    }
    template <int VECS>
    void put(Vec* tile, int row) const {
        float* lane = (float*)tile + row;
        for (int n = 0; n < N; ++n) lane[n * VECS * LANES] = at[n];
    }
};

// Index `value` of a table with `size` rows; notes an index that is none, and takes row 0 for it.
INLINE int64_t checked(int32_t value, int32_t size, bool& wrong) {
    const bool outside = (uint32_t)value >= (uint32_t)size;
    wrong |= outside;
    return outside ? 0 : value;
}

// Asks for a table row that is needed soon: tables are larger than the near caches, and a token needs a dozen rows.
template <int N>
INLINE void prefetch(const float* row) {
    for (int n = 0; n < N; n += 16) __builtin_prefetch(row + n);
}

// Asks for the table rows of a record's item and categories.
INLINE void prefetch_record(const InputWeights& weights, const int32_t* words, int item, int features) {
    bool wrong = false;  // the record's own turn finds that out
    if constexpr (!HOST_LOOKUP)
        prefetch<ITEM_DIM>(weights.items + checked(words[item], ITEM_VOCABULARY, wrong) * ITEM_DIM);
    for (int i = 0; i < ITEM_INTEGERS; ++i)
        prefetch<DIM>(weights.item.categories +
                      (ITEM_OFFSETS[i] + checked(words[features + i], ITEM_VOCABULARIES[i], wrong)) * DIM);
}

// Adds a feature row: INTEGERS categories at `words`, then FLOATS dense values.
template <int INTEGERS, int FLOATS>
INLINE void add_features(Row<DIM>& row, const FeatureRowWeights& weights, const int32_t* words, const int* offsets,
                         const int* vocabularies, bool& wrong) {
    for (int i = 0; i < INTEGERS; ++i)
        row.add(weights.categories + (offsets[i] + checked(words[i], vocabularies[i], wrong)) * DIM);
    if constexpr (FLOATS > 0) {
        float values[FLOATS];
        std::memcpy(values, words + INTEGERS, sizeof(values));
        row.add(weights.dense_bias);
        for (int i = 0; i < FLOATS; ++i) row.add(values[i], weights.dense + i * DIM);
    }
}

// The item's embedding: from the table, or from the record where the host has looked it up.
INLINE const float* item_row(const InputWeights& weights, const int32_t* record, int item, int embedding, bool& wrong) {
    if constexpr (HOST_LOOKUP) return (const float*)(record + embedding);
    return weights.items + checked(record[item], ITEM_VOCABULARY, wrong) * ITEM_DIM;
}

// x += item projection of items[ITEM_DIM][VECS].
template <int VECS>
INLINE void project_items(const InputWeights& weights, const Vec* items, Vec* x) {
    product<DIM, ITEM_DIM, VECS>(
        weights.item_projection, items,
        [&](int n, int) INLINE_LAMBDA { return splat(weights.item_projection_bias[n]); },
        [&](int n, int v, Vec value) INLINE_LAMBDA { x[n * VECS + v] += value; });
}

// Tokens x[DIM][VECS] of `count` records; `base(row)` is what the token starts from, `extra(row, token)` adds to it.
template <int VECS, class Record, class Base, class Extra>
INLINE void tokens(const InputWeights& weights, Vec* x, Vec* items, int count, int item, int features, bool& wrong,
                   Record&& record, Base&& base, Extra&& extra) {
    Row<DIM> token;
    Row<ITEM_DIM> embedding;
    std::memset(x, 0, sizeof(Vec) * DIM * VECS);
    if constexpr (ITEM_PROJECTION) std::memset(items, 0, sizeof(Vec) * ITEM_DIM * VECS);
    for (int row = 0; row < count; ++row) {
        if (row + 1 < count) prefetch_record(weights, record(row + 1), item, features);
        const int32_t* words = record(row);
        const float* found = item_row(weights, words, item, features + ITEM_INTEGERS + ITEM_FLOATS, wrong);
        token.set(base(row));
        if constexpr (ITEM_PROJECTION) {
            embedding.set(found);
            embedding.template put<VECS>(items, row);
        } else {
            token.add(found);
        }
        add_features<ITEM_INTEGERS, ITEM_FLOATS>(token, weights.item, words + features, ITEM_OFFSETS,
                                                 ITEM_VOCABULARIES, wrong);
        extra(row, token, words);
        token.template put<VECS>(x, row);
    }
    if constexpr (ITEM_PROJECTION) project_items<VECS>(weights, items, x);
}

// Tokens of the events `first`, `first + 1`, ... of a sequence of `length` events.
template <int VECS, class Extra>
INLINE void event_tokens(const InputWeights& weights, const Buffer& buffer, int user, int block, int first, int count,
                         int length, Vec* x, Vec* items, bool& wrong, Extra&& extra) {
    tokens<VECS>(
        weights, x, items, count, EVENT_ITEM, EVENT_ROW, wrong,
        [&](int row) { return buffer.event(user, block, first + row); },
        [&](int row) {
            const int slot = first + row;
            return weights.positions + (int64_t)(OLDEST_FIRST ? slot + 1 : length - slot) * DIM;
        },
        [&](int row, Row<DIM>& token, const int32_t* words) {
            token.add(weights.actions + checked(words[EVENT_ACTION], ACTIONS, wrong) * DIM);
            extra(row, token, words);
        });
}

// Tokens of the candidates `first`, `first + 1`, ...
template <int VECS, class Extra>
INLINE void candidate_tokens(const InputWeights& weights, const Buffer& buffer, int user, int first, int count, Vec* x,
                             Vec* items, bool& wrong, Extra&& extra) {
    const int32_t* header = buffer.header(user);
    Row<DIM> shared;
    shared.set(weights.positions);
    add_features<USER_INTEGERS, USER_FLOATS>(shared, weights.user, header + USER_START, USER_OFFSETS,
                                             USER_VOCABULARIES, wrong);
    add_features<CONTEXT_INTEGERS, CONTEXT_FLOATS>(shared, weights.context, header + CONTEXT_START, CONTEXT_OFFSETS,
                                                   CONTEXT_VOCABULARIES, wrong);
    extra(shared);
    tokens<VECS>(
        weights, x, items, count, CANDIDATE_ITEM, CANDIDATE_ROW, wrong,
        [&](int row) { return buffer.candidate(user, first + row); }, [&](int) { return shared.at; },
        [](int, Row<DIM>&, const int32_t*) {});
}

}  // namespace flame
