/* One decoded token of every layer of a model in one call: what stays from token to token (TokenModel
   and its layers), and what comes with the token (TokenCall and its caches). Every field is eight
   bytes, in the order of `token_arguments.py`; weights are torch's Linear ones, absent tensors are
   NULL. */
#ifndef WUNENG_MODEL_TOKEN_H
#define WUNENG_MODEL_TOKEN_H

#include "hybrid_token.h"

/* A short causal convolution of each channel: `taps` [C, count], the last one the token's own. */
typedef struct {
  const float *taps; /* NULL: none */
  int64_t count;
} ShortConv;

/* The tokens that a convolution reads beside the present one, [B, (count - 1) C], the latest first. */
typedef struct {
  const float *before; /* NULL for zero */
  float *after;        /* for the next token */
} ConvCarry;

/* What the delta rule's heads (Gated DeltaNet, Kimi Delta Attention) have of their own. Their decay's
   logits are low rank, or those of `step`. */
typedef struct {
  const float *beta, *step;           /* [S, D]; `step`: one decay for a head */
  const float *log_rate, *step_bias;  /* [S]; [S] or, without `step`, [S N] */
  const float *norm, *gate;           /* [S, N]; [S N, D] of a silu gate; NULL: none */
  const float *shift[3];              /* [S N] of r, k, v: token shift, NULL: none */
  int64_t slots[3], carry_row;        /* where they are in a carry, in heads' widths; its floats */
  double a_max, norm_eps;
  float *beta_out, *step_out, *gate_out; /* [B, S] twice, [B, S N] */
} DeltaRule;                          /* without `beta` the heads are RWKV-7's */

/* Where a layer's state heads get their inputs from, in a model of many layers. */
typedef struct {
  const float *own_key, *own_value; /* [S N, D]; NULL: attention's, around again where G < S */
  /* [D] each: how much of the token before the projections read, each of its own; NULL: nothing */
  const float *mix_r, *mix_w, *mix_k, *mix_v, *mix_a, *mix_g;
  ShortConv conv[3]; /* of r, k, v */
  LowRank gate;      /* of the output; without `down` there is none */
  LowRank residual;  /* logits: how much of the first such layer's values is mixed into its own */
  DeltaRule delta;
} StateParts;

typedef struct {
  const float *input_norm, *q, *k, *v, *o;         /* [D], [H N, D], [G N, D] twice, [D, H N] */
  const float *q_bias, *k_bias, *v_bias, *o_bias;
  const float *q_norm, *k_norm;                    /* [N], both or neither */
  const float *k_shift, *v_shift;                  /* [G N], both or neither: token shift */
  const float *feed_norm, *gate, *up, *down;       /* [D], [F, D] twice, [D, F] */
  const float *gate_bias, *up_bias, *down_bias;
  const float *output_gate;                        /* [H N, D] of attention's output, or NULL */
  ShortConv conv[3];                               /* of q, k, v */
  double input_eps, q_eps, k_eps, feed_eps;
  double scaling;                                  /* of attention's products */
  const HybridToken *hybrid;                       /* NULL: attention alone */
  const StateParts *parts;                         /* NULL too then */
} TokenLayer;                                      /* without q: state heads alone */

typedef struct {
  int64_t layers, batch, threads;
  int64_t width, heads, groups, inner; /* D, H, G, F; H and G are 0 without any attention */
  int64_t first;                       /* the first layer with state heads */
  const TokenLayer *layer;             /* [layers] */
  const float *norm;                   /* [D], after the last layer */
  double norm_eps;
  /* to work in: [B, H N], [B, G N] twice, [B, H N] twice, [B, D], [B, F] */
  float *query, *key, *value, *attended, *changed, *middle, *wide;
  float *output_gate; /* [B, H N] */
  float *state_key, *state_value, *first_value; /* [B, S N], the last one of layer `first` */
  float *inputs; /* [threads, INPUTS, B, D] */
} TokenModel;

typedef struct {
  float *key, *value;       /* [B, G, tokens, N], whose last token is to be written */
  int64_t tokens;           /* 0 without attention */
  int64_t sequence, head;   /* floats from one to the next, of keys and of values */
  const float *state;       /* [B, S, N, N], NULL for zero, and after this token */
  float *final_state;
  const float *carry;       /* [B, letters * S * N] as TokenInputs, or [B, D] for `mix_r`, and after */
  float *last;
  const float *shift_carry; /* [B, 2 G N] for `k_shift` and `v_shift`, NULL for zero, and after */
  float *shift_last;
  ConvCarry state_conv[3], attention_conv[3]; /* of r, k, v and of q, k, v */
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
#define INPUTS 7      /* of projections: the normalised tokens, and six mixtures with those before */

#endif
