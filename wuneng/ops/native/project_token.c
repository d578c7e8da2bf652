/* The projections of a decoded token's layer, and what they read: the normalised token, or RWKV-7's
   six mixtures of it with the token before. */

#include "attend_token.h"
#include "layer_token.h"
#include "products.h"

void low_rank(const LowRank *g);

/* Of what the state heads' projections read, in the order of StateParts. */
enum { FOR_R, FOR_W, FOR_K, FOR_V, FOR_A, FOR_G, AS_IT_IS };

const float *normed(Worker *w, const float *x, const float *weight, double eps) {
  const int64_t width = w->m->width;
  for (int64_t b = 0; !w->made && b < w->m->batch; ++b)
    rms_norm(x + b * width, weight, eps, width, w->inputs + b * width);
  w->made |= 1;
  return w->inputs;
}

/* x_t + mix (x_{t-1} - x_t), made once by each thread that needs it; x where there is no mix. */
static const float *mixed(Worker *w, const float *x, int which) {
  const StateParts *p = w->l->parts;
  if (which == AS_IT_IS || !p->mix_r) return x;
  const float *mixes[] = {p->mix_r, p->mix_w, p->mix_k, p->mix_v, p->mix_a, p->mix_g};
  const int64_t width = w->m->width, batch = w->m->batch, bit = 2 << which;
  const float *mix = mixes[which], *before = w->c->cache[w->layer].carry;
  float *out = w->inputs + (1 + which) * batch * width;
  if (!mix) return x;
  for (int64_t b = 0; !(w->made & bit) && b < batch; ++b) {
    const int64_t row = b * width;
    for (int64_t j = 0; j < width; ++j)
      out[row + j] = x[row + j] + mix[j] * ((before ? before[row + j] : 0) - x[row + j]);
  }
  w->made |= bit;
  return out;
}

typedef struct {
  const float *weight, *bias;
  int64_t width;
  float *out; /* [B, width] */
  int reads;
  const float *shift; /* [width], NULL without a token shift of what comes out */
  const float *before; /* [B, 2 width]: the token before, and for the next call this one */
  float *last;
  ShortConv conv;
  ConvCarry carry;
} Projection;

/* ROWS channels of every sequence, shifted; as they were they are kept for the next call. */
static void shifted(const Projection *p, int64_t batch, int64_t i) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t j = i; j < i + ROWS; ++j) {
      float *out = p->out + b * p->width + j;
      const int64_t at = 2 * b * p->width + j;
      p->last[at] = *out;
      *out += p->shift[j] * ((p->before ? p->before[at] : 0) - *out);
    }
}

static void project(Worker *w, const float *x, const Projection *p, int64_t piece) {
  const int64_t batch = w->m->batch, size = w->m->width, rows = rows_of(size);
  x = mixed(w, x, p->reads);
  for (int64_t i = piece * rows; i < (piece + 1) * rows && i < p->width; i += ROWS) {
    products(batch, x, size, p->weight + i * size, size, p->out + i, p->width);
    for (int64_t b = 0; p->bias && b < batch; ++b)
      for (int r = 0; r < ROWS; ++r) p->out[b * p->width + i + r] += p->bias[i + r];
    if (p->shift) shifted(p, batch, i);
    for (int64_t b = 0; p->conv.taps && b < batch; ++b)
      convolve(&p->conv, &p->carry, b, p->width, i, ROWS, p->out + b * p->width + i);
  }
}

#define PROJECTIONS 8
static int projections_of(const Worker *w, Projection *p) {
  const TokenModel *m = w->m;
  const TokenLayer *l = w->l;
  int count = 0;
  if (l->q) {
    const int64_t keys = m->groups * N;
    const TokenCache *cache = w->c->cache + w->layer;
    const float *before = cache->shift_carry;
    float *last = cache->shift_last;
    const ConvCarry *conv = cache->attention_conv;
    p[count++] = (Projection){l->q, l->q_bias, m->heads * N, m->query, AS_IT_IS,
                              .conv = l->conv[0], .carry = conv[0]};
    p[count++] = (Projection){l->k, l->k_bias, keys, m->key, AS_IT_IS,
                              l->k_shift, before, last, l->conv[1], conv[1]};
    if (before) before += keys;
    if (last) last += keys;
    p[count++] = (Projection){l->v, l->v_bias, keys, m->value, AS_IT_IS,
                              l->v_shift, before, last, l->conv[2], conv[2]};
    if (l->output_gate)
      p[count++] = (Projection){l->output_gate, NULL, m->heads * N, m->output_gate, AS_IT_IS};
  }
  if (!l->hybrid) return count;
  const Product *r = &w->hybrid.receptance;
  const StateParts *s = l->parts;
  const int64_t width = r->width;
  p[count++] = (Projection){r->weight, NULL, width, r->out, FOR_R};
  if (s->own_key) p[count++] = (Projection){s->own_key, NULL, width, m->state_key, FOR_K};
  if (s->own_value) p[count++] = (Projection){s->own_value, NULL, width, m->state_value, FOR_V};
  if (s->delta.gate) p[count++] = (Projection){s->delta.gate, NULL, width, s->delta.gate_out, AS_IT_IS};
  return count;
}

typedef struct {
  const LowRank *weights;
  int reads;
} Narrow;

#define NARROW 4
static int narrow_of(const Worker *w, Narrow *n) {
  if (!w->l->hybrid) return 0;
  const StateParts *s = w->l->parts;
  int count = 0;
  if (w->hybrid.decay.down) n[count++] = (Narrow){&w->hybrid.decay, FOR_W};
  if (w->hybrid.rate.down) n[count++] = (Narrow){&w->hybrid.rate, FOR_A};
  if (s->gate.down) n[count++] = (Narrow){&s->gate, FOR_G};
  if (s->residual.down) n[count++] = (Narrow){&s->residual, FOR_V};
  return count;
}

static int64_t is_delta(const Worker *w) { return w->l->hybrid && w->l->parts->delta.beta != NULL; }

/* The low-rank ones come first: they are the largest pieces. */
void projection_piece(Worker *w, int64_t piece) {
  const float *x = normed(w, w->c->hidden, w->l->input_norm, w->l->input_eps);
  Narrow narrow[NARROW];
  const int64_t count = narrow_of(w, narrow);
  if (piece < count) {
    LowRank g = *narrow[piece].weights;
    g.x = mixed(w, x, narrow[piece].reads);
    low_rank(&g);
    if (piece == 0 && w->l->parts->mix_r) /* the next call's token before */
      memcpy(w->c->cache[w->layer].last, x, w->m->batch * w->m->width * sizeof(float));
    return;
  }
  piece -= count;
  if (is_delta(w) && piece-- == 0) {
    delta_numbers(w, x);
    return;
  }
  Projection all[PROJECTIONS];
  projections_of(w, all);
  const Projection *p = all;
  for (int64_t own; piece >= (own = pieces_of_rows(p->width, w->m->width)); ++p) piece -= own;
  project(w, x, p, piece);
}

int64_t projection_pieces(const Worker *w) {
  Projection all[PROJECTIONS];
  Narrow narrow[NARROW];
  const int projections = projections_of(w, all);
  int64_t pieces = narrow_of(w, narrow) + is_delta(w);
  for (int i = 0; i < projections; ++i) pieces += pieces_of_rows(all[i].width, w->m->width);
  return pieces;
}
