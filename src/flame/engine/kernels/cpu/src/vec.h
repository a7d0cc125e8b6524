// One vector of floats, as wide as the target has it, and the few operations the kernels need.
//
// Every operation works lane by lane in a fixed order, so a lane's result never depends on its neighbours.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace flame {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8;
constexpr int REGISTERS = 16;
#else
constexpr int LANES = 4;
constexpr int REGISTERS = 32;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

// `Vec{} + value` would add a zero first, which the compiler may not drop.
INLINE Vec splat(float value) {
#if defined(__AVX512F__)
    return (Vec)_mm512_set1_ps(value);
#elif defined(__AVX2__)
    return (Vec)_mm256_set1_ps(value);
#else
    return Vec{value, value, value, value};
#endif
}

// a * b + c, rounded once.
INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    for (int lane = 0; lane < LANES; ++lane) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return c;
#endif
}

INLINE Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }

// The larger of the two; `b` where either is not a number.
INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

INLINE Vec smaller(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

INLINE bool any(IntVec mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#else
    int32_t found = 0;
    for (int lane = 0; lane < LANES; ++lane) found |= mask[lane];
    return found != 0;
#endif
}

INLINE bool any_above(Vec value, float limit) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)value, (__m512)splat(limit), _CMP_GT_OQ) != 0;
#else
    return any(value > splat(limit));
#endif
}

// 2^x for x in [-126, 127], relative error 2e-7; smaller x gives 0 or nearly so, larger x infinity or nearly so.
//
// 2^x = 2^floor(x) * g(x - floor(x)), g the degree-5 polynomial of least relative error on [0, 1) with g(0) = 1.
INLINE Vec exp2(Vec x) {
#if defined(__AVX512DQ__)
    const Vec fraction = (Vec)_mm512_reduce_ps((__m512)x, 1);
#else
    x = smaller(larger(x, splat(-126.0f)), splat(127.0f));
    IntVec whole = __builtin_convertvector(x, IntVec);
    whole += x < __builtin_convertvector(whole, Vec);  // true is -1: truncation becomes floor
    const Vec fraction = x - __builtin_convertvector(whole, Vec);
#endif
    Vec power = fma(splat(0.00186712632f), fraction, splat(0.00901703816f));
    power = fma(power, fraction, splat(0.0557999089f));
    power = fma(power, fraction, splat(0.240164459f));
    power = fma(power, fraction, splat(0.693151295f));
    power = fma(power, fraction, splat(1.0f));
#if defined(__AVX512DQ__)
    return (Vec)_mm512_scalef_ps((__m512)power, (__m512)x);
#else
    return (Vec)((IntVec)power + (whole << 23));
#endif
}

INLINE Vec root(Vec value) {
#if defined(__AVX512F__)
    return (Vec)_mm512_sqrt_ps((__m512)value);
#elif defined(__AVX2__)
    return (Vec)_mm256_sqrt_ps((__m256)value);
#elif defined(__aarch64__)
    return (Vec)vsqrtq_f32((float32x4_t)value);
#else
    for (int lane = 0; lane < LANES; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
    return value;
#endif
}

// 1 / value for normal numbers, relative error 1e-7: an estimate and one step of Newton where there is an estimate.
INLINE Vec reciprocal(Vec value) {
#if defined(__AVX512F__)
    const Vec estimate = (Vec)_mm512_rcp14_ps((__m512)value);
    return estimate * fma(-value, estimate, splat(2.0f));
#else
    return splat(1.0f) / value;
#endif
}

// 1 + e^-value, no larger than 2^126.
INLINE Vec one_and_exp(Vec value) {
    return splat(1.0f) + exp2(smaller(value * splat(-1.44269504f), splat(126.0f)));
}

INLINE Vec sigmoid(Vec value) { return reciprocal(one_and_exp(value)); }

INLINE Vec silu(Vec value) { return value * reciprocal(one_and_exp(value)); }

}  // namespace flame
