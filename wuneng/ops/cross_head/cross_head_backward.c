/* Gradients of the cross-head interaction of many tokens. Of the forward pass only the gate is kept:
   means and norms are cheaper to make again than to read. A program takes a block of tokens and an
   attention head or the group of a state head, and adds up the weights' gradients in a part of its own;
   parts are summed block after block, so that the number of threads changes no bit. */

#include "cross_head_tile.h"

/* Vectors of one program's part before its matrix: norm, bias, then alpha of each attention head;
   sums that end in one number, of scale and mix, are doubles of their own, because thousands of terms
   may cancel in them. `native_pass.py` makes the room. */
enum { NORM, BIAS, ALPHA };

typedef struct {
  double *scalars; /* scale, and mix of each attention head */
  float *vectors;
} Part;

static inline int64_t part_vectors(const CrossHead *g) { return ALPHA + attention_heads(g); }

static inline int64_t part_size(const CrossHead *g) {
  return (part_vectors(g) + (g->kind == ADDITIVE ? 0 : 2 * N)) * N;
}

typedef struct {
  ALIGNED float scaled[TILE * N];    /* A^g before the norm's weight */
  ALIGNED float grouped[TILE * N];   /* and after it */
  ALIGNED float d_grouped[TILE * N], dz[TILE * N];
  float inverse[TILE];
} Tile;

static inline void add_at(float *sum, int j, vf x) { store(AT(sum), load(AT(sum)) + x); }

/* Gradients that pass no product: into d_grouped, dz, d_readout, and the part's vectors. */
static void middle_backward(const CrossHeadPass *p, Tile *x, int64_t t, int64_t token, int64_t head,
                            Part part) {
  const CrossHead *g = &p->cross;
  const int64_t place = (token * g->state_heads + head) * N;
  const float *read = g->readout + place;
  const float *d_scaled = p->d_branch + (2 * token * g->state_heads + head) * N;
  const float *d_middle = d_scaled + g->state_heads * N;
  const float *gate = p->gate ? p->gate + place : NULL;
  const float *beta = g->beta_or_bias ? g->beta_or_bias + head * N : NULL;
  const float scale = g->scale[g->scales > 1 ? head : 0];
  vf scaled = {0};
  EACH {
    vf r = load(AT(read)), ds = load(AT(d_scaled)), dm = load(AT(d_middle));
    vf dr = scale * ds, dg = dm;
    scaled += ds * r;
    if (g->kind == ADDITIVE) {
      dr += load(AT(beta)) * dm;
      add_at(part.vectors + BIAS * N, j, dm * r);
    } else if (g->kind == GATED) {
      vf open = load(AT(gate)), less = load(AT(x->grouped + t * N)) - r;
      dg = open * dm;
      dr += dm - dg;
      vf dz = dg * (1.0f - open) * less;
      store(AT(x->dz + t * N), dz);
      add_at(part.vectors + BIAS * N, j, dz);
    } else {
      store(AT(x->dz + t * N), dm);
      dg = splat(0);
    }
    store(AT(x->d_grouped + t * N), dg);
    store(AT(p->d_readout + place), dr);
  }
  part.scalars[0] += sum_lanes(scaled);
}

/* What A' hands back to R and alpha. */
static void changed_backward(const CrossHeadPass *p, int64_t token, int64_t head, Part part) {
  const CrossHead *g = &p->cross;
  const int64_t group = attention_heads(g), share = sharing_heads(g), first = head / share * group;
  const float *read = g->readout + (token * g->state_heads + head / share * share) * N;
  float *dr = p->d_readout + (token * g->state_heads + head) * N;
  for (int64_t i = 0; i < group; ++i) {
    const float *d = p->d_changed + (token * g->heads + first + i) * N;
    const float *alpha = g->alpha_or_matrix + (first + i) * N;
    EACH {
      add_at(dr, j, load(AT(d)) * load(AT(alpha)) / (float)share);
      if (head % share == 0)
        add_at(part.vectors + (ALPHA + i) * N, j, load(AT(d)) * mean_readout(g, read, j));
    }
  }
}

/* Through the norm and the group's mean, to attention's heads. */
static void group_backward(const CrossHeadPass *p, const Tile *x, int64_t t, int64_t token,
                           int64_t head, Part part) {
  const CrossHead *g = &p->cross;
  const int64_t group = attention_heads(g), share = sharing_heads(g), first = head / share * group;
  const float *norm = g->norm + head * N, *scaled = x->scaled + t * N, *d = x->d_grouped + t * N;
  vf along = {0}, dx[VECTORS];
  EACH {
    add_at(part.vectors + NORM * N, j, load(AT(d)) * load(AT(scaled)));
    dx[j] = load(AT(d)) * load(AT(norm));
    along += dx[j] * load(AT(scaled));
  }
  const float mean = sum_lanes(along) / N;
  EACH dx[j] = (dx[j] - mean * load(AT(scaled))) * x->inverse[t];
  for (int64_t i = 0; i < group; ++i) {
    const int64_t place = (token * g->heads + first + i) * N;
    const float mix = g->mix[head * group + i], *attention = g->attention + place;
    const float *behind = head % share ? p->d_attention : p->d_changed;
    vf mixed = {0};
    EACH {
      mixed += dx[j] * load(AT(attention));
      vf before = behind ? load(AT(behind + place)) : splat(0);
      store(AT(p->d_attention + place), before + mix * dx[j]);
    }
    part.scalars[1 + i] += sum_lanes(mixed);
  }
}

