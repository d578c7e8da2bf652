"""Which kernel CUDA tensors reach, without a GPU: tensors that have a device but no memory."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.fast_paths import TRITON_PATHS, PoisonedError, poisoned
from wuneng.ops import (
    HeadInputs,
    HeadOptions,
    HeadWeights,
    Snapshots,
    backend,
    cross_head,
    state_head,
    state_mix,
    using,
    wkv7,
)
from wuneng.ops.head_arguments import HeadOutputs
from wuneng.ops.plain import PLAIN_TYPES
from wuneng.ops.readout import state_readout
from wuneng.ops.readout import triton_kernels as readout_kernels
from wuneng.ops.state_head import step as head_step
from wuneng.ops.state_head import triton_step
from wuneng.ops.state_head.step import state_head_step
from wuneng.ops.token_shift import token_shift
from wuneng.ops.token_shift import triton_kernels as shift_kernels
from wuneng.ops.token_shift.by_hand import _TokenShift
from wuneng.ops.wkv7 import triton_autograd, triton_state_mix


class Recording(TorchDispatchMode):
    """The names of the project's own operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "wuneng":
            self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def called_unasked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Operators that are called where nobody asks for a backend."""
    monkeypatch.delenv("WUNENG_BACKEND", raising=False)
    monkeypatch.setattr("wuneng.ops.plain.PLAIN_TYPES", PLAIN_TYPES | {FakeTensor})
    with FakeTensorMode(), Recording() as recording:
        yield recording.names


@pytest.fixture
def called(called_unasked: list[str]) -> Iterator[list[str]]:
    """Operators that are called where the Triton kernels are turned on."""
    with using("triton"):
        yield called_unasked


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, device="cuda", dtype=dtype)


def test_readout(called: list[str]) -> None:
    y, r, key, v, gate = (drawn(2, 9, 3, 64) for _ in range(5))
    weight, bias, bonus = (drawn(3, 64, dtype=torch.float32) for _ in range(3))
    out = state_readout(
        y, r, key, v, norm_weight=weight, norm_bias=bias, norm_eps=1e-5, bonus=bonus, gate=gate
    )
    assert (out.shape, out.dtype) == (v.shape, v.dtype)
    assert called == ["state_readout_triton"]


def test_token_shift(called: list[str]) -> None:
    u, mu = drawn(2, 9, 20), drawn(20)
    assert token_shift(u, mu).shape == u.shape
    assert called == ["token_shift_triton"]


def test_what_the_kernels_do_not_take() -> None:
    x = torch.ones(1, 1, 1, 20)
    for u in (x, x.double()):
        assert not readout_kernels.takes(u, u, u, u, None)
    assert not shift_kernels.takes(x.double(), x)
    fits = torch.ones(1, 1, 1, 64)
    assert readout_kernels.takes(fits, fits, fits, fits, None)
    assert not readout_kernels.takes(fits, fits, fits, fits, fits.double())


def test_what_the_step_does_not_take() -> None:
    x = torch.ones(1, 1, 64)
    inputs, weights, options = HeadInputs(*[x] * 5), HeadWeights(k_k=x, k_a=x), HeadOptions(1, 64)
    takes = triton_step.takes
    assert takes(inputs, weights, options, None)
    assert takes(inputs._replace(r=x.half()), weights._replace(mu_r=x.bfloat16()), options, x)
    assert not takes(inputs, weights, options._replace(heads=2, size=32 + 1), None)
    assert not takes(inputs._replace(gate=x.double()), weights, options, None)
    assert not takes(inputs, weights._replace(bonus=x.double()), options, None)
    assert not takes(inputs, weights, options, x.double())


def head_arguments(size: int, tokens: int = 1) -> tuple[HeadInputs, HeadWeights, HeadOptions]:
    """Two sequences, three heads; r, w and a are slices of one row, v has a head too many."""
    width = 3 * size
    r, w, a = drawn(2, tokens, 3 * width).split(width, dim=-1)
    inputs = HeadInputs(r, w, drawn(2, tokens, width), drawn(2, tokens, 4 * size), a)
    weights = HeadWeights(
        mu_k=drawn(width), k_k=drawn(width), k_a=drawn(width, dtype=torch.float32)
    )
    return inputs, weights, HeadOptions(3, size, letters="k")


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_state_head_step(called: list[str], started: bool, in_place: bool) -> None:
    state = drawn(2, 3, 64, 64, dtype=torch.float32) if started else None
    carry = drawn(2, 3 * 64) if started else None
    out = state_head_step(*head_arguments(64), state, carry, in_place=in_place)
    assert (out.readout.shape, out.readout.dtype) == ((2, 1, 3, 64), torch.bfloat16)
    assert (out.state.shape, out.state.dtype) == ((2, 3, 64, 64), torch.float32)
    assert out.carry is not None
    assert (out.carry.shape, out.carry.dtype) == ((2, 3 * 64), torch.bfloat16)
    same = started and in_place
    assert (out.state is state, out.carry is carry) == (same, same)
    assert called == ["state_head_step_" if same else "state_head_step"]


def run_operator(size: int = 64, tokens: int = 1, **how: Any) -> HeadOutputs:
    state = drawn(2, 3, size, size, dtype=torch.float32)
    how = {"state": state, "carry": drawn(2, 3 * size), "keeps_carry": True} | how
    return state_head(*head_arguments(size, tokens), **how)


@pytest.mark.parametrize("keeps_carry", [True, False])
def test_one_token_of_the_operator(called: list[str], keeps_carry: bool) -> None:
    out = run_operator(keeps_carry=keeps_carry)
    assert called == ["state_head_step"]
    assert (out.carry is not None) == keeps_carry


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs in the kernel's place: fake tensors cannot be indexed in a torch without CUDA."""
    names: list[str] = []

    def torch_step(*_: Any) -> HeadOutputs:
        names.append("torch")
        return HeadOutputs(torch.ones(1), torch.ones(1))

    def composed(*_: Any) -> HeadOutputs:
        names.append("composed")
        return HeadOutputs(torch.ones(1), torch.ones(1))

    monkeypatch.setattr(head_step, "_torch_step", torch_step)
    monkeypatch.setattr(
        importlib.import_module("wuneng.ops.state_head.interface"), "_composed", composed
    )
    return names


