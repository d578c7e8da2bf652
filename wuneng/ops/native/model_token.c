/* One decoded token of a model in one call. A layer is six phases of small pieces of work:

     0  RMSNorm; queries, keys, values; the state heads' projections
     1  attention by pieces of the cached keys; the state heads
     2  the middle heads
     3  both projected back, and the residual
     4  RMSNorm; gate and up, silu(gate) * up
     5  down, and the residual

   Threads take pieces one after another from a counter and go on together once all are done. So a
   thread that comes late, or loses its core, costs what it holds and nothing else; and which thread
   computes a piece changes no bit of it. */

#include <math.h>
#include <sched.h>
#include <stdlib.h>

#include "attend_token.h"
#include "products.h"

#define PHASES 6
#define WEIGHTS 8192 /* floats of a weight that a piece of work reads, about */
#define PATIENCE 512 /* looks at a counter before the core is given away: some microseconds */

void state_head_program(const Arguments *g, int64_t sequence, int64_t head);
void low_rank(const LowRank *g);
void cross_head_branch(const CrossHead *g, int64_t token, int64_t head);
void cross_head_changed(const CrossHead *g, int64_t token, int64_t head);

typedef struct {
  int64_t next, done; /* pieces handed out, and finished */
  int64_t apart[6];   /* a cache line of its own */
} Phase;

typedef struct {
  const TokenModel *m;
  const TokenCall *c;
  const TokenLayer *l;
  int64_t layer;
  HybridToken hybrid; /* the layer's, with this token's addresses */
  float *normed;      /* [B, D], this thread's */
  int is_normed;
  int64_t *left; /* pieces of each [B, G] that are not attended to */
} Worker;

typedef void (*Work)(Worker *w, int64_t piece);

