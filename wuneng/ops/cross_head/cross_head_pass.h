/* Argument block of cross_head_forward.c and cross_head_backward.c: every field is eight bytes, in the
   order of `native_pass.py`. */
#ifndef WUNENG_CROSS_HEAD_PASS_H
#define WUNENG_CROSS_HEAD_PASS_H

#include "cross_head.h"

typedef struct {
  CrossHead cross;
  int64_t threads;
  int64_t block; /* tokens of one program */
  float *gate;   /* [tokens, S, N], of the kind gated; NULL: not kept */
  /* backward only */
  const float *turned;                 /* W [S, N, 2 N] with its last two turned, or NULL */
  const float *d_changed, *d_branch;   /* [tokens, H, N], NULL for zero; [tokens, 2, S, N] */
  float *d_attention, *d_readout;      /* [tokens, H, N], [tokens, S, N] */
  float *parts;                        /* [blocks, S, part_size]: what each program adds up */
  double *scalars;                     /* [blocks, S, 1 + max(1, H / S)]: and of single numbers */
  float *d_scale, *d_mix, *d_norm;     /* like what they belong to */
  float *d_alpha_or_matrix, *d_beta_or_bias;
} CrossHeadPass;

#endif
