/* What the passes over many tokens share: a tile of tokens of one state head, and its group's mean. */
#ifndef WUNENG_CROSS_HEAD_TILE_H
#define WUNENG_CROSS_HEAD_TILE_H

#include <math.h>

#include "../native/tile_product.h"
#include "cross_head_pass.h"

#define TILE 24 /* tokens whose intermediates stay in the first-level cache */

enum { ADDITIVE, GATED, CONCAT };

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Attention heads of a state head, and state heads of an attention head: one of them is 1. */
static inline int64_t attention_heads(const CrossHead *g) {
  return g->heads > g->state_heads ? g->heads / g->state_heads : 1;
}
static inline int64_t sharing_heads(const CrossHead *g) {
  return g->state_heads > g->heads ? g->state_heads / g->heads : 1;
}

/* The mean of one token's group under the learned mix, divided by its root mean square: `out`; one
   over that is returned. */
static inline float normalised_mean(const CrossHead *g, const float *attention, const float *mix,
                                    float *out) {
  const int64_t group = attention_heads(g);
  vf squares = {0};
  EACH {
    vf sum = {0};
    for (int64_t i = 0; i < group; ++i) sum += mix[i] * load(AT(attention + i * N));
    squares += sum * sum;
    store(AT(out), sum);
  }
  const float inverse = 1.0f / sqrtf(sum_lanes(squares) / N + (float)g->eps);
  EACH store(AT(out), load(AT(out)) * inverse);
  return inverse;
}

/* Mean over the state heads that share an attention head. */
static inline vf mean_readout(const CrossHead *g, const float *readout, int j) {
  const int64_t count = sharing_heads(g);
  vf sum = {0};
  for (int64_t i = 0; i < count; ++i) sum += load(AT(readout + i * N));
  return sum / (float)count;
}

#endif
