/* What a decoded token's state head reads: its read vector, key and value as the projections gave them,
   convolved, and mixed with the first layer's. */

#include "exponentials.h"
#include "layer_token.h"

void convolve(const ShortConv *conv, const ConvCarry *carry, int64_t sequence, int64_t width,
              int64_t first, int64_t channels, float *x) {
  const int64_t earlier = conv->count - 1, place = sequence * earlier * width + first;
  const float *before = carry->before ? carry->before + place : NULL;
  float *after = carry->after + place;
  for (int64_t c = 0; c < channels; ++c) {
    const float *taps = conv->taps + (first + c) * conv->count, now = x[c];
    float sum = now * taps[earlier];
    for (int64_t j = 0; j < earlier; ++j) {
      const float past = before ? before[j * width + c] : 0;
      sum += past * taps[earlier - 1 - j];
      if (j + 1 < earlier) after[(j + 1) * width + c] = past;
    }
    after[c] = now;
    x[c] = sum;
  }
}

/* Attention's are taken around again where it has fewer heads; then convolved. The first layer's
   values are kept, and mixed into those of layers that say so. */
void state_inputs(const Worker *w, int64_t sequence, int64_t head) {
  const TokenModel *m = w->m;
  const StateParts *s = w->l->parts;
  const int64_t place = (sequence * w->hybrid.head.heads + head) * N;
  const int64_t from = m->groups ? (sequence * m->groups + head % m->groups) * N : 0;
  float *value = m->state_value + place, *first = m->first_value + place;
  if (!s->own_key) memcpy(m->state_key + place, m->key + from, N * sizeof(float));
  if (!s->own_value) memcpy(value, m->value + from, N * sizeof(float));
  float *conv_of[3] = {w->hybrid.receptance.out + place, m->state_key + place, value};
  for (int i = 0; i < 3; ++i)
    if (s->conv[i].taps)
      convolve(s->conv + i, w->c->cache[w->layer].state_conv + i, sequence,
               w->hybrid.receptance.width, head * N, N, conv_of[i]);
  if (w->layer == m->first) memcpy(first, value, N * sizeof(float));
  if (s->delta.beta) delta_inputs(w, sequence, head);
  if (!s->residual.down) return;
  EACH {
    const vf own = load(AT(value)), logit = load(AT(s->residual.out + place));
    store(AT(value), own + (load(AT(first)) - own) / (1.0f + exp_v(-logit)));
  }
}
