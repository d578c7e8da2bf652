/* One decoded token of every layer of a model in one call: what stays from token to token (TokenModel
   and its layers), and what comes with the token (TokenCall and its caches). Every field is eight
   bytes, in the order of `model_token.py`; weights are torch's Linear ones, absent biases are NULL. */
#ifndef WUNENG_MODEL_TOKEN_H
#define WUNENG_MODEL_TOKEN_H

#include "hybrid_token.h"

typedef struct {
  const float *input_norm, *q, *k, *v, *o;         /* [D], [H N, D], [G N, D] twice, [D, H N] */
  const float *q_bias, *k_bias, *v_bias, *o_bias;
  const float *q_norm, *k_norm;                    /* [N], both or neither */
  const float *feed_norm, *gate, *up, *down;       /* [D], [F, D] twice, [D, F] */
  const float *gate_bias, *up_bias, *down_bias;
  double input_eps, q_eps, k_eps, feed_eps;
  double scaling;                                  /* of attention's products */
  const HybridToken *hybrid;                       /* NULL: attention alone */
  const float *own_key, *own_value;                /* [S N, D]; NULL: attention's */
} TokenLayer;

typedef struct {
  int64_t layers, batch, threads;
  int64_t width, heads, groups, inner; /* D, H, G, F */
  const TokenLayer *layer;             /* [layers] */
  const float *norm;                   /* [D], after the last layer */
  double norm_eps;
  /* to work in: [B, H N], [B, G N] twice, [B, H N] twice, [B, D], [B, F], [B, S N] twice */
  float *query, *key, *value, *attended, *changed, *middle, *wide, *own_key, *own_value;
  float *normed; /* [threads, B, D] */
} TokenModel;

typedef struct {
  float *key, *value;       /* [B, G, tokens, N], whose last token is to be written */
  int64_t tokens;
  int64_t sequence, head;   /* floats from one to the next, of keys and of values */
  const float *state;       /* as TokenInputs has them */
  float *final_state;
  const float *carry;
  float *last;
} TokenCache;

typedef struct {
  float *hidden;          /* [B, D], in and out */
  const float *cos, *sin; /* [B or 1, N] */
  int64_t rotations;      /* floats from one sequence's to the next: 0 or N */
  const uint8_t *seen;    /* [B, columns], 0 at pads; NULL: none */
  int64_t columns;        /* of which a layer's tokens are the last ones */
  int64_t pieces;         /* most in any layer */
  float *parts;           /* [B, H, pieces, PART] to work in */
  const TokenCache *cache; /* [layers] */
} TokenCall;

/* Keys are attended to in pieces, whatever the number of threads. Of a piece its largest score, its
   sum and its weighted values are kept. */
#define PIECE 256
#define PART (N + 16)
#define MOST_TOKENS 8 /* sequences at once */

#endif
