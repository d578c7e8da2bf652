/* Argument blocks of few_tokens.c: every field is eight bytes, in the order of `few_tokens.py`. */
#ifndef WUNENG_FEW_TOKENS_H
#define WUNENG_FEW_TOKENS_H

#include <stdint.h>

/* [tokens, width] = x [tokens, size] by weight [width, size]: torch's Linear without a bias. */
typedef struct {
  int64_t tokens, size, width;
  const float *x, *weight;
  float *out;
} Product;

typedef struct {
  int64_t tokens, size, rank, width;
  int64_t tangent; /* 1: tanh between the two products */
  const float *x;  /* [tokens, size] */
  const float *down, *up, *bias; /* [size, rank], [rank, width], [width] */
  float *middle;                 /* [rank] to work in */
  float *out;                    /* [tokens, width] */
} LowRank;

typedef struct {
  int64_t tokens, heads, state_heads; /* attention's H, and S */
  int64_t kind;                       /* 0 additive, 1 gated, 2 concat */
  int64_t scales;                     /* 1 or S */
  double eps;
  const float *attention, *readout;       /* [tokens, H, N], [tokens, S, N] */
  const float *scale, *mix, *norm;        /* [scales], [S, max(1, H / S)], [S, N] */
  const float *alpha_or_matrix, *beta_or_bias; /* as wuneng.ops.cross_head */
  float *changed;                         /* A' [tokens, H, N], additive only */
  float *branch;                          /* [tokens, 2, S, N] */
} CrossHead;

#endif