static void backward_tile(const CrossHeadPass *p, int64_t first, int64_t count, int64_t head,
                          Part part) {
  const CrossHead *g = &p->cross;
  const int64_t group = attention_heads(g), between = g->state_heads * N;
  const float *norm = g->norm + head * N;
  Tile x;
  for (int64_t t = 0; t < count; ++t) {
    const float *attention =
        g->attention + ((first + t) * g->heads + head / sharing_heads(g) * group) * N;
    float *scaled = x.scaled + t * N;
    x.inverse[t] = normalised_mean(g, attention, g->mix + head * group, scaled);
    EACH store(AT(x.grouped + t * N), load(AT(scaled)) * load(AT(norm)));
    middle_backward(p, &x, t, first + t, head, part);
    if (p->d_changed && g->kind == ADDITIVE) changed_backward(p, first + t, head, part);
  }
  if (g->kind != ADDITIVE) {
    const float *turned = p->turned + head * 2 * N * N, *read = g->readout + first * between + head * N;
    float *matrix = part.vectors + part_vectors(g) * N;
    add_tile_product(count, N, x.dz, N, 1, turned, 2 * N, x.d_grouped, N);
    add_tile_product(count, N, x.dz, N, 1, turned + N, 2 * N,
                     p->d_readout + first * between + head * N, between);
    add_tile_product(N, count, x.grouped, 1, N, x.dz, N, matrix, N);
    add_tile_product(N, count, read, 1, between, x.dz, N, matrix + N * N, N);
  }
  for (int64_t t = 0; t < count; ++t) group_backward(p, &x, t, first + t, head, part);
}

/* A state head's gradients out of its parts; the first block's takes the sum. */
static void gather(const CrossHeadPass *p, int64_t blocks, int64_t head) {
  const CrossHead *g = &p->cross;
  const int64_t size = part_size(g), group = attention_heads(g), share = sharing_heads(g);
  float *sum = p->parts + head * size;
  for (int64_t block = 1; block < blocks; ++block) {
    const float *other = sum + block * g->state_heads * size;
    for (int64_t i = 0; i < size; i += WIDEST) store(sum + i, load(sum + i) + load(other + i));
  }
  for (int64_t i = 0; i <= group; ++i) {
    double scalar = 0;
    for (int64_t block = 0; block < blocks; ++block)
      scalar += p->scalars[(block * g->state_heads + head) * (1 + group) + i];
    *(i ? p->d_mix + head * group + i - 1 : p->d_scale + head) = (float)scalar;
  }
  memcpy(p->d_norm + head * N, sum + NORM * N, N * sizeof(float));
  if (p->d_beta_or_bias) memcpy(p->d_beta_or_bias + head * N, sum + BIAS * N, N * sizeof(float));
  if (g->kind != ADDITIVE)
    memcpy(p->d_alpha_or_matrix + head * 2 * N * N, sum + part_vectors(g) * N,
           2 * N * N * sizeof(float));
  else if (head % share == 0)
    memcpy(p->d_alpha_or_matrix + head / share * group * N, sum + ALPHA * N,
           group * N * sizeof(float));
}

void cross_head_backward(const CrossHeadPass *p) {
  const CrossHead *g = &p->cross;
  const int64_t blocks = (g->tokens + p->block - 1) / p->block, size = part_size(g);
  const int64_t share = sharing_heads(g), groups = g->state_heads / share;
  const int64_t numbers = 1 + attention_heads(g);
#pragma omp parallel for schedule(static) num_threads(p->threads) if (p->threads > 1)
  for (int64_t program = 0; program < blocks * groups; ++program) {
    const int64_t block = program / groups, end = smaller((block + 1) * p->block, g->tokens);
    for (int64_t head = program % groups * share, i = 0; i < share; ++i, ++head) {
      const int64_t place = block * g->state_heads + head;
      const Part part = {p->scalars + place * numbers, p->parts + place * size};
      memset(part.scalars, 0, numbers * sizeof(double));
      memset(part.vectors, 0, size * sizeof(float));
      for (int64_t t = block * p->block; t < end; t += TILE)
        backward_tile(p, t, smaller(TILE, end - t), head, part);
    }
  }
#pragma omp parallel for schedule(static) num_threads(p->threads) if (p->threads > 1)
  for (int64_t head = 0; head < g->state_heads; ++head) gather(p, blocks, head);
}
