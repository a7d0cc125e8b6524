// What Python hands over for a launch, and where things lie in it. Mirrors `flame.layout` and `library.py`.
#pragma once

#include <cstdint>

#include "config.h"
#include "vec.h"

namespace flame {

using namespace config;

// The packed buffer of a profile, in words.
struct Shape {
    int32_t users, events, candidates;
    int32_t events_start, candidates_start;
};

constexpr int HEADER_SCENARIO = 0, HEADER_CANDIDATES = 1, HEADER_LENGTHS = 2;
constexpr int EVENT_ITEM = 0, EVENT_ACTION = 1, EVENT_AGE = 2, EVENT_ROW = 3;
constexpr int CANDIDATE_ITEM = 0, CANDIDATE_ROW = 1;

struct Buffer {
    const int32_t* words;
    const Shape* shape;

    const int32_t* header(int user) const { return words + (int64_t)user * HEADER_WORDS; }
    const int32_t* event(int user, int block, int event) const {
        return words + shape->events_start + (((int64_t)user * BLOCKS + block) * shape->events + event) * EVENT_WORDS;
    }
    const int32_t* candidate(int user, int candidate) const {
        return words + shape->candidates_start + ((int64_t)user * shape->candidates + candidate) * CANDIDATE_WORDS;
    }
};

// The encoded history of one user: sizes, then for each block the ages, then per layer the key and value tiles.
//
// keys [block][layer][key tile][KEY_WIDTH][LANES], values [block][layer][key tile][VALUE_WIDTH][LANES]
struct State {
    int32_t tiles;            // key tiles there is room for
    int32_t lengths[BLOCKS];  // keys in use; negative before the first encode

    static constexpr int64_t HEAD = (sizeof(int32_t) * (1 + BLOCKS) + 63) / 64 * 64;
    static constexpr int64_t KEY_FLOATS = KEY_WIDTH * LANES, VALUE_FLOATS = VALUE_WIDTH * LANES;

    static int64_t bytes(int64_t tiles) {
        return HEAD + 4 * BLOCKS * tiles * (LANES + LAYERS * (KEY_FLOATS + VALUE_FLOATS));
    }
    int32_t* ages(int block) { return (int32_t*)((char*)this + HEAD) + (int64_t)block * tiles * LANES; }
    float* keys(int block, int layer) {
        float* first = (float*)((char*)this + HEAD) + (int64_t)BLOCKS * tiles * LANES;
        return first + ((int64_t)block * LAYERS + layer) * tiles * (KEY_FLOATS + VALUE_FLOATS);
    }
    float* values(int block, int layer) { return keys(block, layer) + tiles * KEY_FLOATS; }
};

// Results of a launch; the texts stand in library.py.
enum Status : int32_t {
    OK = 0,
    STATE_TOO_SMALL = 1,
    INDEX_OUT_OF_RANGE = 2,
    LENGTH_OUT_OF_RANGE = 3,
    STATE_EMPTY = 4,
    STATE_TOO_LONG = 5,
    PREFIX_ABSENT = 6
};

}  // namespace flame
