"""Cases of ``ops``: WKV-7's backends, attention, cross-head fusion and other projects' kernels.

All of a group's cases share shapes: B sequences of T tokens, H heads of size N, in one dtype.
Inputs are drawn as a trained layer's would be: unit removal keys, rates in (0, 1), log decays in
RWKV-7's range. Each case has several sets of inputs, together larger than most caches.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.bench import roofline
from wuneng.bench.draws import generator_on, normal
from wuneng.bench.engine import Case, Missing, Prepared, Skipped
from wuneng.bench.fusion import fusion_cases
from wuneng.bench.gate import attention_gate, judge, relative_error
from wuneng.bench.kda_peer import kda_case
from wuneng.bench.memory import tensor_bytes
from wuneng.bench.operator_peers import fla_step_case, mamba_case, mamba_step_case
from wuneng.bench.peers import fla_operators, flash_attention
from wuneng.bench.record import Row
from wuneng.bench.recurrence_gate import Oracle, loop_tokens, wkv7_oracle
from wuneng.bench.shapes import OperatorShapes, prepared
from wuneng.bench.wind import wind_case
from wuneng.ops import native, wkv7

__all__ = ["OperatorShapes", "operator_groups", "wkv7_inputs"]

#: The token loop is the yardstick of correctness; beyond this many tokens it is not timed.
REFERENCE_TOKENS = 512
OPERATIONS = ("forward", "forward+backward", "step", "fusion")


def wkv7_inputs(shapes: OperatorShapes, seed: int, tokens: int | None = None) -> list[Tensor]:
    """r, w (log decay), k, v, a, b ``[B, T, H, N]``."""
    generator = generator_on(shapes.device, seed)
    shape = (shapes.batch, tokens or shapes.tokens, shapes.heads, shapes.size)
    r, decay, k, v, kappa, rate = (normal(shape, generator) for _ in range(6))
    kappa = F.normalize(kappa, dim=-1)
    w = -0.6065306597 * torch.sigmoid(decay)
    inputs = (r, w, k, v, -kappa, kappa * torch.sigmoid(rate))
    return [x.to(shapes.device, shapes.dtype) for x in inputs]


def operator_groups(
    shapes: OperatorShapes, config: Any, *, peers: Collection[str], compiled: bool
) -> Iterator[tuple[str, list[Case]]]:
    """(operation, cases) for one length and batch.

    Args:
        config: says what is fused.
        peers: any of ``fla``, ``mamba`` and ``wind``.
        compiled: also what torch.compile makes of the fusion.
    """
    operators = dict(_wkv7_operators(shapes, "fla" in peers))
    oracle = wkv7_oracle(partial(wkv7_inputs, shapes, 0))
    for operation in OPERATIONS[:2]:
        backward = operation == "forward+backward"
        cases = [
            _wkv7_case(shapes, operation, arm, operator, oracle, backward=backward)
            for arm, operator in operators.items()
            if not (backward and arm == "fla-recurrent")  # inference only
        ]
        # The other arms are compared with what the loop gave for the first.
        cases[0].checked_tokens = loop_tokens(shapes.tokens, backward=backward)
        cases += [
            _attention_case(shapes, operation, arm, peer.load, backward=backward)
            for arm, peer in ATTENTION_PEERS.items()
            if shapes.device.type in peer.devices
        ]
        if "fla" in peers:
            cases.append(kda_case(shapes, operation, backward=backward))
        if "mamba" in peers:
            cases.append(mamba_case(shapes, operation, backward=backward))
        if "wind" in peers:
            cases.append(wind_case(shapes, operation, wkv7_inputs, backward=backward))
        yield operation, cases
    steps = [*_step_cases(shapes), _attention_step_case(shapes)]
    if "fla" in peers:
        steps.append(fla_step_case(shapes, partial(wkv7_inputs, shapes, tokens=1)))
    if "mamba" in peers:
        steps.append(mamba_step_case(shapes))
    yield "step", steps
    if config.num_state_heads and config.num_attention_heads:
        yield "fusion", fusion_cases(shapes, config, compiled)


def _wkv7_operators(shapes: OperatorShapes, with_fla: bool) -> Iterator[tuple[str, Any]]:
    for backend in _backends(shapes.device, shapes.size):
        yield backend, partial(wkv7, backend=backend)
    if not with_fla:
        return
    try:
        yield from fla_operators(shapes.device).items()
    except Missing as missing:
        yield from {"fla-chunk": missing, "fla-recurrent": missing}.items()


def _backends(device: torch.device, size: int) -> list[str]:
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        return ["triton", "chunked", "reference"]
    in_c = device.type == "cpu" and native.library(size) is not None
    return [*(["native"] if in_c else []), "chunked", "reference"]


def _flex_attention() -> Callable[..., Tensor]:
    """FlexAttention, compiled, with the causal block mask made at the first call."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention)
    masks: dict[int, Any] = {}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        if length not in masks:
            masks[length] = create_block_mask(
                lambda b, h, i, j: i >= j, None, None, length, length, device=q.device
            )
        out: Tensor = compiled(q, k, v, block_mask=masks[length])
        return out

    return attend


class AttentionPeer(NamedTuple):
    """An implementation of causal attention that is timed beside the recurrence.

    Attributes:
        load: imports it; a function of q, k, v ``[B, H, T, N]``. Raises Missing or Unsupported.
        devices: types of devices that it is for.
    """

    load: Callable[[], Callable[..., Tensor]]
    devices: tuple[str, ...] = ("cpu", "cuda")


