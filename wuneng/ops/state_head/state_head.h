/* What Python hands over: every field is eight bytes, in the order of `native_arguments.py`. All
   numbers are float32; a `Rows` is a [tokens, heads, N] tensor and the floats between two of its
   tokens. */
#ifndef WUNENG_STATE_HEAD_H
#define WUNENG_STATE_HEAD_H

#include <stdint.h>

typedef struct {
  float *data; /* NULL: absent */
  int64_t row;
} Rows;

typedef struct {
  int64_t sequences, heads, threads;
  int64_t chunk;         /* tokens between two kept states */
  const int64_t *bounds; /* [sequences + 1] tokens */
  /* 0: w, a, b are the log decay and the two removal vectors
     1: w, a are logits; b is the removal key's source, NULL for k itself */
  int64_t raw;
  double a_max, norm_eps;
  Rows r, w, k, v, a, b, gate;
  /* per channel [heads, N], NULL where absent */
  const float *mu_r, *mu_k, *mu_v, *k_k, *k_a, *bonus, *norm_weight, *norm_bias;
  /* the token before each sequence's first, unshifted: [sequences, carry_row], NULL for zero */
  const float *carry_r, *carry_k, *carry_v;
  float *last_r, *last_k, *last_v; /* the same for the next call: each sequence's last token */
  int64_t carry_row;
  const float *state; /* [sequences, heads, N, N] (value, key), NULL for zero */
  float *final_state; /* may be `state` */
  Rows out;
  float *boundaries;            /* state at every chunk's start, [rows, heads, N, N]; or NULL */
  const int64_t *boundary_rows; /* [sequences] first row of each sequence */
  /* backward only; gradients have the layouts of what they belong to */
  Rows d_out, dr, dw, dk, dv, da, db, d_gate;
  const float *d_final_state; /* NULL for zero */
  float *d_state;
  float *d_weights; /* [sequences, 8, heads, N] in the order of the weights above */
} Arguments;

#endif
