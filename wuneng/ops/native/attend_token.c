/* Attention of one decoded token over a layer's cached keys and values, this token's among them. */

#include "attend_token.h"

#include <math.h>

#include "exponentials.h"

void rms_norm(const float *x, const float *weight, double eps, int64_t width, float *out) {
  vf squares = {0};
  float rest = 0;
  int64_t j = 0;
  for (; j + WIDEST <= width; j += WIDEST) squares += load(x + j) * load(x + j);
  for (; j < width; ++j) rest += x[j] * x[j];
  const float scale = 1.0f / sqrtf((sum_lanes(squares) + rest) / (float)width + (float)eps);
  for (j = 0; j + WIDEST <= width; j += WIDEST)
    store(out + j, load(x + j) * scale * load(weight + j));
  for (; j < width; ++j) out[j] = x[j] * scale * weight[j];
}

/* RoPE as Llama applies it: channels i and i + N/2 turn together. After the norm, where there is. */
static void turned(const float *x, const float *weight, double eps, const float *cos,
                   const float *sin, float *out) {
  float normed[N];
  if (weight) {
    rms_norm(x, weight, eps, N, normed);
    x = normed;
  }
  for (int i = 0; i < N / 2; ++i) {
    out[i] = x[i] * cos[i] - x[i + N / 2] * sin[i];
    out[i + N / 2] = x[i + N / 2] * cos[i + N / 2] + x[i] * sin[i + N / 2];
  }
}

/* Scores of up to PIECE keys, and the largest of those that are seen. */
static float scores_of(const float *query, float scaling, const float *keys, int64_t count,
                       const uint8_t *seen, float *scores) {
  int64_t i = 0;
  for (; i + ROWS <= count; i += ROWS) {
    vf sums[ROWS] = {{0}};
    EACH {
      vf q = load(AT(query));
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) sums[r] += q * load(AT(keys + (i + r) * N));
    }
    sum_rows(sums, scores + i);
  }
  for (; i < count; ++i) scores[i] = dot(query, keys + i * N);
  float most = -INFINITY;
  for (i = 0; i < count; ++i) {
    scores[i] = seen && !seen[i] ? -INFINITY : scores[i] * scaling;
    if (!(scores[i] <= most)) most = scores[i]; /* NaN too */
  }
  return most;
}

/* e^(score - most), 0 where not seen; their sum. `scores` has room for whole vectors. */
static float weights_of(float *scores, int64_t count, float most) {
  const vf unseen = splat(-INFINITY), zero = {0};
  vf sum = {0};
  for (int64_t i = count; i % WIDEST; ++i) scores[i] = -INFINITY;
  for (int64_t i = 0; i < count; i += WIDEST) {
    vf score = load(scores + i);
    vf weight = choose(score == unseen, zero, exp_v(score - most));
    store(scores + i, weight);
    sum += weight;
  }
  return sum_lanes(sum);
}

static void weighted(const float *weights, const float *values, int64_t count, float *out) {
  vf sum[VECTORS] = {{0}}, other[VECTORS] = {{0}};
  int64_t i = 0;
  for (; i + 2 <= count; i += 2)
    EACH {
      sum[j] += weights[i] * load(AT(values + i * N));
      other[j] += weights[i + 1] * load(AT(values + (i + 1) * N));
    }
  if (i < count) EACH sum[j] += weights[i] * load(AT(values + i * N));
  EACH store(AT(out), sum[j] + other[j]);
}

/* This token's key and value, behind the cached ones. */
static void append(const TokenModel *m, const TokenLayer *l, const TokenCall *c,
                   const TokenCache *cache, int64_t sequence, int64_t group) {
  const int64_t place = (sequence * m->groups + group) * N;
  const int64_t to = sequence * cache->sequence + group * cache->head + (cache->tokens - 1) * N;
  const float *cos = c->cos + sequence * c->rotations, *sin = c->sin + sequence * c->rotations;
  turned(m->key + place, l->k_norm, l->k_eps, cos, sin, cache->key + to);
  memcpy(cache->value + to, m->value + place, N * sizeof(float));
}

void attend_piece(const TokenModel *m, const TokenCall *c, int64_t layer, int64_t sequence,
                  int64_t group, int64_t piece) {
  const TokenLayer *l = m->layer + layer;
  const TokenCache *cache = c->cache + layer;
  const int64_t first = piece * PIECE, left = cache->tokens - first;
  const int64_t count = left < PIECE ? left : PIECE, each = m->heads / m->groups;
  const int64_t place = sequence * cache->sequence + group * cache->head + first * N;
  const uint8_t *seen =
      c->seen ? c->seen + (sequence + 1) * c->columns - cache->tokens + first : NULL;
  if (left <= PIECE) append(m, l, c, cache, sequence, group);
  for (int64_t head = group * each; head < (group + 1) * each; ++head) {
    ALIGNED float query[N], scores[PIECE];
    const int64_t row = sequence * m->heads + head;
    turned(m->query + row * N, l->q_norm, l->q_eps, c->cos + sequence * c->rotations,
           c->sin + sequence * c->rotations, query);
    float most = scores_of(query, (float)l->scaling, cache->key + place, count, seen, scores);
    float *part = c->parts + (row * c->pieces + piece) * PART;
    part[N] = most;
    part[N + 1] = most == -INFINITY ? 0 : weights_of(scores, count, most);
    if (most != -INFINITY) weighted(scores, cache->value + place, count, part);
  }
}

void join_pieces(const TokenModel *m, const TokenCall *c, int64_t layer, int64_t sequence,
                 int64_t group) {
  const int64_t each = m->heads / m->groups, pieces = pieces_of(c->cache + layer);
  for (int64_t head = group * each; head < (group + 1) * each; ++head) {
    const int64_t row = sequence * m->heads + head;
    const float *parts = c->parts + row * c->pieces * PART;
    float most = -INFINITY, total = 0;
    for (int64_t i = 0; i < pieces; ++i)
      if (!(parts[i * PART + N] <= most)) most = parts[i * PART + N];
    vf sum[VECTORS] = {{0}};
    for (int64_t i = 0; i < pieces; ++i) {
      const float *part = parts + i * PART;
      if (part[N] == -INFINITY) continue; /* nothing seen: its values are not even written */
      const float share = expf(part[N] - most);
      total += share * part[N + 1];
      EACH sum[j] += share * load(AT(part));
    }
    const float *gate = m->layer[layer].output_gate ? m->output_gate + row * N : NULL;
    float slope[WIDEST];
    EACH {
      vf attended = sum[j] / total;
      if (gate) attended *= sigmoid_v(load(AT(gate)), slope);
      store(AT(m->attended + row * N), attended);
    }
  }
}
