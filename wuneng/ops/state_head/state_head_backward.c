/* The state heads' gradients. The scan runs each chunk forward again from its stored start, keeping
   the states of its tokens, then walks it in reverse with the state's gradient beside it; each
   token's are folded back to its projections before they are written. */

#include <stdlib.h>

#include "state_head_reverse.h"
#include "state_head_token.h"

enum { MU_R, MU_K, MU_V, K_K, K_A, BONUS, NORM_WEIGHT, NORM_BIAS, WEIGHTS };

static inline void add_product(float *sum, const float *x, const float *y) {
  EACH store(AT(sum), load(AT(sum)) + load(AT(x)) * load(AT(y)));
}

/* dR -> dy, and the epilogue's shares of dr, dk~, dv. */
static void read_out_backward(const Arguments *g, const Token *x, int64_t token, int64_t head,
                              Gradient *d, float *d_weights) {
  const float *weight = channel(g->norm_weight, head), *bias = channel(g->norm_bias, head);
  const float *bonus = channel(g->bonus, head);
  const float *d_out = at(g->d_out, token, head);
  float upstream[N];
  memcpy(upstream, d_out, sizeof upstream);
  if (g->gate.data) {
    const float *gate = at(g->gate, token, head);
    float *d_gate = (float *)at(g->d_gate, token, head);
    EACH {
      vf z = load(AT(x->y));
      if (weight) z = (z - x->mean) * x->inverse_deviation * load(AT(weight)) + load(AT(bias));
      if (bonus) z += x->bonus * load(AT(x->v));
      store(AT(d_gate), load(AT(d_out)) * z);
      store(AT(upstream), load(AT(d_out)) * load(AT(gate)));
    }
  }
  const vf zero = {0};
  float through_bonus = 0;
  if (bonus) {
    through_bonus = dot(upstream, x->v);
    EACH {
      vf r = load(AT(x->r)), k = load(AT(x->k)), share = through_bonus * load(AT(bonus));
      store(AT(d->r), share * k);
      store(AT(d->k), share * r);
      store(AT(d->v), x->bonus * load(AT(upstream)));
      float *sum = d_weights + BONUS * g->heads * N;
      store(AT(sum), load(AT(sum)) + through_bonus * r * k);
    }
  } else {
    EACH {
      store(AT(d->r), zero);
      store(AT(d->k), zero);
      store(AT(d->v), zero);
    }
  }
  if (!weight) {
    memcpy(d->y, upstream, sizeof upstream);
    return;
  }
  vf sum = {0}, along = {0};
  float *d_weight = d_weights + NORM_WEIGHT * g->heads * N;
  float *d_bias = d_weights + NORM_BIAS * g->heads * N;
  EACH {
    vf up = load(AT(upstream)), z = (load(AT(x->y)) - x->mean) * x->inverse_deviation;
    store(AT(d_weight), load(AT(d_weight)) + up * z);
    store(AT(d_bias), load(AT(d_bias)) + up);
    vf scaled = up * load(AT(weight));
    sum += scaled;
    along += scaled * z;
  }
  float mean = sum_lanes(sum) / N, slope = sum_lanes(along) / N;
  EACH {
    vf z = (load(AT(x->y)) - x->mean) * x->inverse_deviation;
    vf scaled = load(AT(upstream)) * load(AT(weight));
    store(AT(d->y), x->inverse_deviation * (scaled - mean - z * slope));
  }
}

/* From the recurrence's gradients to those of logits, source and key: d->w, d->a become the logits',
   d->b the source's, d->k the key's. */
static void prepare_raw_backward(const Arguments *g, const Token *x, int64_t head, Gradient *d,
                                 float *d_weights) {
  const float *k_k = channel(g->k_k, head), *k_a = channel(g->k_a, head);
  float *d_kk = d_weights + K_K * g->heads * N, *d_ka = d_weights + K_A * g->heads * N;
  float a_max = (float)g->a_max, d_kappa[N];
  vf along = {0};
  EACH {
    vf kappa = -load(AT(x->a)), eta = load(AT(x->rate)), dk = load(AT(d->k));
    vf db = a_max * load(AT(d->b)), through = dk * load(AT(x->plain_k));
    vf dkappa = eta * db - load(AT(d->a));
    store(AT(d_kappa), dkappa);
    along += dkappa * kappa;
    store(AT(d_ka), load(AT(d_ka)) + through * (eta - 1.0f));
    store(AT(d->a), (through * load(AT(k_a)) + db * kappa) * load(AT(x->rate_slope)));
    store(AT(d->k), dk * (1.0f + (eta - 1.0f) * load(AT(k_a))));
    store(AT(d->w), load(AT(d->w)) * DECAY_SCALE * load(AT(x->decay_slope)));
  }
  float projection = sum_lanes(along);
  EACH {
    vf scaled = (load(AT(d_kappa)) + projection * load(AT(x->a))) * x->inverse_norm;
    store(AT(d_kk), load(AT(d_kk)) + scaled * load(AT(x->source)));
    store(AT(d->b), scaled * load(AT(k_k)));
  }
}