@pytest.mark.parametrize("how", [{"size": 20}, {"tokens": 2}, {"read": lambda y: y}])
def test_what_is_no_step_of_the_kernel(
    called: list[str], others: list[str], how: dict[str, Any]
) -> None:
    run_operator(keeps_carry=False, **how)
    assert not called
    assert others == ["composed"]


@pytest.mark.parametrize(
    ("name", "instead"),
    [("", "torch"), ("chunked", "torch"), ("reference", "composed"), ("triton", None)],
)
def test_a_backend_asked_for_by_name(
    called_unasked: list[str],
    others: list[str],
    name: str,
    instead: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WUNENG_BACKEND", name)
    run_operator(keeps_carry=False)
    assert called_unasked == ["state_head_step"] * (instead is None)
    assert others == [instead] * (instead is not None)


def test_gradients_take_the_composition(called: list[str], others: list[str]) -> None:
    assert not run_operator().readout.requires_grad
    state = drawn(2, 3, 64, 64, dtype=torch.float32).requires_grad_()
    run_operator(state=state, keeps_carry=False)
    assert others == ["composed"]
    with torch.no_grad():
        run_operator(state=state)
    assert called == ["state_head_step"] * 2


def test_a_compiler_keeps_the_step(others: list[str]) -> None:
    """Without a graph break, as one operator and nothing else."""
    with FakeTensorMode():
        given = (*head_arguments(64), drawn(2, 3, 64, 64, dtype=torch.float32), drawn(2, 3 * 64))

    def step(*given: Any) -> HeadOutputs:
        inputs, weights, options, state, carry = given
        return state_head(inputs, weights, options, state=state, carry=carry, keeps_carry=True)

    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    with using("triton"):
        out = torch.compile(step, fullgraph=True, backend=keep)(*given)
    assert out.state.shape == given[3].shape
    (graph,) = graphs
    called = [node for node in graph.graph.nodes if node.op == "call_function" and node.users]
    targets = [str(node.target) for node in called]
    steps = [target for target in targets if "getitem" not in target and "grad" not in target]
    assert steps == ["wuneng.state_head_step"]
    assert not others


#: Without one, values are looked at, which these tensors do not have.
BOUND = -0.7


def projections() -> tuple[torch.Tensor, ...]:
    """r, decay, k, v and rate of two sequences, then k_k and k_a."""
    return (*(drawn(2, 40, 3, 64) for _ in range(5)), drawn(3, 64), drawn(3, 64))


def run_mix() -> None:
    *given, k_k, k_a = projections()
    state_mix(*given, None, k_k, k_a, a_max=1.0)


def run_cross_head() -> None:
    A, R = drawn(2, 9, 3, 64), drawn(2, 9, 3, 64)
    weights = (drawn(3), drawn(3, 1), drawn(3, 64), drawn(3, 64), drawn(3, 64))
    cross_head("additive", A, R, *weights, eps=1e-5)


def run_readout() -> None:
    x, weight = drawn(2, 9, 3, 64), drawn(3, 64)
    state_readout(
        *(x, x, x, x), norm_weight=weight, norm_bias=weight, norm_eps=1e-5, bonus=None, gate=None
    )


def run_scan(tokens: int) -> None:
    wkv7(*(drawn(2, tokens, 3, 64) for _ in range(6)), log_decay_bound=BOUND)


def run_snapshots() -> None:
    *given, _, _ = projections()
    read = Snapshots(16, drawn(2, 40, 3, 2, dtype=torch.float32))
    wkv7(*given, given[0], snapshots=read, log_decay_bound=BOUND)


#: Of every kernel: how it is reached, what is then called, and which others it needs.
REACHED: dict[str, tuple[Any, str, set[str]]] = {
    "scan": (lambda: run_scan(40), "wkv7_triton_forward", set()),
    "snapshots": (run_snapshots, "wkv7_triton_forward", {"scan"}),
    "step": (lambda: run_scan(1), "wkv7_triton_step", set()),
    "projections": (run_mix, "state_mix_triton_forward", set()),
    "head_step": (run_operator, "state_head_step", set()),
    "readout": (run_readout, "state_readout_triton", set()),
    "token_shift": (
        lambda: token_shift(drawn(2, 9, 20), drawn(20)),
        "token_shift_triton",
        set(),
    ),
    "cross_head": (run_cross_head, "cross_head_triton_forward", set()),
}


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch, others: list[str]) -> None:
    """What indexes, and so cannot run here, is left out."""
    monkeypatch.setattr(_TokenShift, "apply", lambda u, mu: u)
    interface = importlib.import_module("wuneng.ops.wkv7.interface")
    monkeypatch.setattr(interface, "_one_token", lambda given, *_: (given[3], given[3], None))
    formula = importlib.import_module("wuneng.ops.cross_head.interface")
    monkeypatch.setattr(formula, "cross_head_reference", lambda *given: given[1:3])
    monkeypatch.setattr(triton_state_mix, "processors", lambda _: 1)


