/* RWKV-7's state heads on a CPU: token loops with the state in the first-level cache.

   One program walks one head of one sequence, as the Triton kernels do, but token by token: at
   N = 64 a head's state is 16 KB, so nothing is gained by gathering tokens in chunks, and nothing
   is lost to a triangular inverse. Per token and head, in one pass over memory:

     r, k, v      token shift            u_t + mu (u_{t-1} - u_t)
     w            decay                  exp(-e^{-1/2} sigma(logit))
     kappa        removal key            source * k_k, normalised over the head
     a, b         -kappa, a_max * rate * kappa
     k~           replacement key        k (1 + (rate - 1) k_a)
     S            state                  S diag(w) + (S a^T) b + v^T k~
     y            read                   r S^T
     R            group norm of y, + (r . k~ r_k) v, * gate

   (rwkv_v7_numpy.py of RWKV-LM; state_head_inputs.h, state_head_token.h). Everything but the recurrence
   may be absent. The way back is in state_head_backward.c. Each (sequence, head) is done by one thread
   in one order: equal bits whatever the number of threads. */

#include "state_head_token.h"

static void keep_last(Rows x, const float *carry, float *last, const Arguments *g,
                      int64_t sequence, int64_t head) {
  if (!last) return;
  const int64_t first = g->bounds[sequence], end = g->bounds[sequence + 1];
  float *to = last + sequence * g->carry_row + head * N;
  const float *from = end > first ? at(x, end - 1, head) : carry_of(g, carry, sequence, head);
  if (from)
    memcpy(to, from, N * sizeof(float));
  else
    memset(to, 0, N * sizeof(float));
}

void state_head_program(const Arguments *g, int64_t sequence, int64_t head) {
  const int64_t first = g->bounds[sequence], end = g->bounds[sequence + 1];
  const int64_t place = (sequence * g->heads + head) * N * N;
  float *state = g->final_state + place;
  if (!g->state)
    memset(state, 0, N * N * sizeof(float));
  else if (g->state + place != state)
    memcpy(state, g->state + place, N * N * sizeof(float));
  Token two[2];
  if (end > first) prepare(g, two, first, first, sequence, head), remove_first(two, state);
  for (int64_t token = first; token < end; ++token) {
    if (g->boundaries && (token - first) % g->chunk == 0) {
      int64_t row = g->boundary_rows[sequence] + (token - first) / g->chunk;
      memcpy(g->boundaries + (row * g->heads + head) * N * N, state, N * N * sizeof(float));
    }
    ask_inputs(g, token + INPUTS_AHEAD, end, head);
    if (token + OUTPUT_AHEAD < end) ask(g->out, token + OUTPUT_AHEAD, head, 1);
    Token *x = two + (token - first) % 2, *next = NULL;
    if (token + 1 < end) {
      next = two + (token + 1 - first) % 2;
      prepare(g, next, token + 1, first, sequence, head);
    }
    advance(x, state, state, next);
    read_out(g, x, token, head, (float *)at(g->out, token, head));
  }
  keep_last(g->r, g->carry_r, g->last_r, g, sequence, head);
  keep_last(g->k, g->carry_k, g->last_k, g, sequence, head);
  keep_last(g->v, g->carry_v, g->last_v, g, sequence, head);
}

void state_head_forward(const Arguments *g) {
  const int64_t programs = g->sequences * g->heads;
#pragma omp parallel for schedule(static) num_threads(g->threads) if (g->threads > 1)
  for (int64_t program = 0; program < programs; ++program)
    state_head_program(g, program / g->heads, program % g->heads);
}