/* Through the token shift: `next` holds the following token's gradient and takes this one's. */
static void shift_backward(Rows out, Rows x, const float *mu, const float *carry, float *d_mu,
                           const float *d, float *next, int64_t token, int64_t first,
                           int64_t head) {
  float *to = (float *)at(out, token, head);
  if (!mu) {
    memcpy(to, d, N * sizeof(float));
    return;
  }
  const float *now = at(x, token, head);
  const float *before = token > first ? at(x, token - 1, head) : carry;
  EACH {
    vf m = load(AT(mu)), g = load(AT(d)), p = before ? load(AT(before)) : splat(0);
    store(AT(to), g - m * g + m * load(AT(next)));
    store(AT(d_mu), load(AT(d_mu)) + g * (p - load(AT(now))));
    store(AT(next), g);
  }
}

static void write_gradients(const Arguments *g, Gradient *d, float *next, int64_t token,
                            int64_t first, int64_t sequence, int64_t head, float *d_weights) {
  if (g->raw && !g->b.data)
    EACH store(AT(d->k), load(AT(d->k)) + load(AT(d->b)));
  else
    memcpy((float *)at(g->db, token, head), d->b, sizeof d->b);
  memcpy((float *)at(g->dw, token, head), d->w, sizeof d->w);
  memcpy((float *)at(g->da, token, head), d->a, sizeof d->a);
  const int64_t stride = g->heads * N;
  shift_backward(g->dr, g->r, channel(g->mu_r, head), carry_of(g, g->carry_r, sequence, head),
                 d_weights + MU_R * stride, d->r, next, token, first, head);
  shift_backward(g->dk, g->k, channel(g->mu_k, head), carry_of(g, g->carry_k, sequence, head),
                 d_weights + MU_K * stride, d->k, next + N, token, first, head);
  shift_backward(g->dv, g->v, channel(g->mu_v, head), carry_of(g, g->carry_v, sequence, head),
                 d_weights + MU_V * stride, d->v, next + 2 * N, token, first, head);
}

INLINE void ask_gradients(const Arguments *g, int64_t token, int64_t head) {
  ask(g->d_out, token, head, 0);
  const Rows outputs[] = {g->dr, g->dw, g->dk, g->dv, g->da};
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) ask(outputs[i], token, head, 1);
  if (!g->raw || g->b.data) ask(g->db, token, head, 1);
  if (g->gate.data) ask(g->d_gate, token, head, 1);
}

static int backward_head(const Arguments *g, int64_t sequence, int64_t head) {
  const int64_t first = g->bounds[sequence], end = g->bounds[sequence + 1], chunk = g->chunk;
  const int64_t place = (sequence * g->heads + head) * N * N;
  float *ds = g->d_state + place;
  if (g->d_final_state)
    memcpy(ds, g->d_final_state + place, N * N * sizeof(float));
  else
    memset(ds, 0, N * N * sizeof(float));
  float *d_weights = g->d_weights + (sequence * WEIGHTS * g->heads + head) * N;
  for (int i = 0; i < WEIGHTS; ++i) memset(d_weights + i * g->heads * N, 0, N * sizeof(float));
  float *states = aligned_alloc(64, chunk * N * N * sizeof(float)), next[3 * N] ALIGNED = {0};
  Token *tokens = aligned_alloc(64, chunk * sizeof(Token));
  Gradient d;
  if (!states || !tokens) {
    free(states), free(tokens);
    return 1;
  }
  for (int64_t c = (end - first + chunk - 1) / chunk - 1; c >= 0; --c) {
    const int64_t start = first + c * chunk, count = end - start < chunk ? end - start : chunk;
    const int64_t row = g->boundary_rows[sequence] + c;
    const float *origin = g->boundaries + (row * g->heads + head) * N * N;
    prepare(g, tokens, start, first, sequence, head);
    remove_first(tokens, origin);
    for (int64_t i = 0; i < count; ++i) {
      ask_inputs(g, start + i + INPUTS_AHEAD, start + count, head);
      Token *next = i + 1 < count ? tokens + i + 1 : NULL;
      if (next) prepare(g, next, start + i + 1, first, sequence, head);
      advance(tokens + i, i ? states + (i - 1) * N * N : origin, states + i * N * N, next);
      float ignored[N];
      if (g->norm_weight || g->bonus) read_out(g, tokens + i, start + i, head, ignored);
    }
    for (int64_t i = count - 1; i >= 0; --i) {
      Token *x = tokens + i;
      if (i >= GRADIENTS_BEHIND) ask_gradients(g, start + i - GRADIENTS_BEHIND, head);
      read_out_backward(g, x, start + i, head, &d, d_weights);
      retreat(x, i ? states + (i - 1) * N * N : origin, ds, &d);
      if (g->raw) prepare_raw_backward(g, x, head, &d, d_weights);
      write_gradients(g, &d, next, start + i, first, sequence, head, d_weights);
    }
  }
  free(states), free(tokens);
  return 0;
}

/* 0, or 1 where memory for a chunk's states could not be had. */
int state_head_backward(const Arguments *g) {
  const int64_t programs = g->sequences * g->heads;
  int failed = 0;
#pragma omp parallel for schedule(static) num_threads(g->threads) if (g->threads > 1) reduction(| : failed)
  for (int64_t program = 0; program < programs; ++program)
    failed |= backward_head(g, program / g->heads, program % g->heads);
  return failed;
}
