"""From the raw state read to what a state head hands on, in one operator.

    z = groupnorm_head(y) * weight + bias           RWKV-7's ``ln_x``; statistics float32
    c = sum_n r * k~ * r_k                          the bonus for the present token
    R = (z + c v) * gate

(RWKV-7; RWKV-LM's ``rwkv_v7_numpy.py``. The norm, the bonus and the gate can each be absent.) As a
chain of autograd operations this is eight passes over ``[B, T, S, N]`` forward and keeps as many
tensors; by hand the backward pass needs r, k~, v, the normalised read and, with a gate, what it
multiplied. On CUDA each direction is one kernel (``readout_triton``).

Legend: B batch, T tokens, S state heads, N head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.backend import HAS_TRITON, candidates
from wuneng.ops.plain import are_plain


def state_readout_reference(
    y: Tensor,
    r: Tensor,
    key: Tensor,
    v: Tensor,
    *,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    bonus: Tensor | None,
    gate: Tensor | None,
) -> Tensor:
    """The equations as they stand, for plain autograd: the oracle of :func:`state_readout`."""
    if norm_weight is not None and norm_bias is not None:
        y = torch.nn.functional.layer_norm(y, y.shape[-1:], eps=norm_eps) * norm_weight + norm_bias
    if bonus is not None:
        y = y + (r * key * bonus).sum(-1, keepdim=True) * v
    return y if gate is None else y * gate


def state_readout(
    y: Tensor,
    r: Tensor,
    key: Tensor,
    v: Tensor,
    *,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    bonus: Tensor | None,
    gate: Tensor | None,
    backend: str | None = None,
) -> Tensor:
    """Group norm, bonus and output gate.

    Args:
        y: what was read from the state, ``[B, T, S, N]``.
        r, key, v: read vectors, replacement keys k~ and values, ``[B, T, S, N]``; r, key and v are
            read only where there is a bonus (v's dtype always counts).
        norm_weight, norm_bias: per-channel ``[S, N]``; both None leaves y as it is.
        norm_eps: added to the variance, inside the root.
        bonus: r_k ``[S, N]``, or None.
        gate: ``[B, T, S, N]``, or None.
        backend: as :mod:`wuneng.ops.backend` says.

    Returns:
        R ``[B, T, S, N]`` in v's dtype; arithmetic is float32 (float64 where y is float64).
        Differentiable once in every tensor argument.

    Raises:
        ValueError: one of ``norm_weight`` and ``norm_bias`` without the other.
    """
    if (norm_weight is None) != (norm_bias is None):
        missing = "norm_weight" if norm_weight is None else "norm_bias"
        raise ValueError(f"{missing} is missing: give norm_weight and norm_bias together")
    arguments = (y, r, key, v, norm_weight, norm_bias, bonus, gate)
    plain = are_plain(*arguments)
    allowed = candidates("readout", y.device, backend)
    if "triton" in allowed and HAS_TRITON and y.is_cuda and plain:
        from wuneng.ops import readout_triton

        if readout_triton.takes(*arguments):
            return readout_triton.state_readout_triton(*arguments, norm_eps)
    # A compiler fuses the plain form by itself, and a tensor subclass knows torch's operations.
    if "chunked" not in allowed or torch.compiler.is_compiling() or not plain:
        y_, r_, key_, v_, weight_, bias_, bonus_, gate_ = (_wide(x, y) for x in arguments)
        out = state_readout_reference(
            *(y_, r_, key_, v_),
            norm_weight=weight_,
            norm_bias=bias_,
            norm_eps=norm_eps,
            bonus=bonus_,
            gate=gate_,
        )
        return out.to(v.dtype)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arguments):
        return _StateReadout.apply(*arguments, norm_eps)
    return _without_gradients(*arguments, norm_eps)


def _wide(x: Any, like: Tensor) -> Any:
    """x in the dtype that arithmetic runs in: float64 where y is float64, else float32."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    # A cast that does nothing costs as much as one that does, on a single token.
    return x if x is None or x.dtype is wide else x.to(wide)


def _without_gradients(
    y: Tensor,
    r: Tensor,
    key: Tensor,
    v: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    bonus: Tensor | None,
    gate: Tensor | None,
    eps: float,
) -> Tensor:
    """Nothing is kept; for a single token the number of operations is the time."""
    out = _wide(y, y)
    if norm_weight is not None and norm_bias is not None:
        weight, bias = _wide(norm_weight, out), _wide(norm_bias, out)
        out = torch.native_layer_norm(out, y.shape[-1:], None, None, eps)[0]
        out = torch.addcmul(bias, out, weight, out=out)
    if bonus is not None:
        out = torch.addcmul(out, _present(r, key, bonus, out)[0], _wide(v, out))
    if gate is not None:
        out = out * gate
    return out if out.dtype is v.dtype else out.to(v.dtype)


def _present(r: Tensor, key: Tensor, bonus: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """c ``[B, T, S, 1]``, how much of its own value the present token adds, and a free buffer."""
    product = torch.mul(_wide(r, like), _wide(key, like)).mul_(_wide(bonus, like))
    return product.sum(-1, keepdim=True), product


class _StateReadout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        r: Tensor,
        key: Tensor,
        v: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        bonus: Tensor | None,
        gate: Tensor | None,
        eps: float,
    ) -> Tensor:
        out = _wide(y, y)
        normalised = inverse = c = buffer = before_gate = None
        if bonus is not None:
            c, buffer = _present(r, key, bonus, out)
        if norm_weight is not None and norm_bias is not None:
            normalised, _, inverse = torch.native_layer_norm(out, out.shape[-1:], None, None, eps)
            weight, bias = _wide(norm_weight, y), _wide(norm_bias, y)
            out = buffer = torch.addcmul(bias, normalised, weight, out=buffer)
        if c is not None:
            out = torch.addcmul(out, c, _wide(v, y), out=buffer)
        if gate is not None:
            before_gate, out = out, out * gate
        read = (None, None, None) if bonus is None else (r, key, v)
        ctx.save_for_backward(normalised, inverse, c, before_gate, *read, norm_weight, bonus, gate)
        ctx.y_dtype = y.dtype
        ctx.bias_dtype = None if norm_bias is None else norm_bias.dtype
        return out.to(v.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normalised, inverse, c, before_gate, r, key, v, norm_weight, bonus, gate = ctx.saved_tensors
        wide = torch.float64 if ctx.y_dtype == torch.float64 else torch.float32
        incoming = gradient.to(wide)
        d_gate = None
        if gate is not None:
            d_gate = torch.mul(incoming, before_gate).to(gate.dtype)
            incoming = torch.mul(incoming, gate.to(wide))
        dy, d_weight, d_bias = incoming, None, None
        dr = dk = dv = d_bonus = buffer = None
        if norm_weight is not None:
            buffer = torch.empty_like(normalised)
            dy, d_weight = _backward_of_norm(incoming, normalised, inverse, norm_weight, buffer)
            d_bias = incoming.sum(dim=(0, 1)).to(ctx.bias_dtype)
        if bonus is not None:
            dr, dk, d_bonus = _backward_of_present(incoming, r, key, v, bonus, buffer)
            dv = torch.mul(incoming, c).to(v.dtype)
        return dy.to(ctx.y_dtype), dr, dk, dv, d_weight, d_bias, d_bonus, d_gate, None


def _backward_of_present(
    incoming: Tensor, r: Tensor, key: Tensor, v: Tensor, bonus: Tensor, buffer: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of r, key and r_k from that of c v; ``buffer`` is overwritten, in the end by key's.

    Fresh memory is what costs: writing a new tensor takes twice as long as writing an old one.
    """
    r_, key_, bonus_ = (_wide(x, incoming) for x in (r, key, bonus))
    buffer = torch.mul(incoming, _wide(v, incoming), out=buffer)
    dc = buffer.sum(-1, keepdim=True)
    torch.mul(r_, key_, out=buffer)
    d_bonus = buffer.mul_(dc).sum(dim=(0, 1)).to(bonus.dtype)
    torch.mul(dc, bonus_, out=buffer)
    dr = torch.mul(buffer, key_)
    return dr.to(r.dtype), buffer.mul_(r_).to(key.dtype), d_bonus


def _backward_of_norm(
    incoming: Tensor, normalised: Tensor, inverse: Tensor, weight: Tensor, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of y and the weight; ``buffer`` is overwritten.

    torch's layer norm backward gets the normalised values as if they were the input, with mean 0
    and deviation 1, so that y itself need not be kept; it is linear in what comes in, so the true
    deviation can follow.
    """
    d_weight = torch.mul(incoming, normalised, out=buffer).sum(dim=(0, 1)).to(weight.dtype)
    torch.mul(incoming, _wide(weight, incoming), out=buffer)
    dy, _, _ = torch.ops.aten.native_layer_norm_backward(
        *(buffer, normalised, normalised.shape[-1:]),
        *(torch.zeros_like(inverse), torch.ones_like(inverse), None, None, [True, False, False]),
    )
    return dy.mul_(inverse), d_weight
