"""One token of a layer's state heads, from their projections to their readout; no gradients.

    u_t <- u_t + mu (u_{t-1} - u_t)                  token shift of r, k, v (those that have one)
    w = exp(-e^{-1/2} sigma(logit))                  decay
    rate, kappa, k~, a, b                            as in ``recurrence_inputs``
    S <- S diag(w) + (S a^T) b + v^T k~,  y = r S^T  the recurrence
    R = (groupnorm(y) + (sum r k~ r_k) v) * gate     as in ``readout``

(RWKV-7; RWKV-LM's ``rwkv_v7_numpy.py``.) A token is a few kilobytes of arithmetic, so in torch the
number of operations is the time: hence nothing is converted or copied here that need not be. On
CUDA it is one kernel (``triton_step``). Weights are read as they are at each call.

Legend: B batch, S state heads, N head size, H = B S, G heads of k and v (at least S), n letters
that a carry holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.backend import HAS_TRITON, candidates
from wuneng.ops.head_arguments import HeadCall, HeadInputs, HeadOptions, HeadOutputs, HeadWeights
from wuneng.ops.readout import state_readout_reference
from wuneng.ops.state_head.recurrence_inputs import (
    LOG_DECAY_SCALE,
    NORM_EPS,
    recurrence_inputs_reference,
)
from wuneng.ops.wkv7.reference import compute_dtype, wkv7_reference


def state_head_step_reference(
    inputs: HeadInputs,
    weights: HeadWeights,
    options: HeadOptions,
    state: Tensor | None,
    carry: Tensor | None,
) -> HeadOutputs:
    """The equations by the other operators' references: the oracle of :func:`state_head_step`."""
    shape, width = (options.heads, options.size), options.heads * options.size
    dtype, result = compute_dtype(*inputs), inputs.v.dtype
    weights = HeadWeights(*(None if x is None else x.reshape(shape).to(dtype) for x in weights))
    assert weights.k_k is not None
    assert weights.k_a is not None
    now = {
        name: x.flatten(1)[:, :width].unflatten(1, shape)
        for name, x in inputs._asdict().items()
        if x is not None
    }
    before = carry_parts(carry, options)
    after = [now[letter].flatten(1) for letter in options.letters]
    now = {name: x.to(dtype) for name, x in now.items()}
    for letter, mu in zip("rkv", weights[:3], strict=True):
        if mu is not None:
            u = now[letter]
            last = before[letter].to(dtype).view_as(u) if letter in before else 0
            now[letter] = u + mu * (last - u)
    k, a, b = recurrence_inputs_reference(
        *(now["k"], now.get("b", now["k"]), now["a"], weights.k_k, weights.k_a, options.a_max)
    )
    log_w = LOG_DECAY_SCALE * torch.sigmoid(now["w"])
    sequence = (x.unsqueeze(1) for x in (now["r"], log_w, k, now["v"], a, b))
    y, state, _ = wkv7_reference(*sequence, initial_state=state)
    out = state_readout_reference(
        *(y.squeeze(1), now["r"], k, now["v"], weights.norm_weight, weights.norm_bias),
        *(weights.bonus, now.get("gate")),
        norm_eps=options.norm_eps,
    )
    carry = torch.cat(after, dim=1) if after else None
    return HeadOutputs(out.unsqueeze(1).to(result), state, carry)


