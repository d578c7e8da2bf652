"""State heads from projections to readout: the C kernels and the composition against float64."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.precision import CHUNKED_FLOOR, FLOOR, assert_as_exact
from wuneng.ops import HeadInputs, HeadOptions, HeadWeights, native, state_head, wkv7
from wuneng.ops.wkv7.reference import wkv7_reference

needs_compiler = pytest.mark.skipif(
    native.library(64) is None, reason="no C compiler on this machine"
)
BACKENDS = [pytest.param("native", marks=needs_compiler), "chunked"]


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


CASES = {
    "whole": Case(),
    "bare": Case(letters="", gate=False, bonus=False, norm=False, state=False),
    "one token": Case(tokens=1),
    "chunk and a tail of one": Case(tokens=17, batch=1),
    "two chunks": Case(tokens=32, carry=False),
    "a_max 2": Case(a_max=2.0, tokens=50),
    "own removal key": Case(own_source=True, letters="kr"),
    "only v shifts": Case(letters="v", gate=False),
    "no state": Case(state=False, carry=False, tokens=5),
    "small heads": Case(size=16, heads=5),
    "heads of 32": Case(size=32, heads=3, tokens=40),
    "heads of 128": Case(size=128, heads=1, tokens=21),
    "more key heads": Case(extra_heads=2),
    "packed": Case(lengths=(1, 0, 16, 23, 5)),
    "packed, from nothing": Case(lengths=(7, 33), state=False, carry=False),
    "runs of one token": Case(tokens=150, batch=1, repeats=40, carry=False),
    "slow decay": Case(decay=-12.0, tokens=100, batch=1),
    "fast decay": Case(decay=5.0, tokens=60),
    "large": Case(scale=30.0, tokens=20),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_every_gradient(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WUNENG_BACKEND", backend)
    case = CASES[name]
    exact = make(case)
    rough = {n: x.float() for n, x in exact.items()}
    shapes = [x.shape for x in oracle(case, rough)[:2]]
    seeds = (torch.randn(shapes[0]), torch.randn(shapes[1]))
    found = results(case, rough, operator, seeds)
    if "carry" in found:
        exact_carry = oracle(case, rough)[2]
        assert exact_carry is not None
        assert torch.equal(found["carry"], exact_carry)
    sides = (found, results(case, rough, oracle, seeds), results(case, exact, oracle, seeds))
    assert_as_exact(*sides, what=case, floor=FLOOR if backend == "native" else CHUNKED_FLOOR)


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3])
def test_the_same_bits_whatever_the_threads(threads: int) -> None:
    case = Case(heads=3, tokens=40)
    tensors = {n: x.float().requires_grad_(n != "carry") for n, x in make(case).items()}

    def results() -> list[Tensor]:
        out = state_head(**arguments(case, tensors))
        leaves = [x for n, x in tensors.items() if n != "carry"]
        return [out.readout, out.state, *torch.autograd.grad(out.readout.square().sum(), leaves)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results()
        torch.set_num_threads(threads)
        assert all(torch.equal(x, y) for x, y in zip(expected, results(), strict=True))
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_token_by_token_gives_the_bits_of_one_call() -> None:
    case = Case(tokens=20, state=False, carry=False)
    tensors = {n: x.float() for n, x in make(case).items()}
    whole = state_head(**arguments(case, tensors))
    steps, state, carry = [], None, None
    for t in range(case.tokens):
        now = {n: x[:, t : t + 1] if x.dim() == 3 else x for n, x in tensors.items()}
        given = arguments(case, now) | {"state": state, "carry": carry}
        out = state_head(**given)
        steps.append(out.readout)
        state, carry = out.state, out.carry
    assert torch.equal(torch.cat(steps, dim=1), whole.readout)
    assert torch.equal(state, whole.state)
    assert torch.equal(carry, whole.carry)


@needs_compiler
def test_the_given_state_is_not_overwritten() -> None:
    case = Case(tokens=3)
    tensors = {n: x.float() for n, x in make(case).items()}
    kept = {n: tensors[n].clone() for n in ("state", "carry")}
    state_head(**arguments(case, tensors))
    assert all(torch.equal(tensors[n], x) for n, x in kept.items())


@needs_compiler
def test_views_are_read_where_they_lie() -> None:
    """Slices of one wide projection, and a transposed batch, give what their copies give."""
    case = Case(heads=2, gate=False, carry=False)
    tensors = {n: x.float() for n, x in make(case).items()}
    expected = state_head(**arguments(case, tensors)).readout
    names = ["r", "w", "k", "v", "a"]
    wide = torch.cat([tensors[n] for n in names], dim=-1)
    sliced = dict(zip(names, wide.split(128, dim=-1), strict=True))
    assert torch.equal(state_head(**arguments(case, tensors | sliced)).readout, expected)
    turned = {n: tensors[n].transpose(0, 1).contiguous().transpose(0, 1) for n in names}
    assert torch.equal(state_head(**arguments(case, tensors | turned)).readout, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    case = Case(tokens=30)
    tensors = {n: x.to(dtype) if n != "state" else x.float() for n, x in make(case).items()}
    out = state_head(**arguments(case, tensors))
    wide = state_head(**arguments(case, {n: x.float() for n, x in tensors.items()}))
    assert out.readout.dtype == dtype
    assert out.carry is not None
    assert out.carry.dtype == dtype
    assert out.state.dtype == torch.float32
    assert torch.equal(out.readout, wide.readout.to(dtype))
    leaf = tensors["k"].clone().requires_grad_()
    state_head(**arguments(case, tensors | {"k": leaf})).readout.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert leaf.grad.isfinite().all()


@needs_compiler
def test_nan_stays_in_its_own_sequence_and_head_and_is_not_hidden() -> None:
    case = Case(tokens=20, carry=False)
    tensors = {n: x.float() for n, x in make(case).items()}
    clean = state_head(**arguments(case, tensors)).readout
    for name in ("r", "w", "k", "v", "a"):
        poisoned = tensors[name].clone()
        poisoned[1, 7, 70] = float("nan")  # sequence 1, head 1
        out = state_head(**arguments(case, tensors | {name: poisoned})).readout
        assert out[1, 7, 1].isnan().any(), name
        assert torch.equal(out[0], clean[0])
        assert torch.equal(out[1, :, 0], clean[1, :, 0])
        assert torch.equal(out[1, :7, 1], clean[1, :7, 1])


@needs_compiler
def test_zero_and_huge_inputs_stay_finite() -> None:
    case = Case(tokens=9, carry=False)
    tensors = {n: x.float() for n, x in make(case).items()}
    for factor in (0.0, 1e8):
        now = {n: x * factor if x.dim() == 3 else x for n, x in tensors.items()}
        leaves = {n: x.clone().requires_grad_() for n, x in now.items()}
        out = state_head(**arguments(case, leaves)).readout
        out.sum().backward()
        assert out.isfinite().all()
        assert all(x.grad.isfinite().all() for x in leaves.values())


@pytest.mark.parametrize("bounds", [[0, 5, 9], [0, 8, 6, 10], [1, 10]])
@needs_compiler
def test_bad_boundaries_are_refused(bounds: list[int]) -> None:
    x = torch.randn(1, 10, 2, 64)
    with pytest.raises(ValueError, match="cu_seqlens must be non-decreasing from 0 to T = 10"):
        wkv7(x, -x.abs(), x, x, x, x, cu_seqlens=torch.tensor(bounds), backend="native")


@needs_compiler
def test_no_tokens_and_no_sequences() -> None:
    x = torch.randn(2, 0, 3, 64)
    state = torch.randn(2, 3, 64, 64)
    y, after = wkv7(x, x, x, x, x, x, initial_state=state, backend="native")
    assert y.shape == x.shape
    assert torch.equal(after, state)
    x = torch.randn(0, 4, 3, 64, requires_grad=True)
    y, after = wkv7(x, x, x, x, x, x, backend="native")
    y.sum().backward()
    assert after.shape == (0, 3, 64, 64)
