/* The delta rule's heads (Gated DeltaNet, Kimi Delta Attention) for one decoded token: from what its
   projections gave to what the recurrence of state_head.c takes, and from what that reads to R.

     q = l2norm(silu(r)) / sqrt(N)     k = l2norm(silu(k))     v = silu(v)     beta = a_max sigma(..)
     log decay = -e^log_rate softplus(logit + step_bias)
     S = S diag(decay) - decay (S k) beta k + v^T beta k       R = rms norm of S q, * gate */

#include <math.h>

#include "attend_token.h"
#include "exponentials.h"
#include "layer_token.h"

#define UNIT_EPS 1e-6f

static float product_of(const float *x, const float *y, int64_t size) {
  vf sum = {0};
  float rest = 0;
  int64_t j = 0;
  for (; j + WIDEST <= size; j += WIDEST) sum += load(x + j) * load(y + j);
  for (; j < size; ++j) rest += x[j] * y[j];
  return sum_lanes(sum) + rest;
}

void delta_numbers(const Worker *w, const float *x) {
  const DeltaRule *g = &w->l->parts->delta;
  const int64_t heads = w->hybrid.head.heads, size = w->m->width;
  for (int64_t i = 0; i < w->m->batch * heads; ++i) {
    const float *token = x + i / heads * size, *row = g->beta + i % heads * size;
    g->beta_out[i] = product_of(token, row, size);
    if (g->step) g->step_out[i] = product_of(token, g->step + i % heads * size, size);
  }
}

/* One of r, k, v, mixed with the token before; as it was it is kept for the next call. */
static void shift(const Worker *w, int which, int64_t sequence, int64_t head, float *x) {
  const DeltaRule *g = &w->l->parts->delta;
  const TokenCache *cache = w->c->cache + w->layer;
  const int64_t width = w->hybrid.receptance.width;
  const int64_t place = sequence * g->carry_row + g->slots[which] * width + head * N;
  const float *mu = g->shift[which] + head * N;
  const float *before = cache->carry ? cache->carry + place : NULL;
  EACH {
    const vf now = load(AT(x)), past = before ? load(AT(before)) : splat(0);
    store(AT(cache->last + place), now);
    store(AT(x), now + load(AT(mu)) * (past - now));
  }
}

/* x becomes silu(x) times `scale`, of length one before that if `unit`. */
static void silu(float *x, const int unit, float scale) {
  float slope[WIDEST];
  vf squares = {0};
  EACH {
    const vf value = load(AT(x)), silent = value * sigmoid_v(value, slope);
    store(AT(x), silent);
    squares += silent * silent;
  }
  if (!unit) return;
  scale /= sqrtf(sum_lanes(squares) + UNIT_EPS);
  EACH store(AT(x), load(AT(x)) * scale);
}

static float softplus(float x) { return x > 20 ? x : log1pf(expf(x)); }

void delta_inputs(const Worker *w, int64_t sequence, int64_t head) {
  const DeltaRule *g = &w->l->parts->delta;
  const Arguments *a = &w->hybrid.head;
  const int64_t number = sequence * a->heads + head, place = number * N;
  float *r = w->hybrid.receptance.out + place, *k = w->m->state_key + place;
  float *v = w->m->state_value + place, *decay = a->w.data + place, *removed = a->a.data + place;
  float *const shifted[3] = {r, k, v};
  for (int i = 0; i < 3; ++i)
    if (g->shift[i]) shift(w, i, sequence, head, shifted[i]);
  silu(r, 1, 1 / sqrtf(N));
  silu(k, 1, 1);
  silu(v, 0, 1);
  const float rate = -expf(g->log_rate[head]);
  const float beta = (float)g->a_max / (1 + expf(-g->beta_out[number]));
  const float whole = g->step ? rate * softplus(g->step_out[number] + g->step_bias[head]) : 0;
  for (int i = 0; i < N; ++i)
    decay[i] = g->step ? whole : rate * softplus(decay[i] + g->step_bias[head * N + i]);
  EACH {
    const vf key = load(AT(k)), kept = exp_v(load(AT(decay)));
    store(AT(removed), -kept * key);
    store(AT(k), beta * key);
  }
}

void delta_readout(const Worker *w, int64_t sequence, int64_t head) {
  const StateParts *s = w->l->parts;
  const Arguments *a = &w->hybrid.head;
  const int64_t place = (sequence * a->heads + head) * N;
  float *out = a->out.data + sequence * a->out.row + head * N, slope[WIDEST];
  if (s->delta.norm) rms_norm(out, s->delta.norm + head * N, s->delta.norm_eps, N, out);
  if (s->gate.down) EACH store(AT(out), load(AT(out)) * load(AT(s->gate.out + place)));
  if (s->delta.gate)
    EACH {
      const vf gate = load(AT(s->delta.gate_out + place));
      store(AT(out), load(AT(out)) * gate * sigmoid_v(gate, slope));
    }
}