def state_head_step(
    inputs: HeadInputs,
    weights: HeadWeights,
    options: HeadOptions,
    state: Tensor | None,
    carry: Tensor | None,
    *,
    in_place: bool = False,
    backend: str | None = None,
) -> HeadOutputs:
    """Advance the state heads of one layer by one token; no gradients, whatever is given.

    Args:
        inputs: ``[B, 1, S * N]`` or ``[B, 1, S, N]`` each, raw (``options.raw``); k and v may be
            ``[B, 1, G * N]`` or ``[B, 1, G, N]``, of which the first S heads are read. The kernel
            reads slices of wider rows where they lie.
        weights: ``[S * N]`` or ``[S, N]`` each, of any floating dtype; k_k and k_a are needed.
        options: S, N, a_max, norm_eps and the carry's letters.
        state: ``[B, S, N_value, N_key]`` float32 (float64 with float64 inputs); None is zero.
        carry: ``[B, n * S * N]``: what the letters' projections were at the token before; None is
            zero.
        in_place: overwrite ``state`` and ``carry``, those that are given, and return them, so that
            a captured CUDA graph can replay the step. Otherwise whoever holds them keeps them.
        backend: as :mod:`wuneng.ops.backend` says; C is for whole sequences (``state_head``).

    Returns:
        R ``[B, 1, S, N]`` in v's dtype, the new state and, if there are letters, the new carry in
        its letters' dtype. Arithmetic is in the state's dtype, group norm's statistics included.

    Raises:
        ValueError: an argument's shape or dtype does not fit, or ``in_place`` with a state or a
            carry that is not contiguous; the message names the argument.
    """
    _check(inputs, weights, options, state, carry)
    if in_place:
        for name, x in (("state", state), ("carry", carry)):
            if x is not None and not x.is_contiguous():
                raise ValueError(f"in_place needs a contiguous {name}")
    if has_kernel(inputs, weights, options, carry, backend):
        from wuneng.ops.state_head import triton_step

        return triton_step.state_head_step_triton(
            inputs, weights, options, state, carry, in_place=in_place
        )
    by_hand = "chunked" in candidates("head_step", inputs.v.device, backend)
    compute = _torch_step if by_hand else _reference_step
    arguments = (inputs, weights, options, state, carry)
    device = inputs.v.device.type
    if not torch.is_grad_enabled() and not torch.is_autocast_enabled(device):
        return compute(*arguments, in_place=in_place)
    with torch.no_grad(), torch.autocast(device, enabled=False):
        return compute(*arguments, in_place=in_place)


def has_kernel(
    inputs: HeadInputs,
    weights: HeadWeights,
    options: HeadOptions,
    carry: Tensor | None,
    backend: str | None = None,
) -> bool:
    """Whether :func:`state_head_step` is one kernel for these: CUDA tensors that it takes."""
    allowed = candidates("head_step", inputs.v.device, backend)
    if "triton" not in allowed or not HAS_TRITON or not inputs.v.is_cuda:
        return False
    from wuneng.ops.state_head import triton_step

    return triton_step.takes(inputs, weights, options, carry)


def carry_parts(carry: Tensor | None, options: HeadOptions) -> dict[str, Tensor]:
    """A carry ``[.., n * S * N]`` by its letters, ``[.., S * N]`` each; nothing of None."""
    if carry is None or not options.letters:
        return {}
    parts = carry.split(options.heads * options.size, dim=-1)
    return dict(zip(options.letters, parts, strict=True))


def _check(
    inputs: HeadInputs,
    weights: HeadWeights,
    options: HeadOptions,
    state: Tensor | None,
    carry: Tensor | None,
) -> None:
    """A kernel would read past the end of what is too small."""
    batch, (heads, size) = inputs.v.shape[0], options[:2]
    width = heads * size
    for name, x in zip(HeadInputs._fields, inputs, strict=True):
        if x is None:
            continue
        channels = x.shape[2] if x.dim() == 3 else x.shape[-2] * x.shape[-1]
        fits = channels >= width if name in "kv" else channels == width
        if x.shape[0] != batch or x.shape[1] != 1 or not fits:
            wanted = f"[{batch}, 1, {width}] or [{batch}, 1, {heads}, {size}]"
            raise ValueError(f"{name} must be {wanted}, got shape {list(x.shape)}")
    for name, x in zip(HeadWeights._fields, weights, strict=True):
        if x is None and name in ("k_k", "k_a"):
            raise ValueError(f"{name} is missing")
        if x is not None and x.numel() != width:
            raise ValueError(f"{name} must hold S * N = {width} values, got {list(x.shape)}")
    if (weights.norm_weight is None) != (weights.norm_bias is None):
        missing = "norm_weight" if weights.norm_weight is None else "norm_bias"
        raise ValueError(f"{missing} is missing: give norm_weight and norm_bias together")
    if state is not None:
        _check_shape("state", state, (batch, heads, size, size))
        dtype = compute_dtype(*inputs)
        if state.dtype != dtype:
            raise ValueError(f"state must be {dtype}, got {state.dtype}: it is never rounded")
    if carry is not None:
        _check_shape("carry", carry, (batch, len(options.letters) * width))


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")


