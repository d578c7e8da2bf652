/* From one token's projections to what the recurrence of a state head takes. */
#ifndef WUNENG_STATE_HEAD_INPUTS_H
#define WUNENG_STATE_HEAD_INPUTS_H

#include <math.h>

#include "../native/exponentials.h"
#include "state_head.h"

#define DECAY_SCALE -0.60653065971263342f /* -e^{-1/2} */
#define KEY_EPS 1e-12f
/* Tokens between the one whose rows are asked for and the one at hand. */
#define INPUTS_AHEAD 6
#define OUTPUT_AHEAD 2
#define GRADIENTS_BEHIND 3

/* One token's inputs and intermediates. */
typedef struct {
  ALIGNED float r[N], w[N], k[N], v[N], a[N], b[N]; /* as the recurrence takes them; w decay, k is k~ */
  ALIGNED float plain_k[N], source[N], rate[N], rate_slope[N], decay_slope[N];
  float inverse_norm, bonus, mean, inverse_deviation;
  ALIGNED float removed[N], y[N];
} Token;

static inline const float *at(Rows x, int64_t token, int64_t head) {
  return x.data + token * x.row + head * N;
}

/* Asks for a token's row while others are computed: rows of one head are far apart, and its arrays
   are more streams than a processor foresees. Always inline: a function that only prefetches has no
   effect that GCC would keep a call for. */
INLINE void ask(Rows x, int64_t token, int64_t head, const int to_write) {
  if (!x.data) return;
  const char *row = (const char *)at(x, token, head);
  for (size_t i = 0; i < N * sizeof(float); i += 64) {
    if (to_write)
      __builtin_prefetch(row + i, 1);
    else
      __builtin_prefetch(row + i, 0);
  }
}

INLINE void ask_inputs(const Arguments *g, int64_t token, int64_t end, int64_t head) {
  if (token >= end) return;
  const Rows inputs[] = {g->r, g->w, g->k, g->v, g->a, g->b, g->gate};
#pragma GCC unroll 7
  for (int i = 0; i < 7; ++i) ask(inputs[i], token, head, 0);
}

/* The projection of one token with the one before mixed in. */
static inline void shifted(float *out, Rows x, const float *mu, const float *carry,
                           int64_t token, int64_t first, int64_t head) {
  const float *now = at(x, token, head);
  if (!mu) {
    memcpy(out, now, N * sizeof(float));
    return;
  }
  const float *before = token > first ? at(x, token - 1, head) : carry;
  EACH {
    vf u = load(AT(now)), p = before ? load(AT(before)) : splat(0);
    store(AT(out), u + load(AT(mu)) * (p - u));
  }
}

static inline const float *carry_of(const Arguments *g, const float *carry, int64_t sequence,
                                    int64_t head) {
  return carry ? carry + sequence * g->carry_row + head * N : NULL;
}

static inline const float *channel(const float *weight, int64_t head) {
  return weight ? weight + head * N : NULL;
}

static inline void prepare_raw(const Arguments *g, Token *x, int64_t token, int64_t head) {
  const float *w = at(g->w, token, head), *rate = at(g->a, token, head);
  const float *k_k = channel(g->k_k, head), *k_a = channel(g->k_a, head);
  if (g->b.data)
    memcpy(x->source, at(g->b, token, head), sizeof x->source);
  else
    memcpy(x->source, x->plain_k, sizeof x->source);
  vf squares = {0}, decay[VECTORS], eta[VECTORS];
  EACH decay[j] = load(AT(w)), eta[j] = load(AT(rate));
  sigmoid_of_all(decay, x->decay_slope);
  EACH decay[j] *= DECAY_SCALE;
  exp_of_all(decay);
  sigmoid_of_all(eta, x->rate_slope);
  EACH {
    store(AT(x->w), decay[j]);
    store(AT(x->rate), eta[j]);
    vf kappa = load(AT(x->source)) * load(AT(k_k));
    store(AT(x->a), kappa);
    squares += kappa * kappa;
  }
  float norm = sqrtf(sum_lanes(squares));
  x->inverse_norm = 1.0f / (norm < KEY_EPS ? KEY_EPS : norm);
  float a_max = (float)g->a_max;
  EACH {
    vf kappa = load(AT(x->a)) * x->inverse_norm;
    store(AT(x->a), -kappa);
    store(AT(x->b), a_max * eta[j] * kappa);
    store(AT(x->k), load(AT(x->plain_k)) * (1.0f + (eta[j] - 1.0f) * load(AT(k_a))));
  }
}

static inline void prepare(const Arguments *g, Token *x, int64_t token, int64_t first, int64_t sequence,
                    int64_t head) {
  shifted(x->r, g->r, channel(g->mu_r, head), carry_of(g, g->carry_r, sequence, head), token, first,
          head);
  shifted(x->plain_k, g->k, channel(g->mu_k, head), carry_of(g, g->carry_k, sequence, head), token,
          first, head);
  shifted(x->v, g->v, channel(g->mu_v, head), carry_of(g, g->carry_v, sequence, head), token, first,
          head);
  if (g->raw) {
    prepare_raw(g, x, token, head);
    return;
  }
  const float *w = at(g->w, token, head);
  vf decay[VECTORS];
  EACH decay[j] = load(AT(w));
  exp_of_all(decay);
  EACH store(AT(x->w), decay[j]);
  memcpy(x->k, x->plain_k, sizeof x->k);
  memcpy(x->a, at(g->a, token, head), sizeof x->a);
  memcpy(x->b, at(g->b, token, head), sizeof x->b);
}

#endif
