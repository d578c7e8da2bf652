/* Argument block of cross_head.c: every field is eight bytes, in the order of `native.py`. */
#ifndef WUNENG_CROSS_HEAD_H
#define WUNENG_CROSS_HEAD_H

#include <stdint.h>

typedef struct {
  int64_t tokens, heads, state_heads; /* attention's H, and S */
  int64_t kind;                       /* 0 additive, 1 gated, 2 concat, 3 none in the middle */
  int64_t scales;                     /* 1 or S */
  double eps;
  const float *attention, *readout;       /* [tokens, H, N], [tokens, S, N] */
  const float *scale, *mix, *norm;        /* [scales], [S, max(1, H / S)], [S, N] */
  const float *alpha_or_matrix, *beta_or_bias; /* as wuneng.ops.cross_head */
  float *changed;                         /* A' [tokens, H, N], additive only */
  float *branch;                          /* [tokens, 2, S, N]; [tokens, S, N] of none */
} CrossHead;

#define NO_MIDDLE 3

#endif
