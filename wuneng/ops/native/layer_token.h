/* One thread's way through the pieces of a layer's work, for the files that say what a piece is. */
#ifndef WUNENG_LAYER_TOKEN_H
#define WUNENG_LAYER_TOKEN_H

#include "model_token.h"
#include "vectors.h"

typedef struct {
  const TokenModel *m;
  const TokenCall *c;
  const TokenLayer *l;
  int64_t layer;
  HybridToken hybrid; /* the layer's, with this token's addresses */
  float *inputs;      /* [INPUTS, B, D], this thread's */
  int64_t made;       /* a bit for each of them that this phase has made */
  int64_t *left;      /* pieces of each [B, G] that are not attended to */
} Worker;

#define WEIGHTS 8192 /* floats of a weight that a piece of work reads, about */

/* Rows of a weight [.., size] that are one piece of work, a multiple of ROWS. */
static inline int64_t rows_of(int64_t size) {
  const int64_t rows = WEIGHTS / size / ROWS * ROWS;
  return rows < ROWS ? ROWS : rows;
}
static inline int64_t pieces_of_rows(int64_t width, int64_t size) {
  return (width + rows_of(size) - 1) / rows_of(size);
}

/* The tokens that a piece multiplies: normalised once by each thread that has one. */
const float *normed(Worker *w, const float *x, const float *weight, double eps);

/* All projections of a layer's input. */
int64_t projection_pieces(const Worker *w);
void projection_piece(Worker *w, int64_t piece);

/* A state head's read vector, key and value, after the projections. */
void state_inputs(const Worker *w, int64_t sequence, int64_t head);

/* x: `channels` of a sequence's channels of a token, from `first` of all `width`, convolved. */
void convolve(const ShortConv *conv, const ConvCarry *carry, int64_t sequence, int64_t width,
              int64_t first, int64_t channels, float *x);

/* Of the delta rule's heads: the logits that are one for a head, of all sequences' normalised tokens x;
   what the recurrence takes; and norm and gate of what it reads. */
void delta_numbers(const Worker *w, const float *x);
void delta_inputs(const Worker *w, int64_t sequence, int64_t head);
void delta_readout(const Worker *w, int64_t sequence, int64_t head);

#endif
