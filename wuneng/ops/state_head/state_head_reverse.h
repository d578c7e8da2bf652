/* One token of a state head's recurrence in reverse. */
#ifndef WUNENG_STATE_HEAD_REVERSE_H
#define WUNENG_STATE_HEAD_REVERSE_H

#include "state_head_inputs.h"

/* Gradients of one token's recurrence inputs, and of what they are made of. */
typedef struct {
  ALIGNED float r[N], w[N], k[N], v[N], a[N], b[N], y[N];
} Gradient;

/* The recurrence in reverse, first pass over the rows: ds comes as the gradient of the state after the
   token, less the read, which is added. What the values and the removal get is summed by rows, what
   keys get is left in vectors. */
INLINE void through_write(const Token *x, float *ds, const Gradient *d, float *to_value,
                          float *to_removed, vf dk[VECTORS], vf db[VECTORS]) {
  vf removals[PARTS], values[PARTS];
  for (int row = 0; row < N; row += ROWS) {
    float *s = ds + row * N;
    vf dy[ROWS], removed[ROWS], valued[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      dy[i] = splat(d->y[row + i]);
      removed[i] = valued[i] = splat(0);
    }
    EACH {
      const vf r = load(AT(x->r)), b = load(AT(x->b)), k = load(AT(x->k));
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) {
        vf g = load(AT(s + i * N)) + dy[i] * r;
        store(AT(s + i * N), g);
        removed[i] += g * b;
        valued[i] += g * k;
        dk[j] += x->v[row + i] * g;
        db[j] += x->removed[row + i] * g;
      }
    }
    const int part = row / ROWS % PARTS, first = row + ROWS - WIDEST;
    removals[part] = fold_rows(removed);
    values[part] = fold_rows(valued);
    if (part < PARTS - 1) continue;
    gather_rows(removals, to_removed + first);
    gather_rows(values, to_value + first);
  }
}

/* The second pass: ds becomes the gradient of the state before the token. Two passes, because a row's
   sum would be waited for between them, and because dk, db, dr, dw and da together want more registers
   than there are. What dr takes of the state after the token is made of the state before it. */
INLINE void through_decay(const Token *x, const float *before, float *ds, const Gradient *d,
                          const float *to_removed, vf dr[VECTORS], vf dw[VECTORS],
                          vf da[VECTORS]) {
  for (int row = 0; row < N; row += ROWS) {
    float *s = ds + row * N;
    const float *old = before + row * N;
    EACH {
      const vf w = load(AT(x->w)), a = load(AT(x->a));
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) {
        vf g = load(AT(s + i * N)), o = load(AT(old + i * N));
        dr[j] += d->y[row + i] * o;
        dw[j] += g * o;
        da[j] += to_removed[row + i] * o;
        store(AT(s + i * N), g * w + to_removed[row + i] * a);
      }
    }
  }
}

/* Both passes. d->r, k, v are added to; d->w is of the log decay. */
static inline void retreat(const Token *x, const float *before, float *ds, Gradient *d) {
  ALIGNED float to_value[N], to_removed[N];
  vf dr[VECTORS], dw[VECTORS], dk[VECTORS], da[VECTORS], db[VECTORS];
  EACH dr[j] = dw[j] = dk[j] = da[j] = db[j] = splat(0);
  through_write(x, ds, d, to_value, to_removed, dk, db);
  through_decay(x, before, ds, d, to_removed, dr, dw, da);
  const float through_removed = dot(d->y, x->removed), through_value = dot(d->y, x->v);
  EACH {
    vf w = load(AT(x->w)), read = dr[j] * w + through_removed * load(AT(x->b));
    store(AT(d->r), load(AT(d->r)) + read + through_value * load(AT(x->k)));
    store(AT(d->k), load(AT(d->k)) + dk[j]);
    store(AT(d->v), load(AT(d->v)) + load(AT(to_value)));
    store(AT(d->w), dw[j] * w);
    store(AT(d->a), da[j]);
    store(AT(d->b), db[j]);
  }
}

#endif
