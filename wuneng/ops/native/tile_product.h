/* Products of small dense matrices with N columns, a few rows at a time in registers. */
#ifndef WUNENG_TILE_PRODUCT_H
#define WUNENG_TILE_PRODUCT_H

#include "vectors.h"

/* As many sums as the machine has registers for. A sum's terms come in one order, whatever rows and
   columns stand beside it. */
#if defined(__AVX512F__)
#define TILE_ROWS 6
#define TILE_VECTORS 4
#else
#define TILE_ROWS 4
#define TILE_VECTORS 2
#endif
#define PANEL (VECTORS < TILE_VECTORS ? VECTORS : TILE_VECTORS)

static inline __attribute__((always_inline)) void product_of_rows(
    const int rows, int64_t inner, const float *a, int64_t a_row, int64_t a_step, const float *b,
    int64_t b_row, float *c, int64_t c_row) {
  vf sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 6
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < PANEL; ++v) sum[i][v] = load(c + i * c_row + v * WIDEST);
  for (int64_t k = 0; k < inner; ++k) {
    vf other[TILE_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < PANEL; ++v) other[v] = load(b + k * b_row + v * WIDEST);
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i) {
      const float one = a[i * a_row + k * a_step];
#pragma GCC unroll 4
      for (int v = 0; v < PANEL; ++v) sum[i][v] += one * other[v];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < PANEL; ++v) store(c + i * c_row + v * WIDEST, sum[i][v]);
}

/* C [rows, N] += A [rows, inner] B [inner, N]. An entry of A lies at a[row * a_row + k * a_step]. */
static inline void add_tile_product(int64_t rows, int64_t inner, const float *a, int64_t a_row,
                                    int64_t a_step, const float *b, int64_t b_row, float *c,
                                    int64_t c_row) {
  for (int64_t first = 0; first < N; first += PANEL * WIDEST) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
      product_of_rows(TILE_ROWS, inner, a + i * a_row, a_row, a_step, b + first, b_row,
                      c + i * c_row + first, c_row);
    for (; i + 2 <= rows; i += 2)
      product_of_rows(2, inner, a + i * a_row, a_row, a_step, b + first, b_row,
                      c + i * c_row + first, c_row);
    if (i < rows)
      product_of_rows(1, inner, a + i * a_row, a_row, a_step, b + first, b_row,
                      c + i * c_row + first, c_row);
  }
}

#endif
