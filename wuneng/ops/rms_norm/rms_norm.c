/* Gradients of y = w x / rms(x), two passes over a row that is in the first-level cache:

     dx = (w dy - xhat mean(w dy xhat)) / rms      dw = sum of dy xhat, over rows

   A program sums dw over a block of rows; blocks are added in order, so the number of threads changes
   no bit. */

#include "rms_norm.h"

#include <string.h>

#include "../native/vectors.h"

static void backward_row(const RmsNorm *g, int64_t row, float *d_weight) {
  const float *x = g->x + row * g->size, *d_out = g->d_out + row * g->size;
  float *d_x = g->d_x + row * g->size;
  const float inverse = g->inverse[row];
  vf sums[2] = {{0}};
  int64_t j = 0;
  for (; j + 2 * WIDEST <= g->size; j += 2 * WIDEST)
    for (int i = 0; i < 2; ++i) {
      const int64_t at = j + i * WIDEST;
      sums[i] += load(g->weight + at) * load(d_out + at) * load(x + at);
    }
  float along = sum_lanes(sums[0] + sums[1]);
  for (; j < g->size; ++j) along += g->weight[j] * d_out[j] * x[j];
  const float slope = along * inverse * inverse / (float)g->size;
  for (j = 0; j + WIDEST <= g->size; j += WIDEST) {
    const vf d = load(d_out + j), own = load(x + j);
    store(d_x + j, (load(g->weight + j) * d - own * slope) * inverse);
    store(d_weight + j, load(d_weight + j) + d * (own * inverse));
  }
  for (; j < g->size; ++j) {
    d_x[j] = (g->weight[j] * d_out[j] - x[j] * slope) * inverse;
    d_weight[j] += d_out[j] * (x[j] * inverse);
  }
}

void rms_norm_backward(const RmsNorm *g) {
  const int64_t blocks = (g->rows + g->block - 1) / g->block;
#pragma omp parallel for schedule(static) num_threads(g->threads) if (g->threads > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * g->block;
    const int64_t end = first + g->block < g->rows ? first + g->block : g->rows;
    float *part = g->parts + block * g->size;
    memset(part, 0, g->size * sizeof(float));
    for (int64_t row = first; row < end; ++row) backward_row(g, row, part);
  }
  memset(g->d_weight, 0, g->size * sizeof(float));
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t j = 0; j < g->size; ++j) g->d_weight[j] += g->parts[block * g->size + j];
}
