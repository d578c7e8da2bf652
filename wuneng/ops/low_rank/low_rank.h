/* Argument blocks of low_rank.c: every field is eight bytes, in the order of `native.py`. */
#ifndef WUNENG_LOW_RANK_H
#define WUNENG_LOW_RANK_H

#include <stdint.h>

/* [tokens, width] = x [tokens, size] by weight [width, size]: torch's Linear without a bias. */
typedef struct {
  int64_t tokens, size, width;
  const float *x, *weight;
  float *out;
} Product;

typedef struct {
  int64_t tokens, size, rank, width;
  int64_t between; /* the two products: 0 nothing, 1 tanh, 2 sigma; 3: sigma after both */
  const float *x;  /* [tokens, size] */
  const float *down, *up, *bias; /* [size, rank], [rank, width], [width] or NULL */
  int64_t linear; /* 1: weights as torch's Linear has them, [rank, size] and [width, rank] */
  float *middle;                 /* [rank] to work in; [tokens, rank] where `linear` */
  float *out;                    /* [tokens, width] */
} LowRank;

#endif
