"""The C kernels as one differentiable torch operator over whole state heads.

Legend: B batch, T tokens, S state heads, N head size. ``state_head.c`` says what is computed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from wuneng.ops.backend import MissingCompilerError
from wuneng.ops.head_arguments import HeadCall, HeadInputs, HeadOptions, HeadOutputs, HeadWeights
from wuneng.ops.native.compiler import HEAD_SIZES, library
from wuneng.ops.native.memory import room
from wuneng.ops.plain import are_plain
from wuneng.ops.state_head.native_arguments import (
    ABSENT,
    Rows,
    address,
    backward_block,
    forward_block,
    rows_of,
)

#: State elements times tokens from which a second thread is woken: some 50 microseconds' work.
LEAST_WORK = 64 * 64 * 64


def chunk_length(size: int) -> int:
    """Tokens between two kept states. 8 to 64 take the same time; more keeps less memory (32 at
    N = 64: 512 bytes a token and head), until a chunk's states outgrow the second-level cache."""
    return 32 if size <= 64 else 16


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_available(size: int, *tensors: Tensor | None) -> bool:
    """Whether the C kernels exist on this machine and take these tensors."""
    if size not in HEAD_SIZES or torch.compiler.is_compiling():
        return False
    for x in tensors:
        if x is not None and not (x.is_cpu and x.dtype in _DTYPES and are_plain(x)):
            return False
    return library(size) is not None


def run(
    *given: *HeadCall, cu_seqlens: Tensor | None = None, keeps_carry: bool = False
) -> HeadOutputs:
    """The state heads in C; see :func:`wuneng.ops.state_head`. ``carry`` gets no gradient."""
    inputs, weights, options, state, carry = given
    if torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (*inputs, *weights, state)
    ):
        readout, final, last = _StateHead.apply(
            options, carry, cu_seqlens, keeps_carry, state, *inputs, *weights
        )
        return HeadOutputs(readout, final, last)
    return _Call(inputs, weights, options, carry, cu_seqlens).forward(state, keeps_carry)


def _check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """The kernel would read past the end of what is too small."""
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(x.shape)}")


