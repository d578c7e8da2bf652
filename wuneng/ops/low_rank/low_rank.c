/* Low-rank projections of one or a few decoded tokens, where torch takes longer to dispatch its
   operators than to compute: the products are matrix-vector loops. */

#include "low_rank.h"

#include <math.h>

#include "../native/products.h"

/* width must be a multiple of ROWS. */
void product(const Product *g) {
  for (int64_t i = 0; i < g->width; i += ROWS)
    products(g->tokens, g->x, g->size, g->weight + i * g->size, g->size, g->out + i, g->width);
}

/* Columns of out += x rows, as many vectors of them as the compiler is told, in registers. */
INLINE void add_columns(const int vectors, float *out, const float *x, const float *rows,
                        int64_t count, int64_t width) {
  vf sum[8];
  for (int b = 0; b < vectors; ++b) sum[b] = load(out + b * WIDEST);
  for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 8
    for (int b = 0; b < vectors; ++b) sum[b] += x[i] * load(rows + i * width + b * WIDEST);
  for (int b = 0; b < vectors; ++b) store(out + b * WIDEST, sum[b]);
}

/* out += x rows, with rows [count, width]. */
static void add_rows(float *restrict out, const float *restrict x, const float *restrict rows,
                     int64_t count, int64_t width) {
  int64_t j = 0;
  for (; j + 8 * WIDEST <= width; j += 8 * WIDEST)
    add_columns(8, out + j, x, rows + j, count, width);
  for (; j + 4 * WIDEST <= width; j += 4 * WIDEST)
    add_columns(4, out + j, x, rows + j, count, width);
  for (; j + WIDEST <= width; j += WIDEST) {
    vf sum = load(out + j), other = {0};
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
      sum += x[i] * load(rows + i * width + j);
      other += x[i + 1] * load(rows + (i + 1) * width + j);
    }
    if (i < count) sum += x[i] * load(rows + i * width + j);
    store(out + j, sum + other);
  }
  for (; j < width; ++j)
    for (int64_t i = 0; i < count; ++i) out[j] += x[i] * rows[i * width + j];
}

static void sigma(float *x, int64_t count) {
  for (int64_t j = 0; j < count; ++j) x[j] = 1.0f / (1.0f + expf(-x[j]));
}

/* The same of weights whose rows are as long as what they read; rank and width are multiples of ROWS. */
static void low_rank_linear(const LowRank *g) {
  for (int64_t i = 0; i < g->rank; i += ROWS)
    products(g->tokens, g->x, g->size, g->down + i * g->size, g->size, g->middle + i, g->rank);
  for (int64_t i = 0; i < g->width; i += ROWS)
    products(g->tokens, g->middle, g->rank, g->up + i * g->rank, g->rank, g->out + i, g->width);
  for (int64_t at = 0; g->bias && at < g->tokens * g->width; ++at) g->out[at] += g->bias[at % g->width];
  if (g->between == 3) sigma(g->out, g->tokens * g->width);
}

/* out = bias + middle(x down) up, with middle the identity, tanh or sigma; or sigma of all that. */
void low_rank(const LowRank *g) {
  if (g->linear) {
    low_rank_linear(g);
    return;
  }
  for (int64_t token = 0; token < g->tokens; ++token) {
    float *middle = g->middle, *out = g->out + token * g->width;
    memset(middle, 0, g->rank * sizeof(float));
    add_rows(middle, g->x + token * g->size, g->down, g->size, g->rank);
    for (int64_t j = 0; g->between == 1 && j < g->rank; ++j) middle[j] = tanhf(middle[j]);
    if (g->between == 2) sigma(middle, g->rank);
    if (g->bias)
      memcpy(out, g->bias, g->width * sizeof(float));
    else
      memset(out, 0, g->width * sizeof(float));
    add_rows(out, middle, g->up, g->rank, g->width);
    if (g->between == 3) sigma(out, g->width);
  }
}

/* A layer's receptance and the logits of decay and rate, in one call. */
void projections(const Product *receptance, const LowRank *decay, const LowRank *rate) {
  product(receptance);
  low_rank(decay);
  low_rank(rate);
}
