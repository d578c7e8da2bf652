"""Cases of ``ops`` for other projects' recurrences: fla's decoding step, Mamba-2's scan and step.

Mamba-2 stands beside WKV-7 with as many heads of the same size and a state of as many numbers:
N x N a head. As in its own layer, B and C (its keys and queries) are shared by all heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.bench import roofline
from wuneng.bench.draws import generator_on, normal, uniform
from wuneng.bench.engine import Case, Prepared
from wuneng.bench.gate import GateResult, judge, relative_error
from wuneng.bench.memory import tensor_bytes
from wuneng.bench.peers import fla_operators, mamba_scan, mamba_step
from wuneng.bench.recurrence_gate import Oracle
from wuneng.bench.shapes import OperatorShapes, prepared
from wuneng.ops import wkv7

__all__ = ["fla_step_case", "mamba_case", "mamba_inputs", "mamba_step_case", "ssd_reference"]

#: Groups of heads that share B and C, as in Mamba-2's own layer.
GROUPS = 1
_NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")
_SSD = "the state-space recurrence token by token, float64"


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba-2's recurrence (Dao & Gu 2024, "Transformers are SSMs", eq. 1), one token at a time.

    For each head, with step size s_t = softplus(dt_t + dt_bias)::

        h_t = exp(s_t A) h_{t-1} + s_t x_t B_t^T        y_t = h_t C_t + D x_t

    Args:
        x: ``[B, T, H, N]``; dt: ``[B, T, H]``; A, D, dt_bias: ``[H]``; B, C: ``[B, T, G, M]``.
        state: ``[B, H, N, M]``; None: zeros.

    Returns:
        y ``[B, T, H, N]`` and the state after the last token, in the inputs' dtype.
    """
    batch, tokens, heads, size = x.shape
    spread = heads // B.shape[2]
    B, C = (z.repeat_interleave(spread, dim=2) for z in (B, C))
    step = F.softplus(dt + dt_bias)
    h = x.new_zeros(batch, heads, size, B.shape[-1]) if state is None else state
    y = []
    for t in range(tokens):
        decay = torch.exp(step[:, t] * A)[..., None, None]
        h = decay * h + (step[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        y.append((h @ C[:, t, ..., None]).squeeze(-1) + D[:, None] * x[:, t])
    return torch.stack(y, dim=1), h


def mamba_inputs(shapes: OperatorShapes, seed: int, tokens: int | None = None) -> list[Tensor]:
    """x, dt, A, B, C, D, dt_bias, drawn as Mamba-2's layer starts; parameters in float32."""
    generator = generator_on(shapes.device, seed)
    lead = (shapes.batch, tokens or shapes.tokens)

    def of_tokens(*shape: int) -> Tensor:
        return normal((*lead, *shape), generator).to(shapes.device, shapes.dtype)

    def of_heads() -> Tensor:
        return uniform((shapes.heads,), generator)

    x, dt = of_tokens(shapes.heads, shapes.size), of_tokens(shapes.heads)
    B, C = of_tokens(GROUPS, shapes.size), of_tokens(GROUPS, shapes.size)
    step = 10.0 ** (-3 + 2 * of_heads())  # between 0.001 and 0.1
    A, D, dt_bias = -(1 + 15 * of_heads()), 0.5 + of_heads(), step + torch.log(-torch.expm1(-step))
    A, D, dt_bias = (p.to(shapes.device) for p in (A, D, dt_bias))
    return [x, dt, A, B, C, D, dt_bias]


def mamba_case(shapes: OperatorShapes, operation: str, *, backward: bool) -> Case:
    """Mamba-2's chunked scan, with the gradients of all seven inputs if ``backward``."""
    row = shapes.row(operation, "mamba2")

    def named() -> dict[str, Tensor]:
        return dict(zip(_NAMES, mamba_inputs(shapes, 0), strict=True))

    def prepare() -> Prepared:
        scan = mamba_scan(shapes.device)
        sets = [mamba_inputs(shapes, seed) for seed in range(shapes.sets(1))]
        return prepared(scan, sets, backward, output_like=0)

    def gate() -> GateResult:
        scan = mamba_scan(shapes.device)
        return Oracle(ssd_reference, named, _SSD).judge(row, scan, backward=backward)

    sizes = (shapes.batch, shapes.tokens, shapes.heads, shapes.size, GROUPS, shapes.element)
    work = roofline.ssd(*sizes, backward=backward)
    return Case(row, shapes.batch * shapes.tokens, work, prepare, gate, int(work.bytes))


def mamba_step_case(shapes: OperatorShapes) -> Case:
    """One token of decoding with Mamba-2; the float32 state is changed in place, as it is there."""
    row = shapes.row("step", "mamba2")

    def inputs(seed: int) -> tuple[Tensor, list[Tensor]]:
        x, dt, A, B, C, D, dt_bias = mamba_inputs(shapes, seed, tokens=1)
        return _state(shapes, seed), [x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, dt_bias]

    def prepare() -> Prepared:
        step = mamba_step(shapes.device)
        sets = [inputs(seed) for seed in range(shapes.sets(shapes.size, tokens=1))]

        def call(index: int) -> Any:
            state, own = sets[index % len(sets)]
            with torch.no_grad():
                return step(state, *own)

        return Prepared(call, tensor_bytes(sets[0][0], *sets[0][1]))

    def gate() -> GateResult:
        step = mamba_step(shapes.device)
        state, own = inputs(0)
        x, dt, A, B, C, D, dt_bias = (z.double() for z in own)
        sequence = (x[:, None], dt[:, None], A, B[:, None], C[:, None], D, dt_bias)
        with torch.no_grad():
            y_, state_ = ssd_reference(*sequence, state=state.double())
            y = step(state, *own)
        errors = {"y": relative_error(y, y_[:, 0]), "state": relative_error(state, state_)}
        return judge(row, errors, shapes.dtype, reference=_SSD)

    work = roofline.ssd_step(shapes.batch, shapes.heads, shapes.size, GROUPS, shapes.element)
    return Case(row, shapes.batch, work, prepare, gate)


def fla_step_case(shapes: OperatorShapes, inputs: Callable[[int], list[Tensor]]) -> Case:
    """One token of decoding through flash-linear-attention's recurrent kernel.

    Args:
        inputs: r, w, k, v, a, b ``[B, 1, H, N]`` from a seed.
    """
    row = shapes.row("step", "fla-recurrent")

    def prepare() -> Prepared:
        step = fla_operators(shapes.device)["fla-recurrent"]
        count = shapes.sets(shapes.size + 6, tokens=1)
        sets = [(inputs(seed), _state(shapes, seed)) for seed in range(count)]

        def call(index: int) -> Any:
            own, state = sets[index % count]
            with torch.no_grad():
                return step(*own, initial_state=state)

        return Prepared(call, tensor_bytes(*sets[0][0], sets[0][1]))

    def gate() -> GateResult:
        step = fla_operators(shapes.device)["fla-recurrent"]
        own, state = inputs(0), _state(shapes, 0)
        ours = state.double().transpose(-1, -2)  # its states are [key, value], ours [value, key]
        with torch.no_grad():
            y, after = step(*own, initial_state=state)
            exact = [x.double() for x in own]
            y_, after_ = wkv7(*exact, initial_state=ours, backend="reference")
        errors = {"y": relative_error(y, y_)}
        errors["state"] = relative_error(after.transpose(-1, -2), after_)
        return judge(row, errors, shapes.dtype, reference="WKV-7's equations, float64")

    work = roofline.wkv7_step(shapes.batch, shapes.heads, shapes.size, shapes.element)
    return Case(row, shapes.batch, work, prepare, gate)


def _state(shapes: OperatorShapes, seed: int) -> Tensor:
    shape = (shapes.batch, shapes.heads, shapes.size, shapes.size)
    return normal(shape, generator_on(shapes.device, seed)).to(shapes.device)
