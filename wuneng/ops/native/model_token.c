/* One decoded token of a model in one call. A layer is six phases of small pieces of work:

     0  RMSNorm; queries, keys, values; the state heads' projections; token shifts
     1  attention by pieces of the cached keys; the state heads
     2  the middle heads
     3  both projected back, and the residual
     4  RMSNorm; gate and up, silu(gate) * up
     5  down, and the residual

   Threads take pieces one after another from a counter and go on together once all are done. So a
   thread that comes late, or loses its core, costs what it holds and nothing else; and which thread
   computes a piece changes no bit of it. Layers without attention, state heads or middle heads have
   fewer pieces. */

#include <math.h>
#include <sched.h>
#include <stdlib.h>

#include "attend_token.h"
#include "layer_token.h"
#include "products.h"

#define PHASES 6
#define PATIENCE 512 /* looks at a counter before the core is given away: some microseconds */

void state_head_program(const Arguments *g, int64_t sequence, int64_t head);
void cross_head_branch(const CrossHead *g, int64_t token, int64_t head);
void cross_head_changed(const CrossHead *g, int64_t token, int64_t head);

typedef struct {
  int64_t next, done; /* pieces handed out, and finished */
  int64_t apart[6];   /* a cache line of its own */
} Phase;

typedef void (*Work)(Worker *w, int64_t piece);

static void together(Phase *phase, Worker *w, int64_t pieces, Work work) {
  w->made = 0;
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

static int64_t state_heads(const Worker *w) { return w->l->hybrid ? w->hybrid.head.heads : 0; }

/* State heads first, and their branch where nothing mixes them with attention's; then every key head
   by pieces, the last of which puts them together. */
static void second_phase(Worker *w, int64_t piece) {
  const TokenModel *m = w->m;
  const int64_t heads = state_heads(w), pieces = pieces_of(w->c->cache + w->layer);
  if (piece < m->batch * heads) {
    const int64_t sequence = piece / heads, head = piece % heads;
    state_inputs(w, sequence, head);
    state_head_program(&w->hybrid.head, sequence, head);
    if (w->l->parts->delta.beta) delta_readout(w, sequence, head);
    if (w->hybrid.cross.kind == NO_MIDDLE) cross_head_branch(&w->hybrid.cross, sequence, head);
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
  if (!w->l->hybrid || g->kind == NO_MIDDLE) return 0;
  return w->m->batch * (g->state_heads + (g->kind == 0 ? g->heads : 0));
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

static int64_t back_size(const Worker *w) {
  return w->l->q ? w->m->heads * N : w->hybrid.branch.size;
}

static void fourth_phase(Worker *w, int64_t piece) {
  const TokenModel *m = w->m;
  const TokenLayer *l = w->l;
  const Product *branch = &w->hybrid.branch;
  const int additive = l->hybrid && w->hybrid.cross.kind == 0;
  const float *attended = additive ? m->changed : m->attended;
  const int64_t rows = rows_of(back_size(w)), first = piece * rows;
  for (int64_t i = first; i < first + rows && i < m->width; i += ROWS) {
    const float *residual = l->q ? m->middle : w->c->hidden;
    if (l->q) add_back(w, attended, m->heads * N, l->o, l->o_bias, i, w->c->hidden, m->middle);
    if (l->hybrid)
      add_back(w, branch->x, branch->size, branch->weight, NULL, i, residual, m->middle);
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
  const int64_t row = g->receptance.width;
  const TokenInputs in = {.key = m->state_key,
                          .value = m->state_value,
                          .key_row = row,
                          .value_row = row,
                          .state = cache->state,
                          .final_state = cache->final_state,
                          .carry = cache->carry,
                          .last = cache->last};
  hybrid_heads(g, &in);
  const StateParts *s = w->l->parts;
  if (s->gate.down && !s->delta.beta) g->head.gate = (Rows){s->gate.out, row};
  if (s->delta.beta) g->head.b = g->head.k; /* what is put back is written by the same key */
  g->cross.attention = m->attended, g->cross.changed = m->changed;
}

static void run_layer(Worker *w, Phase *phases) {
  if (w->l->hybrid) lay_out(w);
  const TokenModel *m = w->m;
  together(phases, w, projection_pieces(w), projection_piece);
  together(phases + 1, w, second_pieces(w), second_phase);
  together(phases + 2, w, third_pieces(w), third_phase);
  together(phases + 3, w, pieces_of_rows(m->width, back_size(w)), fourth_phase);
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
    w.inputs = m->inputs + own * INPUTS * m->batch * m->width;
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
