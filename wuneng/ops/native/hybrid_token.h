/* A layer's state and middle heads for one token of every sequence: blocks of the other kernels, in
   the order of `hybrid_token.py`. What changes from token to token comes apart, in TokenInputs. */
#ifndef WUNENG_HYBRID_TOKEN_H
#define WUNENG_HYBRID_TOKEN_H

#include "../cross_head/cross_head.h"
#include "../low_rank/low_rank.h"
#include "../state_head/state_head.h"

typedef struct {
  Product receptance;
  LowRank decay, rate;
  Arguments head;
  CrossHead cross;
  Product branch;
  int64_t slots[3]; /* where r, k, v are in a carry, in heads' widths; -1: not shifted */
} HybridToken;

typedef struct {
  const float *x, *key, *value, *attention; /* [B, D], [B, G * N] twice, [B, H * N] */
  int64_t key_row, value_row;
  const float *state; /* [B, S, N, N], NULL for zero */
  float *final_state;
  const float *carry; /* [B, letters * S * N], NULL for zero */
  float *last;
  float *changed; /* A' [B, H * N] of additive modulation, else NULL */
  float *branch;  /* [B, D] */
} TokenInputs;

/* The state heads' inputs of this token, into a copy of the layer's block. */
void hybrid_heads(HybridToken *g, const TokenInputs *in);

#endif
