// Learned attention bias by distance in position and in time, as values added to scores before the temperature.
#pragma once

#include "buckets.h"

namespace flame {

struct BiasWeights {
    const float* positions;       // [BLOCKS, HEADS, 2 * REACH + 1], at clip(key - query) + REACH
    const float* times;           // [BLOCKS, HEADS, TIME_BUCKETS], at the bucket of the time between query and key
    const float* scenario_scale;  // [BLOCKS, HEADS, SCENARIOS]
};

// The tables of one block and head.
struct HeadBias {
    const float* positions;
    const float* times;
    float scale;

    HeadBias(const BiasWeights& weights, int block, int head, int scenario)
        : positions(weights.positions + (int64_t)(block * HEADS + head) * (2 * REACH + 1)),
          times(weights.times + (int64_t)(block * HEADS + head) * TIME_BUCKETS),
          scale(weights.scenario_scale[(block * HEADS + head) * SCENARIOS + scenario]) {}

    float at(int distance, int bucket) const {
        const int reach = distance < -REACH ? -REACH : distance > REACH ? REACH : distance;
        return scale * (positions[reach + REACH] + times[bucket]);
    }
    float of_itself() const { return at(0, 0); }
};

// Bias of candidates, which stand at `length` with age 0, towards each key: out[HEADS][room].
inline void candidate_bias(const BiasWeights& weights, int block, int scenario, const int32_t* ages, int length,
                           int64_t room, float* out) {
    for (int head = 0; head < HEADS; ++head) {
        const HeadBias bias(weights, block, head, scenario);
        for (int key = 0; key < length; ++key)
            out[head * room + key] = bias.at(key - length, time_between(0, ages[key]));
    }
}

// Bias of events `first` and following towards each key: out[HEADS][room][rows]; rows past the end repeat the last.
inline void event_bias(const BiasWeights& weights, int block, int scenario, const int32_t* ages, int first, int rows,
                       int length, int64_t room, float* out) {
    for (int key = 0; key < length; ++key)
        for (int row = 0; row < rows; ++row) {
            const int query = first + row < length ? first + row : length - 1;
            const int bucket = time_between(ages[query], ages[key]);
            for (int head = 0; head < HEADS; ++head)
                out[(head * room + key) * rows + row] =
                    HeadBias(weights, block, head, scenario).at(key - query, bucket);
        }
}

}  // namespace flame
