/* What else a state head costs when a token is decoded, one call each: a dozen torch operators on a
   few hundred numbers take longer to dispatch than to compute. For one or a few tokens only: the
   products are matrix-vector loops. */

#include "few_tokens.h"

#include <math.h>

#include "vectors.h"

/* width must be a multiple of ROWS. */
void product(const Product *g) {
  for (int64_t token = 0; token < g->tokens; ++token) {
    const float *x = g->x + token * g->size;
    for (int64_t i = 0; i < g->width; i += ROWS) {
      const float *row = g->weight + i * g->size;
      vf sums[ROWS] = {{0}};
      int64_t j = 0;
      for (; j + WIDEST <= g->size; j += WIDEST)
        for (int r = 0; r < ROWS; ++r) sums[r] += load(x + j) * load(row + r * g->size + j);
      float *out = g->out + token * g->width + i;
      sum_rows(sums, out);
      for (; j < g->size; ++j)
        for (int r = 0; r < ROWS; ++r) out[r] += x[j] * row[r * g->size + j];
    }
  }
}

/* out += x rows, with rows [count, width]: sums of a block of columns stay in registers. */
static void add_rows(float *restrict out, const float *restrict x, const float *restrict rows,
                     int64_t count, int64_t width) {
  enum { BLOCK = 4 * WIDEST };
  int64_t j = 0;
  for (; j + BLOCK <= width; j += BLOCK) {
    vf sum[4];
    for (int b = 0; b < 4; ++b) sum[b] = load(out + j + b * WIDEST);
    for (int64_t i = 0; i < count; ++i)
      for (int b = 0; b < 4; ++b) sum[b] += x[i] * load(rows + i * width + j + b * WIDEST);
    for (int b = 0; b < 4; ++b) store(out + j + b * WIDEST, sum[b]);
  }
  for (; j + WIDEST <= width; j += WIDEST) {
    vf sum = load(out + j), other = {0};
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
      sum += x[i] * load(rows + i * width + j);
      other += x[i + 1] * load(rows + (i + 1) * width + j);
    }
    if (i < count) sum += x[i] * load(rows + i * width + j);
    store(out + j, sum + other);
  }
  for (; j < width; ++j)
    for (int64_t i = 0; i < count; ++i) out[j] += x[i] * rows[i * width + j];
}

/* out = bias + middle(x down) up, with middle the identity or tanh. */
void low_rank(const LowRank *g) {
  for (int64_t token = 0; token < g->tokens; ++token) {
    float *middle = g->middle, *out = g->out + token * g->width;
    memset(middle, 0, g->rank * sizeof(float));
    add_rows(middle, g->x + token * g->size, g->down, g->size, g->rank);
    if (g->tangent)
      for (int64_t j = 0; j < g->rank; ++j) middle[j] = tanhf(middle[j]);
    memcpy(out, g->bias, g->width * sizeof(float));
    add_rows(out, middle, g->up, g->rank, g->width);
  }
}

/* A layer's receptance and the logits of decay and rate, in one call. */
void projections(const Product *receptance, const LowRank *decay, const LowRank *rate) {
  product(receptance);
  low_rank(decay);
  low_rank(rate);
}

/* Each state head's attention heads under the learned mix, RMS-normalised. */
static void grouped(const CrossHead *g, const float *attention, int64_t head, float *out) {
  const int64_t group = g->heads >= g->state_heads ? g->heads / g->state_heads : 1;
  const int64_t first =
      g->heads >= g->state_heads ? head * group : head / (g->state_heads / g->heads);
  vf squares = {0};
  EACH {
    vf sum = {0};
    for (int64_t i = 0; i < group; ++i)
      sum += g->mix[head * group + i] * load(AT(attention + (first + i) * N));
    squares += sum * sum;
    store(AT(out), sum);
  }
  float scale = 1.0f / sqrtf(sum_lanes(squares) / N + (float)g->eps);
  const float *weight = g->norm + head * N;
  EACH store(AT(out), load(AT(out)) * scale * load(AT(weight)));
}

/* [grouped; read] W for one head, W [2 N, N]. */
static void per_head(const float *grouped, const float *read, const float *weight,
                     const float *bias, float *out) {
  vf sum[VECTORS];
  EACH sum[j] = bias ? load(AT(bias)) : splat(0);
  for (int i = 0; i < N; ++i) {
    const float *above = weight + i * N, *below = weight + (N + i) * N;
    float a = grouped[i], b = read[i];
    EACH sum[j] += a * load(AT(above)) + b * load(AT(below));
  }
  EACH store(AT(out), sum[j]);
}

static void middle_head(const CrossHead *g, const float *attention, const float *read, int64_t head,
                        float *out) {
  float mean[N], z[N], slope[N];
  grouped(g, attention, head, mean);
  if (g->kind == 0) {
    const float *beta = g->beta_or_bias + head * N;
    EACH store(AT(out), load(AT(mean)) + load(AT(beta)) * load(AT(read)));
    return;
  }
  const float *bias = g->beta_or_bias ? g->beta_or_bias + head * N : NULL;
  per_head(mean, read, g->alpha_or_matrix + head * 2 * N * N, bias, g->kind == 2 ? out : z);
  if (g->kind == 2) return;
  EACH {
    vf r = load(AT(read)), gate = sigmoid_v(load(AT(z)), AT(slope));
    store(AT(out), r + gate * (load(AT(mean)) - r));
  }
}

/* A' = A + alpha * up(R): each attention head takes its state head, or the mean of its state heads. */
static void change_attention(const CrossHead *g, const float *attention, const float *readout,
                             float *changed) {
  for (int64_t head = 0; head < g->heads; ++head) {
    const int64_t count = g->state_heads > g->heads ? g->state_heads / g->heads : 1;
    const int64_t first =
        g->state_heads > g->heads ? head * count : head / (g->heads / g->state_heads);
    const float *alpha = g->alpha_or_matrix + head * N, *old = attention + head * N;
    EACH {
      vf sum = {0};
      for (int64_t i = 0; i < count; ++i) sum += load(AT(readout + (first + i) * N));
      store(AT(changed + head * N), load(AT(old)) + load(AT(alpha)) * (sum / (float)count));
    }
  }
}

void cross_head(const CrossHead *g) {
  for (int64_t token = 0; token < g->tokens; ++token) {
    const float *attention = g->attention + token * g->heads * N;
    const float *readout = g->readout + token * g->state_heads * N;
    float *branch = g->branch + token * 2 * g->state_heads * N;
    for (int64_t head = 0; head < g->state_heads; ++head) {
      const float scale = g->scale[g->scales > 1 ? head : 0], *read = readout + head * N;
      float *scaled = branch + head * N;
      EACH store(AT(scaled), scale * load(AT(read)));
      middle_head(g, attention, read, head, branch + (g->state_heads + head) * N);
    }
    if (g->kind == 0)
      change_attention(g, attention, readout, g->changed + token * g->heads * N);
  }
}