static void together(Phase *phase, Worker *w, int64_t pieces, Work work) {
  w->is_normed = 0;
  for (int64_t i; (i = __atomic_fetch_add(&phase->next, 1, __ATOMIC_RELAXED)) < pieces;) {
    work(w, i);
    __atomic_fetch_add(&phase->done, 1, __ATOMIC_RELEASE);
  }
  for (int64_t looks = 1; __atomic_load_n(&phase->done, __ATOMIC_ACQUIRE) < pieces; ++looks) {
    if (looks % PATIENCE == 0) sched_yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

/* Rows of a weight [.., size] that are one piece of work, a multiple of ROWS. */
static int64_t rows_of(int64_t size) {
  const int64_t rows = WEIGHTS / size / ROWS * ROWS;
  return rows < ROWS ? ROWS : rows;
}
static int64_t pieces_of_rows(int64_t width, int64_t size) {
  return (width + rows_of(size) - 1) / rows_of(size);
}

/* The tokens that a piece multiplies: normalised once by each thread that has one. */
static const float *normed(Worker *w, const float *x, const float *weight, double eps) {
  const int64_t width = w->m->width;
  for (int64_t b = 0; !w->is_normed && b < w->m->batch; ++b)
    rms_norm(x + b * width, weight, eps, width, w->normed + b * width);
  w->is_normed = 1;
  return w->normed;
}

typedef struct {
  const float *weight, *bias;
  int64_t width;
  float *out; /* [B, width] */
} Projection;

static void project(const Worker *w, const float *x, const Projection *p, int64_t piece) {
  const int64_t size = w->m->width, rows = rows_of(size), first = piece * rows;
  for (int64_t i = first; i < first + rows && i < p->width; i += ROWS) {
    products(w->m->batch, x, size, p->weight + i * size, size, p->out + i, p->width);
    for (int64_t b = 0; p->bias && b < w->m->batch; ++b)
      for (int r = 0; r < ROWS; ++r) p->out[b * p->width + i + r] += p->bias[i + r];
  }
}

#define PROJECTIONS 6
static int projections_of(const Worker *w, Projection *p) {
  const TokenModel *m = w->m;
  const TokenLayer *l = w->l;
  const int64_t keys = m->groups * N;
  int count = 0;
  p[count++] = (Projection){l->q, l->q_bias, m->heads * N, m->query};
  p[count++] = (Projection){l->k, l->k_bias, keys, m->key};
  p[count++] = (Projection){l->v, l->v_bias, keys, m->value};
  if (!l->hybrid) return count;
  const Product *r = &w->hybrid.receptance;
  p[count++] = (Projection){r->weight, NULL, r->width, r->out};
  if (l->own_key) p[count++] = (Projection){l->own_key, NULL, r->width, m->own_key};
  if (l->own_value) p[count++] = (Projection){l->own_value, NULL, r->width, m->own_value};
  return count;
}

/* Decay and rate come first: they are the largest pieces. */
static void first_phase(Worker *w, int64_t piece) {
  const float *x = normed(w, w->c->hidden, w->l->input_norm, w->l->input_eps);
  if (w->l->hybrid) {
    if (piece < 2) {
      LowRank *g = piece ? &w->hybrid.rate : &w->hybrid.decay;
      g->x = x;
      low_rank(g);
      return;
    }
    piece -= 2;
  }
  Projection all[PROJECTIONS];
  projections_of(w, all);
  const Projection *p = all;
  for (int64_t own; piece >= (own = pieces_of_rows(p->width, w->m->width)); ++p) piece -= own;
  project(w, x, p, piece);
}

static int64_t first_pieces(const Worker *w) {
  Projection all[PROJECTIONS];
  const int projections = projections_of(w, all);
  int64_t pieces = w->l->hybrid ? 2 : 0;
  for (int i = 0; i < projections; ++i) pieces += pieces_of_rows(all[i].width, w->m->width);
  return pieces;
}

static int64_t state_heads(const Worker *w) { return w->l->hybrid ? w->hybrid.head.heads : 0; }

/* State heads first; then every key head by pieces, the last of which puts them together. */
static void second_phase(Worker *w, int64_t piece) {
  const TokenModel *m = w->m;
  const int64_t heads = state_heads(w), pieces = pieces_of(w->c->cache + w->layer);
  if (piece < m->batch * heads) {
    state_head_program(&w->hybrid.head, piece / heads, piece % heads);
    return;
  }
  piece -= m->batch * heads;
  const int64_t row = piece / pieces, sequence = row / m->groups, group = row % m->groups;
  attend_piece(m, w->c, w->layer, sequence, group, piece % pieces);
  int64_t *left = w->left + w->layer * m->batch * m->groups + row;
  if (__atomic_add_fetch(left, 1, __ATOMIC_ACQ_REL) == pieces)
    join_pieces(m, w->c, w->layer, sequence, group);
}

static int64_t second_pieces(const Worker *w) {
  return w->m->batch * (state_heads(w) + w->m->groups * pieces_of(w->c->cache + w->layer));
}

static void third_phase(Worker *w, int64_t piece) {
  const CrossHead *g = &w->hybrid.cross;
  const int64_t branches = w->m->batch * g->state_heads;
  if (piece < branches)
    cross_head_branch(g, piece / g->state_heads, piece % g->state_heads);
  else
    cross_head_changed(g, (piece - branches) / g->heads, (piece - branches) % g->heads);
}

static int64_t third_pieces(const Worker *w) {
  const CrossHead *g = &w->hybrid.cross;
  return w->l->hybrid ? w->m->batch * (g->state_heads + (g->kind == 0 ? g->heads : 0)) : 0;
}

/* out[b][i..] = residual + x rows (+ bias), ROWS of them. */
static void add_back(const Worker *w, const float *x, int64_t size, const float *weight,
                     const float *bias, int64_t i, const float *residual, float *out) {
  float sums[MOST_TOKENS][ROWS];
  products(w->m->batch, x, size, weight + i * size, size, *sums, ROWS);
  for (int64_t b = 0; b < w->m->batch; ++b)
    for (int r = 0; r < ROWS; ++r) {
      const int64_t at = b * w->m->width + i + r;
      out[at] = residual[at] + (bias ? sums[b][r] + bias[i + r] : sums[b][r]);
    }
}

static void fourth_phase(Worker *w, int64_t piece) {
  const TokenModel *m = w->m;
  const TokenLayer *l = w->l;
  const int additive = l->hybrid && w->hybrid.cross.kind == 0;
  const float *attended = additive ? m->changed : m->attended;
  const int64_t rows = rows_of(m->heads * N), first = piece * rows;
  for (int64_t i = first; i < first + rows && i < m->width; i += ROWS) {
    add_back(w, attended, m->heads * N, l->o, l->o_bias, i, w->c->hidden, m->middle);
    const Product *branch = &w->hybrid.branch;
    if (l->hybrid)
      add_back(w, branch->x, branch->size, branch->weight, NULL, i, m->middle, m->middle);
  }
}

static void fifth_phase(Worker *w, int64_t piece) {
  const TokenModel *m = w->m;
  const TokenLayer *l = w->l;
  const float *x = normed(w, m->middle, l->feed_norm, l->feed_eps);
  const int64_t size = m->width, rows = rows_of(size), first = piece * rows;
  for (int64_t i = first; i < first + rows && i < m->inner; i += ROWS) {
    float gates[MOST_TOKENS][ROWS], ups[MOST_TOKENS][ROWS];
    products(m->batch, x, size, l->gate + i * size, size, *gates, ROWS);
    products(m->batch, x, size, l->up + i * size, size, *ups, ROWS);
    for (int64_t b = 0; b < m->batch; ++b)
      for (int r = 0; r < ROWS; ++r) {
        const float gate = gates[b][r] + (l->gate_bias ? l->gate_bias[i + r] : 0);
        const float up = ups[b][r] + (l->up_bias ? l->up_bias[i + r] : 0);
        m->wide[b * m->inner + i + r] = gate / (1.0f + expf(-gate)) * up;
      }
  }
}

static void sixth_phase(Worker *w, int64_t piece) {
  const TokenModel *m = w->m;
  const int64_t rows = rows_of(m->inner), first = piece * rows;
  for (int64_t i = first; i < first + rows && i < m->width; i += ROWS)
    add_back(w, m->wide, m->inner, w->l->down, w->l->down_bias, i, m->middle, w->c->hidden);
}

/* The layer's block of state and middle heads, with this token's addresses. */
static void lay_out(Worker *w) {
  const TokenModel *m = w->m;
  const TokenCache *cache = w->c->cache + w->layer;
  w->hybrid = *w->l->hybrid;
  HybridToken *g = &w->hybrid;
  const TokenInputs in = {.key = w->l->own_key ? m->own_key : m->key,
                          .value = w->l->own_value ? m->own_value : m->value,
                          .key_row = w->l->own_key ? g->receptance.width : m->groups * N,
                          .value_row = w->l->own_value ? g->receptance.width : m->groups * N,
                          .state = cache->state,
                          .final_state = cache->final_state,
                          .carry = cache->carry,
                          .last = cache->last};
  hybrid_heads(g, &in);
  g->cross.attention = m->attended, g->cross.changed = m->changed;
}

static void run_layer(Worker *w, Phase *phases) {
  if (w->l->hybrid) lay_out(w);
  const TokenModel *m = w->m;
  together(phases, w, first_pieces(w), first_phase);
  together(phases + 1, w, second_pieces(w), second_phase);
  together(phases + 2, w, third_pieces(w), third_phase);
  together(phases + 3, w, pieces_of_rows(m->width, m->heads * N), fourth_phase);
  together(phases + 4, w, pieces_of_rows(m->inner, m->width), fifth_phase);
  together(phases + 5, w, pieces_of_rows(m->width, m->inner), sixth_phase);
}

/* 0; 1 where there is no memory for the counters. */
int64_t model_token(const TokenModel *m, const TokenCall *c) {
  const int64_t counters = m->layers * PHASES * sizeof(Phase);
  char *zeroed = calloc(1, counters + m->layers * m->batch * m->groups * sizeof(int64_t));
  if (!zeroed) return 1;
  int64_t workers = 0;
#pragma omp parallel num_threads(m->threads) if (m->threads > 1)
  {
    const int64_t own = __atomic_fetch_add(&workers, 1, __ATOMIC_RELAXED);
    Worker w = {.m = m, .c = c, .left = (int64_t *)(zeroed + counters)};
    w.normed = m->normed + own * m->batch * m->width;
    for (w.layer = 0; w.layer < m->layers; ++w.layer) {
      w.l = m->layer + w.layer;
      run_layer(&w, (Phase *)zeroed + w.layer * PHASES);
    }
  }
  free(zeroed);
  for (int64_t b = 0; b < m->batch; ++b) {
    float *hidden = c->hidden + b * m->width;
    rms_norm(hidden, m->norm, m->norm_eps, m->width, hidden);
  }
  return 0;
}
