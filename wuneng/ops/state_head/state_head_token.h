/* One token of a state head: the recurrence, and from what it reads to the readout. Shared by the
   forward and the backward scan. */
#ifndef WUNENG_STATE_HEAD_TOKEN_H
#define WUNENG_STATE_HEAD_TOKEN_H

#include "state_head_inputs.h"

/* removed = S a^T, for the first token; of the later ones `advance` makes it. */
static inline void remove_first(Token *x, const float *state) {
  vf removals[PARTS];
  for (int row = 0; row < N; row += ROWS) {
    vf removed[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      removed[i] = splat(0);
      EACH removed[i] += load(AT(state + (row + i) * N)) * load(AT(x->a));
    }
    const int part = row / ROWS % PARTS;
    removals[part] = fold_rows(removed);
    if (part == PARTS - 1) gather_rows(removals, x->removed + row + ROWS - WIDEST);
  }
}

/* The recurrence: `before` -> `after` (may be the same memory), y = r S^T, and what the next token
   removes while a row is at hand. Four rows at a time share what is read of the token. */
INLINE void advance_rows(const int more, Token *x, const float *before, float *after, const float *a,
                         float *next) {
  vf reads[PARTS], removals[PARTS];
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
    const int part = row / ROWS % PARTS, first = row + ROWS - WIDEST;
    reads[part] = fold_rows(read);
    if (more) removals[part] = fold_rows(removed);
    if (part < PARTS - 1) continue;
    gather_rows(reads, x->y + first);
    if (more) gather_rows(removals, next + first);
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