def _reference_step(*given: *HeadCall, in_place: bool) -> HeadOutputs:
    (*_, state, carry), out = given, state_head_step_reference(*given)
    if in_place and state is not None:
        out = out._replace(state=state.copy_(out.state))
    if in_place and carry is not None and out.carry is not None:
        out = out._replace(carry=carry.copy_(out.carry))
    return out


def _torch_step(*given: *HeadCall, in_place: bool) -> HeadOutputs:
    """Matrix products see H heads: a column is ``[H, N, 1]``, a row ``[H, 1, N]``."""
    inputs, weights, options, state, carry = given
    batch, result = inputs.v.shape[0], inputs.v.dtype
    heads, size = options.heads, options.size
    dtype = compute_dtype(*inputs)
    per_head, column, row = ((batch * heads, *x) for x in ((size,), (size, 1), (1, size)))
    r, w, k, v, a, source, gate = (_channels(x, heads * size) for x in inputs)
    mu_r, mu_k, mu_v, k_k, k_a, bonus, scale, bias = (_vector(x, dtype) for x in weights)
    shifts = {"r": (r, mu_r), "k": (k, mu_k), "v": (v, mu_v)}
    r, k, v, carry = _shifted(shifts, options, carry, dtype, in_place)

    decay = torch.sigmoid(_cast(w, dtype)).mul_(LOG_DECAY_SCALE).exp_()
    kappa = torch.mul(k if source is None else _cast(source, dtype), k_k).view(per_head)
    length = torch.linalg.vector_norm(kappa, dim=-1, keepdim=True)
    kappa.div_(length.clamp_min_(NORM_EPS))
    rate = torch.sigmoid(_cast(a, dtype))
    key = torch.addcmul(torch.rsub(k_a, 1), rate, k_a).mul_(k)
    r_column, v_column, key_row = r.reshape(column), v.reshape(column), key.view(row)
    if state is None:
        S = torch.bmm(v_column, key_row)
    else:
        old = state.reshape(batch * heads, size, size)
        removed = torch.bmm(old, kappa.view(column))
        S = torch.mul(old, decay.view(row), out=old if in_place else None)
        S.baddbmm_(removed, kappa.mul_(rate.view(per_head)).view(row), alpha=-options.a_max)
        S.baddbmm_(v_column, key_row)
    out = torch.bmm(S, r_column)
    if scale is not None:
        shape, eps = (batch, heads * size, 1), options.norm_eps
        out = torch.native_group_norm(out.view(shape), scale, bias, *shape, heads, eps)[0]
    out = out.view(batch, 1, heads, size)
    if bonus is not None:
        present = torch.bmm(key.mul_(bonus).view(row), r_column)
        out.addcmul_(present.view(batch, 1, heads, 1), v.reshape(out.shape))
    if gate is not None:
        out.mul_(gate.reshape(out.shape))
    if state is None or not in_place:
        state = S.view(batch, heads, size, size)
    return HeadOutputs(_cast(out, result), state, carry)


def _channels(x: Tensor | None, width: int) -> Any:
    """``[B, 1, S * N]`` of one input."""
    if x is None:
        return None
    if x.dim() == 4:
        x = x.flatten(2)
    return x if x.shape[2] == width else x[..., :width]


def _vector(x: Tensor | None, dtype: torch.dtype) -> Any:
    """A weight as ``[S * N]``."""
    if x is None:
        return None
    return _cast(x if x.dim() == 1 else x.reshape(-1), dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # A cast that does nothing costs as much as one that does.
    return x if x.dtype is dtype else x.to(dtype)


def _shifted(
    shifts: dict[str, tuple[Tensor, Tensor | None]],
    options: HeadOptions,
    carry: Tensor | None,
    dtype: torch.dtype,
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """r, k, v mixed with those of the token before, in ``dtype``, and the new carry."""
    before = carry_parts(None if carry is None else carry.unsqueeze(1), options)
    mixed = []
    for letter, (u, mu) in shifts.items():
        wide = _cast(u, dtype)
        if mu is not None and letter in before:
            wide = torch.lerp(wide, _cast(before[letter], dtype), mu)
        elif mu is not None:
            wide = torch.addcmul(wide, wide, mu, value=-1)
        mixed.append(wide)
    r, k, v = mixed
    if not options.letters:
        return r, k, v, None
    after = torch.cat([shifts[letter][0] for letter in options.letters], dim=2).squeeze(1)
    return r, k, v, carry.copy_(after) if in_place and carry is not None else after
