"""The readout by hand: fewer passes over memory, and a backward that keeps what it needs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: y, r, key and v; norm_weight, norm_bias, bonus and gate, each of which may be absent.
Tensors = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]


def state_readout_by_hand(*arguments: *Tensors, eps: float) -> Tensor:
    """Arguments and result of :func:`wuneng.ops.readout.state_readout`, unchecked."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arguments):
        out: Tensor = _StateReadout.apply(*arguments, eps)
        return out
    return _without_gradients(arguments, eps)


def wide(x: Any, like: Tensor) -> Any:
    """x in the dtype that arithmetic runs in: float64 where y is float64, else float32."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    # A cast that does nothing costs as much as one that does, on a single token.
    return x if x is None or x.dtype is wide else x.to(wide)


def _without_gradients(arguments: Tensors, eps: float) -> Tensor:
    """Nothing is kept; for a single token the number of operations is the time."""
    y, r, key, v, norm_weight, norm_bias, bonus, gate = arguments
    out = wide(y, y)
    if norm_weight is not None and norm_bias is not None:
        weight, bias = wide(norm_weight, out), wide(norm_bias, out)
        out = torch.native_layer_norm(out, y.shape[-1:], None, None, eps)[0]
        out = torch.addcmul(bias, out, weight, out=out)
    if bonus is not None:
        out = torch.addcmul(out, _present(r, key, bonus, out)[0], wide(v, out))
    if gate is not None:
        out = out * gate
    return out if out.dtype is v.dtype else out.to(v.dtype)


def _present(r: Tensor, key: Tensor, bonus: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """c ``[B, T, S, 1]``, how much of its own value the present token adds, and a free buffer."""
    product = torch.mul(wide(r, like), wide(key, like)).mul_(wide(bonus, like))
    return product.sum(-1, keepdim=True), product


class _StateReadout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        y, r, key, v, norm_weight, norm_bias, bonus, gate, eps = given
        out = wide(y, y)
        normalised = inverse = c = buffer = before_gate = None
        if bonus is not None:
            c, buffer = _present(r, key, bonus, out)
        if norm_weight is not None and norm_bias is not None:
            normalised, _, inverse = torch.native_layer_norm(out, out.shape[-1:], None, None, eps)
            weight, bias = wide(norm_weight, y), wide(norm_bias, y)
            out = buffer = torch.addcmul(bias, normalised, weight, out=buffer)
        if c is not None:
            out = torch.addcmul(out, c, wide(v, y), out=buffer)
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
    r_, key_, bonus_ = (wide(x, incoming) for x in (r, key, bonus))
    buffer = torch.mul(incoming, wide(v, incoming), out=buffer)
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
    torch.mul(incoming, wide(weight, incoming), out=buffer)
    dy, _, _ = torch.ops.aten.native_layer_norm_backward(
        *(buffer, normalised, normalised.shape[-1:]),
        *(torch.zeros_like(inverse), torch.ones_like(inverse), None, None, [True, False, False]),
    )
    return dy.mul_(inverse), d_weight
