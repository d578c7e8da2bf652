/* e^x and sigma(x) of vectors. Up to four go through each step together: one alone waits four cycles
   for each of its fourteen to twenty steps, and more want more registers than there are. */
#ifndef WUNENG_EXPONENTIALS_H
#define WUNENG_EXPONENTIALS_H

#include "vectors.h"

#define MOST 4
#define TOGETHER for (int i = 0; i < count; ++i)

/* Bounds that leave NaN as it is. */
INLINE vf at_least(float low, vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps(_mm512_set1_ps(low), (__m512)x);
#elif defined(__AVX__)
  return (vf)_mm256_max_ps(_mm256_set1_ps(low), (__m256)x);
#else
  return choose(x < splat(low), splat(low), x);
#endif
}
INLINE vf at_most(float high, vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_min_ps(_mm512_set1_ps(high), (__m512)x);
#elif defined(__AVX__)
  return (vf)_mm256_min_ps(_mm256_set1_ps(high), (__m256)x);
#else
  return choose(x > splat(high), splat(high), x);
#endif
}

/* p 2^n of whole n, also where that is below the smallest normal number. */
INLINE vf times_power(vf p, vf n) {
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  vi power = __builtin_convertvector(n, vi), half = power >> 1;
  return p * (vf)((half + 127) << 23) * (vf)((power - half + 127) << 23);
#endif
}

/* x becomes e^x to about 1 ulp, count <= MOST: 2^n e^f with |f| <= ln2 / 2 and a Taylor
   polynomial. */
INLINE void exp_of_few(vf *x, const int count) {
  const float magic = 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer */
  vf n[MOST], p[MOST];
  /* e^low rounds to 0, e^high is infinite */
  TOGETHER x[i] = at_most(89.0f, at_least(-105.0f, x[i]));
  TOGETHER n[i] = x[i] * 1.44269504088896341f + magic;
  TOGETHER n[i] = n[i] - magic;
  TOGETHER x[i] = x[i] - n[i] * 0.693145751953125f;
  TOGETHER x[i] = x[i] - n[i] * 1.428606765330187e-06f;
  TOGETHER p[i] = x[i] * (1.0f / 5040) + 1.0f / 720;
  TOGETHER p[i] = p[i] * x[i] + 1.0f / 120;
  TOGETHER p[i] = p[i] * x[i] + 1.0f / 24;
  TOGETHER p[i] = p[i] * x[i] + 1.0f / 6;
  TOGETHER p[i] = p[i] * x[i] + 0.5f;
  TOGETHER p[i] = p[i] * x[i] + 1.0f;
  TOGETHER p[i] = p[i] * x[i] + 1.0f;
  TOGETHER x[i] = times_power(p[i], n[i]);
}

/* x becomes sigma(x), count <= MOST; `slope` takes sigma (1 - sigma), not as a difference, which would
   cancel near 1, and of e^-|x|, which does not overflow: both are as exact where x is large as where it
   is small. */
INLINE void sigmoid_of_few(vf *x, float *slope, const int count) {
  vf e[MOST], larger[MOST];
  TOGETHER e[i] = (vf)((vi)x[i] | (vi)splat(-0.0f)); /* -|x| */
  exp_of_few(e, count);
  TOGETHER larger[i] = 1.0f / (1.0f + e[i]);
  TOGETHER store(slope + i * WIDEST, e[i] * larger[i] * larger[i]);
#if defined(__AVX512F__)
  TOGETHER x[i] = (vf)_mm512_mask_mul_ps((__m512)larger[i], _mm512_cmplt_ps_mask((__m512)x[i],
                                         _mm512_setzero_ps()), (__m512)e[i], (__m512)larger[i]);
#else
  TOGETHER x[i] = choose(x[i] < splat(0.0f), e[i] * larger[i], larger[i]);
#endif
}

/* The same of a head's VECTORS vectors. */
INLINE void exp_of_all(vf x[VECTORS]) {
  for (int i = 0; i < VECTORS; i += MOST) exp_of_few(x + i, VECTORS < MOST ? VECTORS : MOST);
}
INLINE void sigmoid_of_all(vf x[VECTORS], float *slope) {
  for (int i = 0; i < VECTORS; i += MOST)
    sigmoid_of_few(x + i, slope + i * WIDEST, VECTORS < MOST ? VECTORS : MOST);
}

INLINE vf exp_v(vf x) {
  exp_of_few(&x, 1);
  return x;
}

INLINE vf sigmoid_v(vf x, float *slope) {
  sigmoid_of_few(&x, slope, 1);
  return x;
}

#undef MOST
#undef TOGETHER
#endif
