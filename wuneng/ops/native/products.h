/* Rows of a weight by a few tokens: the weight is read once, from memory, for all of them. */
#ifndef WUNENG_PRODUCTS_H
#define WUNENG_PRODUCTS_H

#include "vectors.h"

#define AHEAD 1024 /* floats that are asked for before they are needed */

/* out[token][row] of ROWS rows, for a number of tokens that the compiler knows. Row after row, so
   that memory is read as it lies; rows are short, hence it is asked for ahead of them. */
INLINE void products_of(const int tokens, const float *x, int64_t x_row, const float *rows,
                        int64_t size, float *out, int64_t out_row) {
  vf sums[2][ROWS];
  int64_t j = 0;
  for (int r = 0; r < ROWS; ++r) {
    const float *row = rows + r * size;
    vf sum[2] = {{0}}, other[2] = {{0}};
    for (j = 0; j + 2 * WIDEST <= size; j += 2 * WIDEST) {
      __builtin_prefetch(row + j + AHEAD);
      vf weight = load(row + j), next = load(row + j + WIDEST);
#pragma GCC unroll 2
      for (int t = 0; t < tokens; ++t) {
        sum[t] += load(x + t * x_row + j) * weight;
        other[t] += load(x + t * x_row + j + WIDEST) * next;
      }
    }
    for (int t = 0; t < tokens; ++t) sums[t][r] = sum[t] + other[t];
  }
  for (int t = 0; t < tokens; ++t) sum_rows(sums[t], out + t * out_row);
  for (; j < size; ++j)
    for (int t = 0; t < tokens; ++t)
      for (int r = 0; r < ROWS; ++r) out[t * out_row + r] += x[t * x_row + j] * rows[r * size + j];
}

/* x [tokens, size] by ROWS rows [ROWS, size]. A token's sums come in one order however many there
   are beside it. */
static inline void products(int64_t tokens, const float *x, int64_t x_row, const float *rows,
                            int64_t size, float *out, int64_t out_row) {
  int64_t t = 0;
  for (; t + 2 <= tokens; t += 2)
    products_of(2, x + t * x_row, x_row, rows, size, out + t * out_row, out_row);
  if (t < tokens) products_of(1, x + t * x_row, x_row, rows, size, out + t * out_row, out_row);
}

#endif
