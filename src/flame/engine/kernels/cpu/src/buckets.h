// Buckets of time, of which every model that looks at time has a table.
#pragma once

#include "launch.h"

namespace flame {

// min(floor(log2(1 + seconds)), TIME_BUCKETS - 1).
INLINE int time_bucket(uint32_t seconds) {
    const uint32_t whole = seconds + 1;
    const int bucket = whole == 0 ? 31 : 31 - __builtin_clz(whole);
    return bucket < TIME_BUCKETS ? bucket : TIME_BUCKETS - 1;
}

INLINE int time_between(int32_t age, int32_t other) {
    return time_bucket(age > other ? (uint32_t)age - (uint32_t)other : (uint32_t)other - (uint32_t)age);
}

}  // namespace flame
