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

#define INLINE static inline __attribute__((always_inline))

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

#define ROWS 4 /* N is a multiple of 16 */
#define PARTS (WIDEST / ROWS)

/* The lanes of four vectors summed as far as one vector holds them: PARTS parts of each row's sum. */
static inline vf fold_rows(const vf x[ROWS]) {
#if defined(__AVX512F__)
  __m512 a = _mm512_add_ps(_mm512_unpacklo_ps((__m512)x[0], (__m512)x[1]),
                           _mm512_unpackhi_ps((__m512)x[0], (__m512)x[1]));
  __m512 b = _mm512_add_ps(_mm512_unpacklo_ps((__m512)x[2], (__m512)x[3]),
                           _mm512_unpackhi_ps((__m512)x[2], (__m512)x[3]));
  return (vf)_mm512_unpacklo_pd((__m512d)a, (__m512d)b) +
         (vf)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX__)
  return (vf)_mm256_hadd_ps(_mm256_hadd_ps((__m256)x[0], (__m256)x[1]),
                            _mm256_hadd_ps((__m256)x[2], (__m256)x[3]));
#else
  return (vf){sum_lanes(x[0]), sum_lanes(x[1]), sum_lanes(x[2]), sum_lanes(x[3])};
#endif
}

/* The sums of four rows. */
static inline void sum_rows(const vf x[ROWS], float out[ROWS]) {
  vf folded = fold_rows(x);
#if defined(__AVX512F__)
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)folded),
                              (__m256)_mm512_extractf64x4_pd((__m512d)folded, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX__)
  __m256 parts = (__m256)folded;
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(parts), _mm256_extractf128_ps(parts, 1)));
#else
  store(out, folded);
#endif
}

/* The sums of WIDEST rows, from PARTS folds. Of sixteen lanes a row takes 2.8 micro-operations in all,
   by `sum_rows` 3.3. */
static inline void gather_rows(const vf x[PARTS], float *out) {
#if defined(__AVX512F__)
  __m512 a = _mm512_shuffle_f32x4((__m512)x[0], (__m512)x[1], 0x88) +
             _mm512_shuffle_f32x4((__m512)x[0], (__m512)x[1], 0xdd);
  __m512 b = _mm512_shuffle_f32x4((__m512)x[2], (__m512)x[3], 0x88) +
             _mm512_shuffle_f32x4((__m512)x[2], (__m512)x[3], 0xdd);
  store(out, (vf)_mm512_shuffle_f32x4(a, b, 0x88) + (vf)_mm512_shuffle_f32x4(a, b, 0xdd));
#elif defined(__AVX__)
  store(out, (vf)_mm256_permute2f128_ps((__m256)x[0], (__m256)x[1], 0x20) +
                 (vf)_mm256_permute2f128_ps((__m256)x[0], (__m256)x[1], 0x31));
#else
  store(out, x[0]);
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
