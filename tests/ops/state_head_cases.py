"""Problems for the state heads of a CPU, and their outputs from the formula in float64."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.ops import HeadInputs, HeadOptions, HeadWeights, native, state_head
from wuneng.ops.wkv7.reference import wkv7_reference

needs_compiler = pytest.mark.skipif(
    native.library(64) is None, reason="no C compiler on this machine"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What a problem has; everything off is RWKV-7's bare recurrence."""

    batch: int = 2
    tokens: int = 37
    heads: int = 2
    size: int = 64
    a_max: float = 1.0
    letters: str = "rkv"
    own_source: bool = False
    gate: bool = True
    bonus: bool = True
    norm: bool = True
    state: bool = True
    carry: bool = True
    lengths: tuple[int, ...] | None = None
    repeats: int = 1
    decay: float = 1.0
    scale: float = 1.0
    extra_heads: int = 0

    @property
    def sequences(self) -> int:
        return self.batch if self.lengths is None else len(self.lengths)

    def bounds(self) -> Tensor | None:
        if self.lengths is None:
            return None
        return F.pad(torch.tensor(self.lengths).cumsum(0), (1, 0))


def make(case: Case, seed: int = 0) -> dict[str, Tensor]:
    """float64 tensors of a problem, by name."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    batch = 1 if case.lengths else case.batch
    tokens = sum(case.lengths) if case.lengths else case.tokens
    width = case.heads * case.size
    wide = width + case.extra_heads * case.size
    names = {"r": width, "w": width, "k": wide, "v": wide, "a": width}
    names |= {"b": width} if case.own_source else {}
    names |= {"gate": width} if case.gate else {}
    tensors = {name: case.scale * draw(batch, tokens, size) for name, size in names.items()}
    if case.repeats > 1:  # runs of one token: what breaks an inverse by powers
        runs = torch.arange(tokens) // case.repeats * case.repeats
        tensors = {name: x[:, runs] for name, x in tensors.items()}
    tensors["w"] = tensors["w"] * 2 + case.decay
    tensors |= {f"mu_{letter}": draw(width).sigmoid() for letter in case.letters}
    tensors |= {"k_k": 1 + 0.2 * draw(width), "k_a": 1 + 0.2 * draw(width)}
    if case.bonus:
        tensors["bonus"] = draw(width)
    if case.norm:
        tensors |= {"norm_weight": 1 + 0.3 * draw(width), "norm_bias": 0.3 * draw(width)}
    if case.state:
        tensors["state"] = draw(case.sequences, case.heads, case.size, case.size)
    if case.carry and case.letters:
        tensors["carry"] = draw(case.sequences, len(case.letters) * width)
    return tensors


def arguments(case: Case, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """As :func:`state_head` takes them."""

    def pick(kind: Any) -> Any:
        return kind(**{name: tensors[name] for name in kind._fields if name in tensors})

    return {
        "inputs": pick(HeadInputs),
        "weights": pick(HeadWeights),
        "options": HeadOptions(case.heads, case.size, True, case.a_max, 64e-5, case.letters),
        "state": tensors.get("state"),
        "carry": tensors.get("carry"),
        "cu_seqlens": case.bounds(),
        "keeps_carry": bool(case.letters),
    }


def oracle(case: Case, x: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The equations, sequence by sequence, in the tensors' own precision."""
    bounds = case.bounds()
    width = case.heads * case.size
    if bounds is None:
        spans = [(row, 0, case.tokens) for row in range(case.batch)]
    else:
        spans = [(0, int(a), int(b)) for a, b in itertools.pairwise(bounds)]
    outs, states, carries = [], [], []
    for sequence, (row, start, end) in enumerate(spans):
        own = {n: u[row : row + 1, start:end] for n, u in x.items() if u.dim() == 3}
        own |= {name: own[name][..., :width] for name in "kv"}
        ends = []
        for i, letter in enumerate(case.letters):
            before = own["r"].new_zeros(1, 1, width)
            if "carry" in x:
                before = x["carry"][sequence, None, None, i * width : (i + 1) * width]
            previous = torch.cat([before, own[letter]], dim=1)
            ends.append(previous[:, -1])
            own[letter] = own[letter] + x[f"mu_{letter}"] * (previous[:, :-1] - own[letter])
        if ends:
            carries.append(torch.cat(ends, dim=-1))
        out, state = _one(case, x, own, x["state"][sequence, None] if "state" in x else None)
        outs.append(out)
        states.append(state)
    joined = torch.cat(outs, dim=1 if case.lengths else 0)
    return joined, torch.cat(states), torch.cat(carries) if carries else None


def _one(
    case: Case, x: dict[str, Tensor], own: dict[str, Tensor], state: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = (case.heads, case.size)
    u = {name: value.unflatten(-1, shape) for name, value in own.items()}
    rate = u["a"].sigmoid()
    kappa = F.normalize(u.get("b", u["k"]) * x["k_k"].view(shape), dim=-1, eps=1e-12)
    key = u["k"] * (1 + (rate - 1) * x["k_a"].view(shape))
    log_w = -math.exp(-0.5) * u["w"].sigmoid()
    y, final, _ = wkv7_reference(
        *(u["r"], log_w, key, u["v"], -kappa, case.a_max * rate * kappa),
        initial_state=state,
        cu_seqlens=None,
        snapshots=None,
    )
    if case.norm:
        y = F.layer_norm(y, (case.size,), eps=64e-5)
        y = y * x["norm_weight"].view(shape) + x["norm_bias"].view(shape)
    if case.bonus:
        y = y + (u["r"] * key * x["bonus"].view(shape)).sum(-1, keepdim=True) * u["v"]
    return (y * u["gate"] if case.gate else y), final


def results(
    case: Case, tensors: dict[str, Tensor], operator: Any, seeds: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """R, final state, carry and the gradient of every tensor but the carry, by name."""
    leaves = {n: x.detach().clone().requires_grad_(n != "carry") for n, x in tensors.items()}
    outputs = dict(zip(("R", "state", "carry"), operator(case, leaves), strict=True))
    wanted = [x for n, x in leaves.items() if n != "carry"]
    out, state = outputs["R"], outputs["state"]
    gradients = torch.autograd.grad([out, state], wanted, [seed.to(out) for seed in seeds])
    names = ["d " + n for n in leaves if n != "carry"]
    named = {n: x for n, x in outputs.items() if x is not None}
    return {n: x.detach() for n, x in (named | dict(zip(names, gradients, strict=True))).items()}


def operator(case: Case, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    out = state_head(**arguments(case, tensors))
    return out.readout, out.state, out.carry
