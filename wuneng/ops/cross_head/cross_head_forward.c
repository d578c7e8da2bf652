/* The cross-head interaction of many tokens: products in registers, a tile of tokens at a time, and
   everything around them while the tile is in the first-level cache. */

#include "../native/exponentials.h"
#include "cross_head_tile.h"

/* Mid of one tile of one state head into `middle`, rows of `row` floats. */
static void middle_of_tile(const CrossHeadPass *p, int64_t first, int64_t count, int64_t head,
                           const float *grouped, float *middle, int64_t row) {
  const CrossHead *g = &p->cross;
  const int64_t between = g->state_heads * N;
  const float *read = g->readout + first * between + head * N;
  if (g->kind == ADDITIVE) {
    const float *beta = g->beta_or_bias + head * N;
    for (int64_t t = 0; t < count; ++t)
      EACH store(AT(middle + t * row), load(AT(grouped + t * N)) +
                                           load(AT(beta)) * load(AT(read + t * between)));
    return;
  }
  const float *bias = g->beta_or_bias ? g->beta_or_bias + head * N : NULL;
  const float *weight = g->alpha_or_matrix + head * 2 * N * N;
  ALIGNED float gates[TILE * N];
  float *z = bias ? gates : middle;
  const int64_t z_row = bias ? N : row;
  for (int64_t t = 0; t < count; ++t) EACH store(AT(z + t * z_row), bias ? load(AT(bias)) : splat(0));
  add_tile_product(count, N, grouped, N, 1, weight, N, z, z_row);
  add_tile_product(count, N, read, between, 1, weight + N * N, N, z, z_row);
  if (!bias) return;
  float *kept = p->gate ? p->gate + first * between + head * N : NULL;
  for (int64_t t = 0; t < count; ++t) EACH {
      vf r = load(AT(read + t * between)), gate = 1.0f / (1.0f + exp_v(-load(AT(z + t * N))));
      if (kept) store(AT(kept + t * between), gate);
      store(AT(middle + t * row), r + gate * (load(AT(grouped + t * N)) - r));
    }
}

static void forward_tile(const CrossHeadPass *p, int64_t first, int64_t count, int64_t head) {
  const CrossHead *g = &p->cross;
  const int64_t group = attention_heads(g), row = 2 * g->state_heads * N;
  const float *attention = g->attention + first * g->heads * N + head / sharing_heads(g) * group * N;
  const float *read = g->readout + (first * g->state_heads + head) * N;
  const float *norm = g->norm + head * N, scale = g->scale[g->scales > 1 ? head : 0];
  float *branch = g->branch + first * row + head * N;
  ALIGNED float grouped[TILE * N];
  for (int64_t t = 0; t < count; ++t) {
    normalised_mean(g, attention + t * g->heads * N, g->mix + head * group, grouped + t * N);
    EACH {
      store(AT(grouped + t * N), load(AT(grouped + t * N)) * load(AT(norm)));
      store(AT(branch + t * row), scale * load(AT(read + t * g->state_heads * N)));
    }
  }
  middle_of_tile(p, first, count, head, grouped, branch + g->state_heads * N, row);
}

/* A' of the kind that changes attention's heads. */
static void changed_tile(const CrossHead *g, int64_t first, int64_t count, int64_t head) {
  const float *alpha = g->alpha_or_matrix + head * N;
  const int64_t state_head = head / attention_heads(g) * sharing_heads(g);
  for (int64_t t = first; t < first + count; ++t) {
    const float *read = g->readout + (t * g->state_heads + state_head) * N;
    const int64_t place = (t * g->heads + head) * N;
    EACH store(AT(g->changed + place),
               load(AT(g->attention + place)) + load(AT(alpha)) * mean_readout(g, read, j));
  }
}

void cross_head_forward(const CrossHeadPass *p) {
  const CrossHead *g = &p->cross;
  const int64_t blocks = (g->tokens + p->block - 1) / p->block;
#pragma omp parallel for schedule(static) num_threads(p->threads) if (p->threads > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t end = smaller((block + 1) * p->block, g->tokens);
    for (int64_t head = 0; head < g->state_heads; ++head)
      for (int64_t t = block * p->block; t < end; t += TILE)
        forward_tile(p, t, smaller(TILE, end - t), head);
    for (int64_t head = 0; g->kind == ADDITIVE && head < g->heads; ++head)
      changed_tile(g, block * p->block, end - block * p->block, head);
  }
}
