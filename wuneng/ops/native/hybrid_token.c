/* One decoded token of a layer in one call: projections, state heads, middle heads, projection back.
   Between operators of their own lie some microseconds of dispatch each, and more where a token's
   weights have pushed their code out of the cache. */

#include "hybrid_token.h"

void state_head_forward(const Arguments *g);
void projections(const Product *receptance, const LowRank *decay, const LowRank *rate);
void cross_head(const CrossHead *g);
void product(const Product *g);

/* The state heads' inputs of this token. */
void hybrid_heads(HybridToken *g, const TokenInputs *in) {
  g->head.k.data = (float *)in->key, g->head.k.row = in->key_row;
  g->head.v.data = (float *)in->value, g->head.v.row = in->value_row;
  g->head.state = in->state, g->head.final_state = in->final_state;
  const float **carries[3] = {&g->head.carry_r, &g->head.carry_k, &g->head.carry_v};
  float **lasts[3] = {&g->head.last_r, &g->head.last_k, &g->head.last_v};
  for (int i = 0; i < 3; ++i) {
    if (g->slots[i] < 0) continue;
    const int64_t start = g->slots[i] * g->head.heads * N;
    *carries[i] = in->carry ? in->carry + start : 0;
    *lasts[i] = in->last + start;
  }
}

void hybrid_token(const HybridToken *plan, const TokenInputs *in) {
  HybridToken g = *plan;
  g.receptance.x = g.decay.x = g.rate.x = in->x;
  projections(&g.receptance, &g.decay, &g.rate);
  hybrid_heads(&g, in);
  state_head_forward(&g.head);

  g.cross.attention = in->attention, g.cross.changed = in->changed;
  cross_head(&g.cross);
  g.branch.out = in->branch;
  product(&g.branch);
}
