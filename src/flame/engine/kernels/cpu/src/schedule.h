// Which thread does what, and when it may.
//
// The rows of a launch are cut into row tiles. A tile needs nothing of other tiles but the keys and values of its
// own user and block, layer by layer, so there is no barrier: each thread walks its tiles layer by layer and waits
// only where the history tiles of the same user and block are behind.
#pragma once

#include <atomic>
#include <vector>

#include "gemm.h"
#include "launch.h"
#include "pool.h"

namespace flame {

struct Tile {
    int32_t user, block;
    bool candidates;      // rows are candidates, or else events
    int32_t first, rows;  // in the sequence, or in the candidate list
    int32_t vecs;
    int32_t keys;         // length of the sequence
    int64_t place;        // where the tile's tokens lie in the workspace, in floats
    int64_t bias_place;   // where its bias lies, in floats
};

constexpr int vectors(int rows) { return (rows + LANES - 1) / LANES; }

// Calls `body(first row, rows, vectors)` for tiles of at most TILE vectors and nearly equal height.
template <class Body>
void cut(int rows, Body&& body) {
    const int total = vectors(rows), count = (total + TILE - 1) / TILE;
    for (int index = 0, done = 0; index < count; ++index) {
        const int vecs = (total - done + count - index - 1) / (count - index);
        const int first = done * LANES;
        body(first, rows - first < vecs * LANES ? rows - first : vecs * LANES, vecs);
        done += vecs;
    }
}

// Relative cost of one layer of a tile: products per row, once for its own features and once per key.
inline double cost(const Tile& tile) { return tile.vecs * (ROW_PRODUCTS + (double)KEY_PRODUCTS * tile.keys); }

// The tiles of a launch and their division into runs of equal cost, one per thread.
struct Schedule {
    std::vector<Tile> tiles;
    std::vector<int> starts;         // [threads + 1]
    std::vector<int> history_tiles;  // [users * BLOCKS]

    void divide(int threads) {
        double total = 0;
        for (const Tile& tile : tiles) total += cost(tile);
        starts.assign(threads + 1, (int)tiles.size());
        starts[0] = 0;
        double before = 0;
        int thread = 1;
        for (int index = 0; index < (int)tiles.size() && thread < threads; ++index) {
            const double middle = before + cost(tiles[index]) / 2;
            while (thread < threads && middle >= total * thread / threads) starts[thread++] = index;
            before += cost(tiles[index]);
        }
    }
};

// Counters the threads of one launch share.
struct Progress {
    std::vector<std::atomic<int>> encoded;  // [users * BLOCKS]: history tiles times layers whose keys are written
    std::atomic<int> arrived{0};
    std::atomic<int> claimed{0};
    std::atomic<bool> wrong_index{false};

    explicit Progress(int pairs) : encoded(pairs) {}

    void reset() {
        for (auto& counter : encoded) counter.store(0, std::memory_order_relaxed);
        arrived.store(0, std::memory_order_relaxed);
        claimed.store(0, std::memory_order_relaxed);
        wrong_index.store(false, std::memory_order_relaxed);
    }
};

}  // namespace flame
