/* Argument block of rms_norm.c: every field is eight bytes, in the order of `native.py`. */
#ifndef WUNENG_RMS_NORM_H
#define WUNENG_RMS_NORM_H

#include <stdint.h>

typedef struct {
  int64_t rows, size, threads;
  int64_t block;                     /* rows of one program */
  const float *x, *weight, *inverse; /* [rows, D], [D], 1 / root mean square of each row */
  const float *d_out;                /* [rows, D] */
  float *d_x, *d_weight;             /* [rows, D], [D] */
  float *parts;                      /* [blocks, D]: d_weight of each program */
} RmsNorm;

#endif
