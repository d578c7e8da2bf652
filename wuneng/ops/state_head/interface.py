"""Everything between a state head's projections and its readout, as one operator.

    u_t      = u_t + mu (u_{t-1} - u_t)          token shift of r, k, v where it follows projection
    log w    = -e^{-1/2} sigma(w)                so one step keeps at least 0.545
    kappa    = normalise_head(source * k_k)      removal key
    k~       = k (1 + (rate - 1) k_a)            replacement key, rate = sigma(a)
    S_t      = S_{t-1} (diag(e^{log w}) - kappa^T a_max rate kappa) + v^T k~
    y        = r S^T
    R        = (groupnorm_head(y) + (sum r k~ r_k) v) * gate

(RWKV-7; RWKV-LM's ``rwkv_v7_numpy.py``.) On a CPU with a C compiler it is one kernel each way
(:mod:`wuneng.ops.state_head.native`); elsewhere one token without gradients is one step
(:mod:`wuneng.ops.state_head.step`: on CUDA one kernel) and the rest is a composition of
``wuneng.ops``' operators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wuneng.ops.backend import asked, candidates
from wuneng.ops.head_arguments import HeadInputs, HeadOptions, HeadOutputs, HeadWeights
from wuneng.ops.plain import are_plain
from wuneng.ops.readout import state_readout
from wuneng.ops.state_head.from_projections import wkv7_from_projections
from wuneng.ops.state_head.native import is_available, run
from wuneng.ops.state_head.step import carry_parts, has_kernel, state_head_step
from wuneng.ops.token_shift import token_shift
from wuneng.ops.token_shift.previous_token import last_token, previous_token
from wuneng.ops.wkv7 import Recurrence, Snapshots


def state_head(
    inputs: HeadInputs,
    weights: HeadWeights,
    options: HeadOptions,
    *,
    state: Tensor | None = None,
    carry: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    keeps_carry: bool = False,
    snapshots: Snapshots | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
    recurrence: Recurrence | None = None,
    backend: str | None = None,
) -> HeadOutputs:
    """Run S heads of N channels over whole sequences, or over one token.

    Args:
        inputs, weights, options: see :mod:`wuneng.ops.head_arguments`.
        state: ``[B or sequences, S, N_value, N_key]`` float32 (float64 with float64 inputs); None
            is zero.
        carry: ``[sequences, len(options.letters) * S * N]``: each sequence's last token of an
            earlier call, before its token shift, in the order of ``options.letters``. None is zero.
        cu_seqlens: int64 ``[sequences + 1]`` for documents packed in one row, B = 1.
        keeps_carry: also return the carry for the next call.
        snapshots: also read earlier states, see :class:`wuneng.ops.Snapshots`.
        read: applied to y ``[B, T, S, N]`` before the group norm.
        recurrence: runs in place of :func:`wuneng.ops.wkv7`, called as it is; None is itself.
        backend: as :mod:`wuneng.ops.backend` says.

    Returns:
        Readout, final state, carry and ring; differentiable once in every tensor but ``carry`` and
        ``cu_seqlens`` (off the C kernels in ``carry`` too).
    """
    in_one = snapshots is None and read is None and recurrence is None and options.raw
    plain = in_one and are_plain(*inputs, *weights, state, carry)
    native = plain and "native" in candidates("state_head", inputs.v.device, backend)
    if native and _no_gradient(carry) and is_available(options.size, *inputs, state):
        head = (inputs, weights, options, state, carry)
        return run(*head, cu_seqlens=cu_seqlens, keeps_carry=keeps_carry)
    if plain and cu_seqlens is None and _steps(inputs, weights, options, state, carry, backend):
        out = state_head_step(inputs, weights, options, state, carry, backend=backend)
        # Not by _replace: torch.compile 2.11 stumbles over what it makes.
        return out if keeps_carry else HeadOutputs(out.readout, out.state)
    memory = (state, carry, cu_seqlens, snapshots)
    out = _composed(inputs, weights, options, *memory, read, recurrence, backend)
    if not keeps_carry:
        return out
    after = _next_carry(inputs, options, carry, cu_seqlens)
    return HeadOutputs(out.readout, out.state, after, out.ring)


def _no_gradient(x: Tensor | None) -> bool:
    return x is None or not x.requires_grad


def _steps(
    inputs: HeadInputs,
    weights: HeadWeights,
    options: HeadOptions,
    state: Tensor | None,
    carry: Tensor | None,
    backend: str | None,
) -> bool:
    """Whether this is one token that nothing is differentiated through, and its step wanted."""
    if inputs.v.shape[1] != 1:
        return False
    if torch.is_grad_enabled():
        tensors = (*inputs, *weights, state, carry)
        if any(x is not None and x.requires_grad for x in tensors):
            return False
    named = asked(backend)
    # A compiler fuses the composition by itself, but does not beat the one kernel.
    if named == "triton" or torch.compiler.is_compiling():
        return has_kernel(inputs, weights, options, carry, backend)
    return named in (None, "chunked")


def _composed(
    inputs: HeadInputs,
    weights: HeadWeights,
    options: HeadOptions,
    state: Tensor | None,
    carry: Tensor | None,
    cu_seqlens: Tensor | None,
    snapshots: Snapshots | None,
    read: Callable[[Tensor], Tensor] | None,
    recurrence: Recurrence | None,
    backend: str | None,
) -> HeadOutputs:
    def heads(u: Tensor) -> Tensor:
        return u.unflatten(-1, (options.heads, options.size))

    r, k, v = (heads(u) for u in _shifted(inputs, weights, options, carry, cu_seqlens, backend))
    assert weights.k_k is not None
    assert weights.k_a is not None
    shape = (options.heads, options.size)
    y, key, final, ring = wkv7_from_projections(
        *(r, heads(inputs.w), k, v, heads(inputs.a)),
        None if inputs.b is None else heads(inputs.b),
        *(weights.k_k.view(shape), weights.k_a.view(shape)),
        a_max=options.a_max,
        initial_state=state,
        cu_seqlens=cu_seqlens,
        snapshots=snapshots,
        recurrence=recurrence,
        backend=backend,
    )
    y = state_readout(
        *(y if read is None else read(y), r, key, v),
        norm_weight=None if weights.norm_weight is None else weights.norm_weight.view(shape),
        norm_bias=None if weights.norm_bias is None else weights.norm_bias.view(shape),
        norm_eps=options.norm_eps,
        bonus=None if weights.bonus is None else weights.bonus.view(shape),
        gate=None if inputs.gate is None else heads(inputs.gate),
        backend=backend,
    )
    return HeadOutputs(y, final, None, ring)


def _shifted(
    inputs: HeadInputs,
    weights: HeadWeights,
    options: HeadOptions,
    carry: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str | None,
) -> list[Tensor]:
    """r, k, v after the token shift."""
    width = options.heads * options.size
    carries = carry_parts(carry, options)
    mus = {"r": weights.mu_r, "k": weights.mu_k, "v": weights.mu_v}
    shifted = []
    for letter, u in {"r": inputs.r, "k": inputs.k, "v": inputs.v}.items():
        mu, last = mus[letter], carries.get(letter)
        u = u[..., :width]
        if mu is not None and last is None and cu_seqlens is None:
            u = token_shift(u, mu.flatten().to(u.dtype), backend=backend)
        elif mu is not None:
            u = torch.lerp(u, previous_token(u, last, cu_seqlens), mu.flatten().to(u.dtype))
        shifted.append(u)
    return shifted


def _next_carry(
    inputs: HeadInputs, options: HeadOptions, carry: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    before, width = carry_parts(carry, options), options.heads * options.size
    ends = [
        last_token(getattr(inputs, letter)[..., :width], before.get(letter), cu_seqlens)
        for letter in options.letters
    ]
    return torch.cat(ends, dim=-1)