#: By the name of its row. Each is compared with the same attention in float64 before it is timed.
ATTENTION_PEERS: dict[str, AttentionPeer] = {
    "sdpa": AttentionPeer(lambda: partial(F.scaled_dot_product_attention, is_causal=True)),
    "flash-attn": AttentionPeer(flash_attention, ("cuda",)),
    "flex": AttentionPeer(_flex_attention, ("cuda",)),
}


def _wkv7_case(
    shapes: OperatorShapes,
    operation: str,
    arm: str,
    operator: Any,
    oracle: Oracle,
    *,
    backward: bool,
) -> Case:
    row = shapes.row(operation, arm)

    def prepare() -> Prepared:
        sets = [wkv7_inputs(shapes, seed) for seed in range(shapes.sets(6))]
        return prepared(operator, sets, backward)

    def check() -> None:
        if isinstance(operator, Missing):
            raise operator
        if arm == "reference" and shapes.tokens > REFERENCE_TOKENS:
            raise Skipped(f"the token loop is timed up to {REFERENCE_TOKENS} tokens")

    def gate() -> Any:
        check()
        return oracle.judge(row, operator, backward=backward)

    work = roofline.wkv7(
        shapes.batch, shapes.tokens, shapes.heads, shapes.size, shapes.element, backward=backward
    )
    case = Case(row, shapes.batch * shapes.tokens, work, prepare, gate, int(work.bytes))
    if arm == "reference" and shapes.tokens <= REFERENCE_TOKENS:
        case.looped_tokens = shapes.tokens * (5 if backward else 1)
    return case


def _attention_case(
    shapes: OperatorShapes,
    operation: str,
    arm: str,
    get: Callable[[], Callable[..., Tensor]],
    *,
    backward: bool,
) -> Case:
    row = shapes.row(operation, arm)

    def prepare() -> Prepared:
        sets = [_query_key_value(shapes, seed) for seed in range(shapes.sets(3))]
        attend = get()
        return prepared(lambda *x: (attend(*x),), sets, backward)

    work = roofline.attention(
        shapes.batch, shapes.tokens, shapes.heads, shapes.size, shapes.element, backward=backward
    )
    return Case(
        row,
        shapes.batch * shapes.tokens,
        work,
        prepare,
        lambda: attention_gate(row, get(), *_query_key_value(shapes, 0), backward=backward),
        int(work.bytes),
    )


def _query_key_value(shapes: OperatorShapes, seed: int) -> list[Tensor]:
    generator = generator_on(shapes.device, seed)
    shape = (shapes.batch, shapes.heads, shapes.tokens, shapes.size)
    drawn = (normal(shape, generator) for _ in range(3))
    return [x.to(shapes.device, shapes.dtype) for x in drawn]


def _step_cases(shapes: OperatorShapes) -> list[Case]:
    """One token of decoding; the state is the caller's and is kept."""
    cases = []
    for backend in _backends(shapes.device, shapes.size):
        row = shapes.row("step", backend)
        shape = (shapes.batch, shapes.heads, shapes.size, shapes.size)

        def state(seed: int, shape: Any = shape) -> Tensor:
            return normal(shape, generator_on(shapes.device, seed)).to(shapes.device)

        def prepare(backend: str = backend, state: Any = state) -> Prepared:
            count = shapes.sets(shapes.size + 6, tokens=1)
            sets = [(wkv7_inputs(shapes, s, tokens=1), state(s)) for s in range(count)]

            def step(index: int) -> Any:
                inputs, before = sets[index % count]
                with torch.no_grad():
                    return wkv7(*inputs, initial_state=before, backend=backend)

            return Prepared(step, tensor_bytes(*sets[0][0], sets[0][1]))

        def gate(backend: str = backend, row: Row = row, state: Any = state) -> Any:
            inputs, before = wkv7_inputs(shapes, 0, tokens=1), state(0)
            with torch.no_grad():
                y, after = wkv7(*inputs, initial_state=before, backend=backend)
                exact = [x.double() for x in inputs]
                y_, after_ = wkv7(*exact, initial_state=before.double(), backend="reference")
            errors = {"y": relative_error(y, y_), "state": relative_error(after, after_)}
            return judge(row, errors, shapes.dtype)

        work = roofline.wkv7_step(shapes.batch, shapes.heads, shapes.size, shapes.element)
        cases.append(Case(row, shapes.batch, work, prepare, gate))
    return cases


def _attention_step_case(shapes: OperatorShapes) -> Case:
    row = shapes.row("step", "sdpa")

    def inputs(seed: int) -> list[Tensor]:
        q, k, v = _query_key_value(shapes, seed)
        return [q[:, :, -1:].contiguous(), k, v]

    def prepare() -> Prepared:
        sets = [inputs(seed) for seed in range(shapes.sets(2))]
        return prepared(lambda *x: (F.scaled_dot_product_attention(*x),), sets, False)

    work = roofline.attention_step(
        shapes.batch, shapes.tokens, shapes.heads, shapes.size, shapes.element
    )
    attend = F.scaled_dot_product_attention
    gate = partial(_gate_of_inputs, row, attend, inputs)
    return Case(row, shapes.batch, work, prepare, gate, int(work.bytes))


def _gate_of_inputs(row: Row, attend: Any, inputs: Callable[[int], list[Tensor]]) -> Any:
    return attention_gate(row, attend, *inputs(0))