class _Call:
    """One call's argument block; holds the tensors whose addresses are in it."""

    def __init__(
        self,
        inputs: HeadInputs,
        weights: HeadWeights,
        options: HeadOptions,
        carry: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> None:
        self.options, self.chunk = options, chunk_length(options.size)
        self.dtype, (self.batch, self.tokens) = inputs.v.dtype, inputs.v.shape[:2]
        self.width = options.heads * options.size
        self.bounds, self.first_rows, self.rows = _extents(
            self.batch, self.tokens, cu_seqlens, self.chunk
        )
        self.sequences = self.bounds.numel() - 1
        self.held: list[Tensor] = []
        self.inputs = tuple(ABSENT if x is None else self.hold_rows(x) for x in inputs)
        self.weights = tuple(0 if x is None else self.hold(x) for x in weights)
        self.carry = self._places(carry)

    def hold(self, x: Tensor) -> int:
        if not x.is_cpu:
            raise ValueError(f"state heads on the CPU were given a tensor on {x.device}")
        if x.dtype != torch.float32 or not x.is_contiguous():
            x = x.float().contiguous()
        self.held.append(x)
        return x.data_ptr()

    def hold_rows(self, x: Tensor) -> Rows:
        x, place = rows_of(x)
        self.held.append(x)
        return place

    def _threads(self) -> int:
        """Torch's, but one for so little work that waking a second takes longer."""
        work = self.batch * self.tokens * self.width * self.options.size
        return 1 if work < LEAST_WORK else torch.get_num_threads()

    def _places(self, carry: Tensor | None) -> tuple[int, int, int]:
        """Where r, k and v lie in a carry ``[sequences, letters * S * N]``."""
        if carry is None:
            return 0, 0, 0
        letters = self.options.letters
        _check_shape("carry", carry, (self.sequences, len(letters) * self.width))
        start = self.hold(carry)
        r, k, v = (
            start + 4 * self.width * letters.index(letter) if letter in letters else 0
            for letter in "rkv"
        )
        return r, k, v

    def block(
        self, state: int, final: Tensor, out: Tensor, boundaries: Tensor | None, last: Tensor | None
    ) -> bytes:
        """The forward kernel's arguments."""
        options = self.options
        return forward_block(
            (self.sequences, options.heads, self._threads(), self.chunk),
            self.bounds.data_ptr(),
            (options.raw, options.a_max, options.norm_eps),
            self.inputs,
            self.weights,
            (*self.carry, *self._places(last), len(options.letters) * self.width),
            (state, final.data_ptr()),
            (out.data_ptr(), self.width),
            (address(boundaries), self.first_rows.data_ptr()),
        )

    def forward(
        self, state: Tensor | None, keeps_carry: bool, boundaries: Tensor | None = None
    ) -> HeadOutputs:
        heads, size = self.options.heads, self.options.size
        if state is not None:
            _check_shape("state", state, (self.sequences, heads, size, size))
        out = room(self.batch, self.tokens, heads, size)
        final = room(self.sequences, heads, size, size)
        last = None
        if keeps_carry:
            last = room(self.sequences, len(self.options.letters) * self.width)
        block = self.block(0 if state is None else self.hold(state), final, out, boundaries, last)
        _kernels(size).state_head_forward(block)
        if self.dtype != torch.float32:
            out = out.to(self.dtype)
            last = None if last is None else last.to(self.dtype)
        return HeadOutputs(out, final, last)


def _extents(
    batch: int, tokens: int, cu_seqlens: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor, int]:
    """Token bounds of the sequences, each one's first row of kept states, and rows in all."""
    if cu_seqlens is None:
        return _dense_extents(batch, tokens, chunk)
    bounds = cu_seqlens.to(torch.int64).contiguous()
    lengths = bounds.diff()
    if int(bounds[0]) != 0 or int(bounds[-1]) != tokens or bool((lengths < 0).any()):
        raise ValueError(f"cu_seqlens must be non-decreasing from 0 to T = {tokens}")
    rows = (lengths + chunk - 1).div(chunk, rounding_mode="floor")
    return bounds, rows.cumsum(0) - rows, int(rows.sum())


@lru_cache(maxsize=256)
def _dense_extents(batch: int, tokens: int, chunk: int) -> tuple[Tensor, Tensor, int]:
    rows = -(-tokens // chunk)
    with torch.inference_mode(False):
        sequences = torch.arange(batch + 1, device="cpu")
        return sequences * tokens, sequences[:batch] * rows, batch * rows


@lru_cache
def _kernels(size: int) -> Any:
    kernels = library(size)
    if kernels is None:
        raise MissingCompilerError(f"no C kernels for head size {size} on this machine")
    kernels.state_head_forward.restype = None
    return kernels


class _StateHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        options: HeadOptions,
        carry: Tensor | None,
        cu_seqlens: Tensor | None,
        keeps_carry: bool,
        state: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        call = _Call(
            HeadInputs(*tensors[:7]), HeadWeights(*tensors[7:]), options, carry, cu_seqlens
        )
        boundaries = room(call.rows, options.heads, options.size, options.size)
        out = call.forward(state, keeps_carry, boundaries)
        ctx.save_for_backward(boundaries, carry, cu_seqlens, *tensors)
        ctx.options, ctx.has_state = options, state is not None
        ctx.set_materialize_grads(False)
        if out.carry is not None:
            ctx.mark_non_differentiable(out.carry)
        return out.readout, out.state, out.carry

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_final: Tensor | None, _: Any) -> tuple[Any, ...]:
        boundaries, carry, cu_seqlens, *tensors = ctx.saved_tensors
        inputs, weights = HeadInputs(*tensors[:7]), HeadWeights(*tensors[7:])
        call = _Call(inputs, weights, ctx.options, carry, cu_seqlens)
        d_state, d_inputs, parts = _backward(call, inputs, boundaries, d_out, d_final)
        summed = parts[0] if call.sequences == 1 else parts.sum(0)
        d_weights = [
            None if x is None else summed[i].view(x.shape).to(x.dtype)
            for i, x in enumerate(weights)
        ]
        return (None,) * 4 + (d_state if ctx.has_state else None, *d_inputs, *d_weights)


def _backward(
    call: _Call,
    inputs: HeadInputs,
    boundaries: Tensor,
    d_out: Tensor | None,
    d_final: Tensor | None,
) -> tuple[Tensor, list[Tensor | None], Tensor]:
    """Gradients of initial state and inputs, and the weights' in parts ``[sequences, 8, S, N]``."""
    heads, size = call.options.heads, call.options.size
    d_state = room(call.sequences, heads, size, size)
    parts = room(call.sequences, 8, heads, size)
    if d_out is None:
        d_out = room(call.batch, call.tokens, call.width).zero_()
    rows = [call.hold_rows(d_out)]
    buffers: list[Tensor | None] = []
    for x in inputs:
        gradient = None if x is None else _gradient_like(x, call)
        buffers.append(gradient)
        rows.append(ABSENT if gradient is None else (gradient.data_ptr(), gradient.stride(1)))
    final = 0 if d_final is None else call.hold(d_final)
    block = call.block(0, d_state, d_state, boundaries, None)
    block += backward_block(tuple(rows), (final, d_state.data_ptr()), parts.data_ptr())
    if _kernels(size).state_head_backward(block):
        raise MemoryError("the state heads' backward could not allocate a chunk's states")
    d_inputs = [
        None if x is None or g is None else g.view(x.shape).to(x.dtype)
        for x, g in zip(inputs, buffers, strict=True)
    ]
    return d_state, d_inputs, parts


def _gradient_like(x: Tensor, call: _Call) -> Tensor:
    """float32 ``[B, T, channels of x]``, zero in the channels that the kernel does not write."""
    places = call.batch * call.tokens
    channels = x.numel() // places if places else call.width
    gradient = room(call.batch, call.tokens, channels)
    if channels > call.width:
        gradient[..., call.width :].zero_()
    return gradient
