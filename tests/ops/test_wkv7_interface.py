"""The operator's contract: errors, backends, and how it lives with the rest of torch."""

from __future__ import annotations

import copy
import importlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.ops.wkv7_cases import INPUT_NAMES, Case
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.ops import Snapshots, wkv7, wkv7_step
from wuneng.ops.wkv7.chunked import choose_chunk


def inputs(**changes: Tensor) -> list[Tensor]:
    return [changes.get(name, torch.zeros(1, 20, 2, 8)) for name in INPUT_NAMES]


def snapshots(**changes: Any) -> Snapshots:
    return Snapshots(**({"every": 16, "weights": torch.ones(1, 20, 2, 3)} | changes))


STATE = torch.zeros(1, 2, 8, 8)
RING = torch.zeros(1, 2, 2, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (inputs(v=torch.zeros(20, 2, 8)), {}, r"v must be \[B, T, S, N\], got shape \[20, 2, 8\]"),
        (inputs(k=torch.zeros(1, 19, 2, 8)), {}, r"k must have v's shape \[1, 20, 2, 8\], got"),
        (inputs(w=torch.zeros(1, 20, 2, 8).int()), {}, "w must be floating point, got torch.int32"),
        (inputs(a=torch.zeros(1, 20, 2, 8, device="meta")), {}, "a must be on v's device cpu"),
        (
            inputs(),
            {"initial_state": STATE[:, :1]},
            r"initial_state must have shape \[1, 2, 8, 8\]",
        ),
        (inputs(), {"initial_state": STATE.bfloat16()}, "initial_state must be torch.float32, got"),
        (inputs(), {"initial_state": STATE.double()}, "initial_state must be torch.float32, got"),
        (inputs(), {"cu_seqlens": torch.tensor([0.0, 20.0])}, "cu_seqlens must be int32 or int64"),
        (inputs(), {"cu_seqlens": torch.tensor([[0, 20]])}, r"cu_seqlens must be \[sequences \+ 1"),
        (inputs(), {"cu_seqlens": torch.tensor([0, 19])}, "from 0 to T = 20, got 0 to 19"),
        (inputs(), {"cu_seqlens": torch.tensor([1, 20])}, "from 0 to T = 20, got 1 to 20"),
        (
            inputs(),
            {"cu_seqlens": torch.tensor([0, 9, 5, 20])},
            "not decrease, got 9 then 5 at ind",
        ),
        (inputs(), {"snapshots": snapshots(every=24)}, "snapshots.every must be a multiple of 16"),
        (inputs(), {"snapshots": snapshots(every=0)}, "snapshots.every must be a multiple of 16"),
        (
            inputs(),
            {"snapshots": snapshots(weights=torch.ones(1, 20, 2))},
            "snapshots.weights must",
        ),
        (
            inputs(),
            {"snapshots": snapshots(weights=torch.ones(1, 9, 2, 3))},
            "snapshots.weights mu",
        ),
        (inputs(), {"snapshots": snapshots(ring=RING)}, "snapshots.position is missing: give ring"),
        (
            inputs(),
            {"snapshots": snapshots(position=torch.zeros(1, dtype=torch.long))},
            "snapshots.ring is missing",
        ),
        (
            inputs(),
            {"snapshots": snapshots(ring=RING[:, :1], position=torch.zeros(1, dtype=torch.long))},
            r"snapshots.ring must have shape \[1, 2, 2, 8, 8\]",
        ),
        (
            inputs(),
            {"snapshots": snapshots(ring=RING, position=torch.zeros(2, dtype=torch.long))},
            r"snapshots.position must be int64 \[1\]",
        ),
        (
            inputs(),
            {"snapshots": snapshots(ring=RING, position=torch.tensor([-3]))},
            "snapshots.position must not be negative, got -3",
        ),
        (
            inputs(),
            {"backend": "chunk"},
            "backend must be one of .*, got 'chunk'. Did you mean 'chu",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_errors_name_the_argument(
    arguments: list[Tensor], options: dict[str, Any], message: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=message):
        wkv7(*arguments, **({"backend": backend} | options))


def test_documents_need_one_row() -> None:
    two = [torch.zeros(2, 20, 2, 8) for _ in INPUT_NAMES]
    with pytest.raises(ValueError, match="cu_seqlens needs B = 1"):
        wkv7(*two, cu_seqlens=torch.tensor([0, 20]))


def test_step_errors() -> None:
    token = [torch.zeros(1, 2, 8) for _ in INPUT_NAMES]
    with pytest.raises(ValueError, match=r"v must be \[B, S, N\]"):
        wkv7_step(*inputs(), STATE)
    with pytest.raises(ValueError, match=r"state must have shape \[1, 2, 8, 8\]"):
        wkv7_step(*token, STATE[..., :4])


def test_environment_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def spy(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, None]:
        ran.append("reference")
        return args[3], STATE, None

    interface = importlib.import_module("wuneng.ops.wkv7.interface")
    monkeypatch.setattr(interface, "wkv7_reference", spy)
    monkeypatch.setenv("WUNENG_BACKEND", "reference")
    wkv7(*inputs())
    assert ran == ["reference"]
    wkv7(*inputs(), backend="chunked")
    assert ran == ["reference"]
    monkeypatch.setenv("WUNENG_BACKEND", "tritn")
    with pytest.raises(ValueError, match=r"WUNENG_BACKEND must be one of .* Did you mean 'triton'"):
        wkv7(*inputs())


def test_missing_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("wuneng.ops.wkv7.triton_")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="backend 'triton' needs the package triton"):
        wkv7(*inputs(), backend="triton")


@pytest.mark.parametrize(
    ("tokens", "sequences", "every", "chunk"),
    [(1024, 1, 0, 32), (1024, 1, 48, 16), (1024, 1, 64, 32), (20, 2, 0, 16), (3, 3, 0, 8)],
)
def test_chunk_divides_the_snapshot_interval(
    tokens: int, sequences: int, every: int, chunk: int
) -> None:
    assert choose_chunk(tokens, sequences, every) == chunk


class Mixer(nn.Module):
    """The least module that calls the operator with everything it offers."""

    def __init__(self, heads: int = 2, size: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.project = nn.Linear(8, 6 * heads * size)
        self.gamma = nn.Linear(8, heads * 3)

    def forward(self, x: Tensor, state: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, ...]:
        projected = self.project(x).unflatten(-1, (6, self.heads, self.size))
        r, w, k, v, a, b = projected.unbind(-3)
        gamma = self.gamma(x).unflatten(-1, (self.heads, 3)).softmax(-1)
        return wkv7(
            *(r, -0.6 * torch.sigmoid(w), k, v, -torch.tanh(a) / 4, torch.tanh(b) / 4),
            initial_state=state,
            cu_seqlens=cu_seqlens,
            snapshots=Snapshots(16, gamma),
        )


@pytest.mark.parametrize("documents", [None, [0, 5, 5, 41]])
def test_compiles_as_one_graph(documents: list[int] | None) -> None:
    torch.manual_seed(0)
    mixer = Mixer()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    cu_seqlens = None if documents is None else torch.tensor(documents)
    x = torch.randn(1, 41, 8)
    state = torch.randn(1 if documents is None else 3, 2, 4, 4, generator=torch.manual_seed(1))

    def run(module: Any, owner: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        owner.zero_grad()
        leaf = state.to(dtype, copy=True).requires_grad_()
        outputs = module(x.to(dtype), leaf, cu_seqlens)
        sum(output.square().sum() for output in outputs).backward()
        return [*outputs, leaf.grad, *[p.grad.clone() for p in owner.parameters()]]

    wide = copy.deepcopy(mixer).double()
    found = run(compiled, mixer, torch.float32)
    assert_as_exact(
        found,
        run(mixer, mixer, torch.float32),
        run(wide, wide, torch.float64),
        floor=CHUNKED_FLOOR,
    )


def test_compiles_without_gradients() -> None:
    mixer = Mixer()
    wide = copy.deepcopy(mixer).double()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    state = torch.zeros(2, 2, 4, 4)
    with torch.no_grad():
        for tokens in (17, 1):
            x = torch.randn(2, tokens, 8)
            exact = wide(x.double(), state.double(), None)
            found = compiled(x, state, None)
            assert_as_exact(found, mixer(x, state, None), exact, floor=CHUNKED_FLOOR)


@pytest.mark.parametrize("ragged", [False, True])
def test_operators_are_registered_properly(ragged: bool) -> None:
    """Schema, shape rules and gradient registration, by torch's own checker.

    Ragged calls leave slots of the kept states empty, so their outputs are not compared bit by bit.
    """
    case = Case(tokens=32)
    if ragged:
        case = Case(lengths=(7, 13), initial_state=True, every=16, count=1, position=(3, 40))
    leaves = {name: x.float().requires_grad_() for name, x in case.leaves.items()}
    others = ("initial_state", "cu_seqlens", "weights", "ring", "position")
    extra = {"cu_seqlens": torch.tensor([0, 7, 20]), "position": torch.tensor([3, 40])}
    given = leaves | (extra if ragged else {})
    arguments = [given.get(name) for name in (*INPUT_NAMES, *others)]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks += [] if ragged else ["test_aot_dispatch_dynamic"]
    every = 16 if ragged else 0
    operator = torch.ops.wuneng.wkv7_chunked.default
    torch.library.opcheck(operator, (*arguments, every, 16, True), test_utils=checks)


def test_autocast_computes_in_float32() -> None:
    case = Case(tokens=50, size=16, initial_state=True)
    leaves = {name: x.float().requires_grad_() for name, x in case.leaves.items()}
    grads = []
    outputs = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y, state = case.run(leaves, "chunked")
            step_y, _ = wkv7_step(*[leaves[name][:, 0] for name in INPUT_NAMES], state)
        loss = y.sum() + state.sum() + step_y.sum()
        grads.append(torch.autograd.grad(loss, list(leaves.values())))
        outputs.append((y, state, step_y))
    for plain, autocast in zip(outputs[0] + grads[0], outputs[1] + grads[1], strict=True):
        assert torch.equal(plain, autocast)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant: bool) -> None:
    torch.manual_seed(0)
    mixer, x = Mixer(), torch.randn(1, 41, 8, requires_grad=True)
    state = torch.zeros(1, 2, 4, 4)
    grads = []
    for run in (
        lambda: mixer(x, state, None),
        lambda: checkpoint(mixer, x, state, None, use_reentrant=use_reentrant),
    ):
        sum(output.square().sum() for output in run()).backward()
        grads.append([x.grad.clone(), *[p.grad.clone() for p in mixer.parameters()]])
        mixer.zero_grad()
        x.grad = None
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_second_derivative_raises() -> None:
    leaves = [torch.randn(1, 5, 2, 4, requires_grad=True) for _ in INPUT_NAMES]
    y, _ = wkv7(*leaves, backend="chunked")
    (first,) = torch.autograd.grad(y.sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="wkv7 can be differentiated once"):
        first.sum().backward()


def test_only_the_final_state_may_be_used() -> None:
    case = Case(tokens=20, initial_state=True)
    grads = []
    for backend in ("reference", "chunked"):
        leaves = {name: x.clone().requires_grad_() for name, x in case.leaves.items()}
        case.run(leaves, backend)[1].sum().backward()
        grads.append([x.grad for name, x in leaves.items() if name != "r"])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
