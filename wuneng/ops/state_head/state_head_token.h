/* One token of a state head: from its projections to what the recurrence takes, the recurrence, and
   from what it reads to the readout. Shared by the forward and the backward scan. */
#ifndef WUNENG_STATE_HEAD_TOKEN_H
#define WUNENG_STATE_HEAD_TOKEN_H

#include <math.h>
#include <stdlib.h>

#include "../native/vectors.h"
#include "state_head.h"

#define DECAY_SCALE -0.60653065971263342f /* -e^{-1/2} */
#define KEY_EPS 1e-12f

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
  vf squares = {0};
  EACH {
    store(AT(x->w), exp_v(DECAY_SCALE * sigmoid_v(load(AT(w)), AT(x->decay_slope))));
    vf kappa = load(AT(x->source)) * load(AT(k_k));
    store(AT(x->a), kappa);
    squares += kappa * kappa;
  }
  float norm = sqrtf(sum_lanes(squares));
  x->inverse_norm = 1.0f / (norm < KEY_EPS ? KEY_EPS : norm);
  float a_max = (float)g->a_max;
  EACH {
    vf kappa = load(AT(x->a)) * x->inverse_norm, eta = sigmoid_v(load(AT(rate)), AT(x->rate_slope));
    store(AT(x->rate), eta);
    store(AT(x->a), -kappa);
    store(AT(x->b), a_max * eta * kappa);
    store(AT(x->k), load(AT(x->plain_k)) * (1.0f + (eta - 1.0f) * load(AT(k_a))));
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
  EACH store(AT(x->w), exp_v(load(AT(w))));
  memcpy(x->k, x->plain_k, sizeof x->k);
  memcpy(x->a, at(g->a, token, head), sizeof x->a);
  memcpy(x->b, at(g->b, token, head), sizeof x->b);
}

/* removed = S a^T, for the first token; of the later ones `advance` makes it. */
static inline void remove_first(Token *x, const float *state) {
  for (int row = 0; row < N; row += ROWS) {
    vf removed[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      removed[i] = splat(0);
      EACH removed[i] += load(AT(state + (row + i) * N)) * load(AT(x->a));
    }
    sum_rows(removed, x->removed + row);
  }
}

/* The recurrence: `before` -> `after` (may be the same memory), y = r S^T, and what the next token
   removes while a row is at hand. Four rows at a time share what is read of the token. */
static inline __attribute__((always_inline)) void advance_rows(const int more, Token *x,
                                                               const float *before, float *after,
                                                               const float *a, float *next) {
  for (int row = 0; row < N; row += ROWS) {
    const float *old = before + row * N;
    float *new = after + row * N;
    vf u[ROWS], value[ROWS], removed[ROWS], read[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      u[i] = splat(x->removed[row + i]), value[i] = splat(x->v[row + i]);
      removed[i] = read[i] = splat(0);
    }
    EACH {
      const vf w = load(AT(x->w)), b = load(AT(x->b)), k = load(AT(x->k)), r = load(AT(x->r));
      const vf ahead = more ? load(AT(a)) : splat(0);
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) {
        vf s = load(AT(old + i * N)) * w + u[i] * b + value[i] * k;
        store(AT(new + i * N), s);
        read[i] += s * r;
        if (more) removed[i] += s * ahead;
      }
    }
    sum_rows(read, x->y + row);
    if (more) sum_rows(removed, next + row);
  }
}

/* `next`: the token after x, prepared, or NULL. */
static inline void advance(Token *x, const float *before, float *after, Token *next) {
  if (next)
    advance_rows(1, x, before, after, next->a, next->removed);
  else
    advance_rows(0, x, before, after, NULL, NULL);
}

/* R from y; keeps what the backward needs. */
static inline void read_out(const Arguments *g, Token *x, int64_t token, int64_t head, float *out) {
  const float *weight = channel(g->norm_weight, head), *bias = channel(g->norm_bias, head);
  const float *bonus = channel(g->bonus, head);
  x->mean = 0;
  x->inverse_deviation = 1;
  if (weight) {
    vf sum = {0}, squares = {0};
    EACH sum += load(AT(x->y));
    x->mean = sum_lanes(sum) / N;
    EACH {
      vf d = load(AT(x->y)) - x->mean;
      squares += d * d;
    }
    x->inverse_deviation = 1.0f / sqrtf(sum_lanes(squares) / N + (float)g->norm_eps);
  }
  x->bonus = 0;
  if (bonus) {
    vf sum = {0};
    EACH sum += load(AT(x->r)) * load(AT(x->k)) * load(AT(bonus));
    x->bonus = sum_lanes(sum);
  }
  const float *gate = g->gate.data ? at(g->gate, token, head) : NULL;
  EACH {
    vf z = load(AT(x->y));
    if (weight) z = (z - x->mean) * x->inverse_deviation * load(AT(weight)) + load(AT(bias));
    if (bonus) z += x->bonus * load(AT(x->v));
    if (gate) z *= load(AT(gate));
    store(AT(out), z);
  }
}

#endif
