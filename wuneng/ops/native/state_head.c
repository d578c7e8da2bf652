/* RWKV-7's state heads on a CPU: token loops with the state in the first-level cache.

   One program walks one head of one sequence, as the Triton kernels do, but token by token: at
   N = 64 a head's state is 16 KB, so nothing is gained by gathering tokens in chunks, and nothing
   is lost to a triangular inverse. Per token and head, in one pass over memory:

     r, k, v      token shift            u_t + mu (u_{t-1} - u_t)
     w            decay                  exp(-e^{-1/2} sigma(logit))
     kappa        removal key            source * k_k, normalised over the head
     a, b         -kappa, a_max * rate * kappa
     k~           replacement key        k (1 + (rate - 1) k_a)
     S            state                  S diag(w) + (S a^T) b + v^T k~
     y            read                   r S^T
     R            group norm of y, + (r . k~ r_k) v, * gate

   (rwkv_v7_numpy.py of RWKV-LM). Everything but the recurrence may be absent. The backward scan
   runs each chunk forward again from its stored start, keeping the states of its tokens, then walks
   it in reverse. Each (sequence, head) is done by one thread in one order: equal bits whatever the
   number of threads. */

#include <math.h>
#include <stdlib.h>

#include "state_head.h"
#include "vectors.h"

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

static void prepare_raw(const Arguments *g, Token *x, int64_t token, int64_t head) {
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

static void prepare(const Arguments *g, Token *x, int64_t token, int64_t first, int64_t sequence,
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

/* The recurrence: `before` -> `after` (may be the same memory), removed = S a^T and y = r S^T. */
static void advance(Token *x, const float *before, float *after) {
  for (int row = 0; row < N; row += ROWS) {
    const float *old = before + row * N;
    float *new = after + row * N;
    vf removed[ROWS], read[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      removed[i] = splat(0);
      EACH removed[i] += load(AT(old + i * N)) * load(AT(x->a));
    }
    sum_rows(removed, x->removed + row);
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      const float u = x->removed[row + i], value = x->v[row + i];
      read[i] = splat(0);
      EACH {
        vf s = load(AT(old + i * N)) * load(AT(x->w)) + u * load(AT(x->b)) + value * load(AT(x->k));
        store(AT(new + i * N), s);
        read[i] += s * load(AT(x->r));
      }
    }
    sum_rows(read, x->y + row);
  }
}

/* R from y; keeps what the backward needs. */
static void read_out(const Arguments *g, Token *x, int64_t token, int64_t head, float *out) {
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

static void keep_last(Rows x, const float *carry, float *last, const Arguments *g,
                      int64_t sequence, int64_t head) {
  if (!last) return;
  const int64_t first = g->bounds[sequence], end = g->bounds[sequence + 1];
  float *to = last + sequence * g->carry_row + head * N;
  const float *from = end > first ? at(x, end - 1, head) : carry_of(g, carry, sequence, head);
  if (from)
    memcpy(to, from, N * sizeof(float));
  else
    memset(to, 0, N * sizeof(float));
}

static void forward_head(const Arguments *g, int64_t sequence, int64_t head) {
  const int64_t first = g->bounds[sequence], end = g->bounds[sequence + 1];
  const int64_t place = (sequence * g->heads + head) * N * N;
  float *state = g->final_state + place;
  if (!g->state)
    memset(state, 0, N * N * sizeof(float));
  else if (g->state + place != state)
    memcpy(state, g->state + place, N * N * sizeof(float));
  Token x;
  for (int64_t token = first; token < end; ++token) {
    if (g->boundaries && (token - first) % g->chunk == 0) {
      int64_t row = g->boundary_rows[sequence] + (token - first) / g->chunk;
      memcpy(g->boundaries + (row * g->heads + head) * N * N, state, N * N * sizeof(float));
    }
    prepare(g, &x, token, first, sequence, head);
    advance(&x, state, state);
    read_out(g, &x, token, head, (float *)at(g->out, token, head));
  }
  keep_last(g->r, g->carry_r, g->last_r, g, sequence, head);
  keep_last(g->k, g->carry_k, g->last_k, g, sequence, head);
  keep_last(g->v, g->carry_v, g->last_v, g, sequence, head);
}

void state_head_forward(const Arguments *g) {
  const int64_t programs = g->sequences * g->heads;
#pragma omp parallel for schedule(static) num_threads(g->threads) if (g->threads > 1)
  for (int64_t program = 0; program < programs; ++program)
    forward_head(g, program / g->heads, program % g->heads);
}

/* Gradients of one token's recurrence inputs, and of what they are made of. */
typedef struct {
  ALIGNED float r[N], w[N], k[N], v[N], a[N], b[N], y[N], removed[N];
} Gradient;

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

/* The recurrence in reverse. ds comes as the gradient of the state after the token, less the read,
   and leaves as that of the state before it. d->r, k, v are added to; d->w is of the log decay. */
static void retreat(const Token *x, const float *before, const float *after, float *ds,
                    Gradient *d) {
  vf dk[VECTORS], db[VECTORS];
  EACH dk[j] = db[j] = splat(0);
  for (int row = 0; row < N; row += ROWS) {
    float to_value[ROWS];
    vf removed[ROWS], valued[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) {
      float *s = ds + (row + i) * N;
      float dy = d->y[row + i], value = x->v[row + i], u = x->removed[row + i];
      removed[i] = valued[i] = splat(0);
      EACH {
        vf g = load(AT(s)) + dy * load(AT(x->r));
        store(AT(s), g);
        removed[i] += g * load(AT(x->b));
        valued[i] += g * load(AT(x->k));
        dk[j] += value * g;
        db[j] += u * g;
      }
    }
    sum_rows(removed, d->removed + row);
    sum_rows(valued, to_value);
    for (int i = 0; i < ROWS; ++i) d->v[row + i] += to_value[i];
  }
  vf dr[VECTORS], dw[VECTORS], da[VECTORS];
  EACH dr[j] = dw[j] = da[j] = splat(0);
  for (int row = 0; row < N; ++row) {
    float *s = ds + row * N;
    const float *old = before + row * N, *new = after + row * N;
    float dy = d->y[row], du = d->removed[row];
    EACH {
      vf g = load(AT(s)), o = load(AT(old));
      dr[j] += dy * load(AT(new));
      dw[j] += g * o;
      da[j] += du * o;
      store(AT(s), g * load(AT(x->w)) + du * load(AT(x->a)));
    }
  }
  EACH {
    store(AT(d->r), load(AT(d->r)) + dr[j]);
    store(AT(d->k), load(AT(d->k)) + dk[j]);
    store(AT(d->w), dw[j] * load(AT(x->w)));
    store(AT(d->a), da[j]);
    store(AT(d->b), db[j]);
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
    for (int64_t i = 0; i < count; ++i) {
      prepare(g, tokens + i, start + i, first, sequence, head);
      advance(tokens + i, i ? states + (i - 1) * N * N : origin, states + i * N * N);
      float ignored[N];
      if (g->norm_weight || g->bonus) read_out(g, tokens + i, start + i, head, ignored);
    }
    for (int64_t i = count - 1; i >= 0; --i) {
      Token *x = tokens + i;
      read_out_backward(g, x, start + i, head, &d, d_weights);
      retreat(x, i ? states + (i - 1) * N * N : origin, states + i * N * N, ds, &d);
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
