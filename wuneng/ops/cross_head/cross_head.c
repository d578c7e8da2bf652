/* The cross-head interaction of one or a few decoded tokens, in one call: a dozen torch operators on a
   few hundred numbers take longer to dispatch than to compute. */

#include "cross_head.h"

#include <math.h>

#include "../native/exponentials.h"

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

/* One state head: lambda R and Mid, where there is one. */
void cross_head_branch(const CrossHead *g, int64_t token, int64_t head) {
  const float *read = g->readout + (token * g->state_heads + head) * N;
  const int64_t branches = g->kind == NO_MIDDLE ? 1 : 2;
  float *scaled = g->branch + (token * branches * g->state_heads + head) * N;
  const float scale = g->scale[g->scales > 1 ? head : 0];
  EACH store(AT(scaled), scale * load(AT(read)));
  if (g->kind == NO_MIDDLE) return;
  middle_head(g, g->attention + token * g->heads * N, read, head, scaled + g->state_heads * N);
}

/* One attention head, of the additive kind: A' = A + alpha * up(R), with its state head or the mean
   of its state heads. */
void cross_head_changed(const CrossHead *g, int64_t token, int64_t head) {
  const int64_t count = g->state_heads > g->heads ? g->state_heads / g->heads : 1;
  const int64_t first =
      g->state_heads > g->heads ? head * count : head / (g->heads / g->state_heads);
  const int64_t place = (token * g->heads + head) * N;
  const float *readout = g->readout + (token * g->state_heads + first) * N;
  EACH {
    vf sum = {0};
    for (int64_t i = 0; i < count; ++i) sum += load(AT(readout + i * N));
    store(AT(g->changed + place),
          load(AT(g->attention + place)) +
              load(AT(g->alpha_or_matrix + head * N)) * (sum / (float)count));
  }
}

void cross_head(const CrossHead *g) {
  for (int64_t token = 0; token < g->tokens; ++token) {
    for (int64_t head = 0; head < g->state_heads; ++head) cross_head_branch(g, token, head);
    for (int64_t head = 0; g->kind == 0 && head < g->heads; ++head)
      cross_head_changed(g, token, head);
  }
}