@pytest.mark.parametrize("kernel", REACHED)
def test_kernels_that_no_gpu_has_judged_are_off_until_asked_for(
    kernel: str, called_unasked: list[str], by_hand: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, name, needs = REACHED[kernel]
    assert not backend.JUDGED, "a GPU has judged some: say which in docs/kernels.md, and here"
    run()
    assert not [x for x in called_unasked if "triton" in x or x == "state_head_step"]
    monkeypatch.setattr(backend, "JUDGED", frozenset(REACHED) - {kernel})
    called_unasked.clear()
    run()
    assert name not in called_unasked
    monkeypatch.setattr(backend, "JUDGED", frozenset({kernel} | needs))
    run()
    assert name in called_unasked
    monkeypatch.setattr(backend, "JUDGED", frozenset())
    for way in (lambda: using("triton"), lambda: set_environment(monkeypatch)):
        called_unasked.clear()
        with way():
            run()
        assert name in called_unasked


@pytest.mark.parametrize("kernel", REACHED)
def test_the_kernels_are_reached_by_the_listed_ways(
    kernel: str, called: list[str], by_hand: None
) -> None:
    with poisoned(TRITON_PATHS[kernel]), pytest.raises(PoisonedError):
        REACHED[kernel][0]()


def test_a_gpu_has_a_say_about_every_kernel() -> None:
    assert REACHED.keys() == TRITON_PATHS.keys()


@contextmanager
def set_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("WUNENG_BACKEND", "triton")
        yield


@pytest.mark.parametrize(
    ("judged", "asked", "segments"),
    [({"scan"}, None, 1), ({"scan", "segments"}, None, 0), (set(), "triton", 0)],
)
def test_segments(
    judged: set[str],
    asked: str | None,
    segments: int,
    called_unasked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Into how many the scan may cut a sequence: 0 lets it choose."""
    given: list[int] = []

    def scan(*inputs: torch.Tensor, segments: int = 0, **_: Any) -> Any:
        given.append(segments)
        return inputs[3], inputs[3], None

    monkeypatch.setattr(backend, "JUDGED", frozenset(judged))
    monkeypatch.setattr(triton_autograd, "wkv7_triton", scan)
    wkv7(*(drawn(2, 40, 3, 64) for _ in range(6)), backend=asked, log_decay_bound=BOUND)
    assert given == [segments]
