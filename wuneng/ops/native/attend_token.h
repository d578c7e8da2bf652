/* Attention of one decoded token: a piece of the cached keys at a time, then the pieces together. */
#ifndef WUNENG_ATTEND_TOKEN_H
#define WUNENG_ATTEND_TOKEN_H

#include "model_token.h"

static inline int64_t pieces_of(const TokenCache *cache) {
  return (cache->tokens + PIECE - 1) / PIECE;
}

/* One key head's piece, for all query heads that read it. */
void attend_piece(const TokenModel *m, const TokenCall *c, int64_t layer, int64_t sequence,
                  int64_t group, int64_t piece);
/* Those query heads' outputs, from all pieces. */
void join_pieces(const TokenModel *m, const TokenCall *c, int64_t layer, int64_t sequence,
                 int64_t group);
/* x, RMS-normalised. */
void rms_norm(const float *x, const float *weight, double eps, int64_t width, float *out);

#endif
