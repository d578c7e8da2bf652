/* Portable SIMD: rows of N floats as N / LANES vectors, through the vector extensions of GCC and
   Clang. Compiled with -march=native; N is given by -DN=64. */
#ifndef WUNENG_VECTORS_H
#define WUNENG_VECTORS_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#define WIDEST 16
#elif defined(__AVX__)
#include <immintrin.h>
#define WIDEST 8
#else
#define WIDEST 4
#endif
#define VECTORS (N / WIDEST)

/* A vector that crosses a cache line takes two reads. */
#define ALIGNED __attribute__((aligned(64)))

typedef float vf __attribute__((vector_size(4 * WIDEST)));
typedef int32_t vi __attribute__((vector_size(4 * WIDEST)));

/* Rows may start anywhere a float may. */
static inline vf load(const float *p) {
  vf x;
  memcpy(&x, p, sizeof x);
  return x;
}
static inline void store(float *p, vf x) { memcpy(p, &x, sizeof x); }
static inline vf splat(float x) { return x - (vf){0}; }

static inline float sum_lanes(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX__)
  __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
#else
  return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

static inline vf choose(vi mask, vf yes, vf no) {
  return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* e^x to about 1 ulp: 2^n e^f with |f| <= ln2 / 2 and a Taylor polynomial; NaN stays NaN. 2^n is
   two factors, so that what lies below the smallest normal number is e^x too and the rest 0. */
static inline vf exp_v(vf x) {
  const vf low = splat(-105.0f), high = splat(89.0f); /* e^low rounds to 0, e^high is infinite */
  x = choose(x < low, low, x);
  x = choose(x > high, high, x);
  const vf magic = splat(12582912.0f); /* adding 1.5 * 2^23 rounds to an integer */
  vf n = x * 1.44269504088896341f + magic;
  n = n - magic;
  vf f = x - n * 0.693145751953125f;
  f = f - n * 1.428606765330187e-06f;
  vf p = splat(1.0f / 5040);
  p = p * f + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  vi power = __builtin_convertvector(n, vi), half = power >> 1;
  return p * (vf)((half + 127) << 23) * (vf)((power - half + 127) << 23);
}

/* sigma(x); `slope` takes sigma (1 - sigma), not as a difference, which would cancel near 1, and of
   e^-|x|, which does not overflow: both are as exact where x is large as where it is small. */
static inline vf sigmoid_v(vf x, float *slope) {
  const vi negative = x < splat(0.0f);
  vf e = exp_v(choose(negative, x, -x)), larger = 1.0f / (1.0f + e);
  store(slope, e * larger * larger);
  return choose(negative, e * larger, larger);
}

#define ROWS 4 /* N is a multiple of 16 */

/* The lanes of four vectors summed at once: half the shuffles of four sums. */
static inline void sum_rows(const vf x[ROWS], float out[ROWS]) {
#if defined(__AVX__)
  __m256 half[ROWS];
  for (int i = 0; i < ROWS; ++i) {
#if defined(__AVX512F__)
    __m512d wide = (__m512d)x[i];
    half[i] = _mm256_add_ps((__m256)_mm512_castpd512_pd256(wide),
                            (__m256)_mm512_extractf64x4_pd(wide, 1));
#else
    half[i] = (__m256)x[i];
#endif
  }
  __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
  for (int i = 0; i < ROWS; ++i) out[i] = sum_lanes(x[i]);
#endif
}

#define EACH for (int j = 0; j < VECTORS; ++j)
#define AT(p) ((p) + j * WIDEST)

static inline float dot(const float *x, const float *y) {
  vf s = {0};
  EACH s += load(AT(x)) * load(AT(y));
  return sum_lanes(s);
}

#endif
