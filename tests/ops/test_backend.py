"""Who is asked which implementation computes, in which order, and what a mistaken name meets."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.precision import assert_as_exact
from wuneng import ops
from wuneng.errors import BackendError, InputError
from wuneng.ops import LowRank, backend, using
from wuneng.ops.backend import BACKENDS, asked, candidates
from wuneng.ops.readout import state_readout
from wuneng.ops.state_head.step import state_head_step

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
X = torch.randn(1, 3, 2, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WUNENG_BACKEND", raising=False)


def test_the_argument_the_innermost_block_the_environment_and_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert asked() is None
    monkeypatch.setenv("WUNENG_BACKEND", "native")
    assert asked() == "native"
    with using("chunked"):
        assert asked() == "chunked"
        with using("reference"):
            assert asked() == "reference"
            assert asked("triton") == "triton"
        assert asked() == "chunked"
        with pytest.raises(RuntimeError, match="inside"), using("reference"):
            raise RuntimeError("inside")
        assert asked() == "chunked"
    assert asked() == "native"
    monkeypatch.setenv("WUNENG_BACKEND", "")
    assert asked() is None, "an empty variable asks for nothing"


def test_candidates() -> None:
    assert candidates("readout", CPU) == ("native", "chunked", "reference")
    assert candidates("readout", META) == ("chunked", "reference")
    assert candidates("readout", CUDA) == ("triton", "chunked", "reference")
    assert candidates("cross_head", CUDA) == ("triton", "reference")
    assert candidates("unheard of", CUDA) == ("chunked", "reference"), "no GPU has judged it"
    for name in BACKENDS:
        found = candidates("cross_head", CUDA, name)
        assert found[0] == name
        assert found[-1] == "reference"
        assert len(set(found) & {"native", "triton", "fla"} - {name}) == 0
    assert candidates("readout", CPU, "reference") == ("reference",)


def test_other_threads_and_tasks_are_not_affected() -> None:
    seen: list[str | None] = []

    def look() -> None:
        seen.append(asked())

    with using("reference"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [None]

    async def compute(name: str, first: asyncio.Event, second: asyncio.Event) -> str | None:
        with using(name):
            first.set()
            await second.wait()
            return asked()

    async def both() -> list[str | None]:
        one, two = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(compute("reference", one, two), compute("chunked", two, one))

    assert asyncio.run(both()) == ["reference", "chunked"]
    assert asked() is None


def test_a_compiled_function_follows() -> None:
    """Dynamo cannot look into a context variable; it is told, and compiles again."""

    def taken(x: Tensor) -> Tensor:
        return x + len(candidates("readout", x.device))

    run = torch.compile(taken, fullgraph=True, backend="eager")
    zero = torch.zeros(1)
    assert run(zero).item() == 3
    with using("reference"):
        assert run(zero).item() == 1
        with using("chunked"):
            assert run(zero).item() == 2
        assert run(zero).item() == 1
    assert run(zero).item() == 3


def head_step(**settings: Any) -> None:
    inputs = ops.HeadInputs(*[X[:, :1]] * 5)
    weights = ops.HeadWeights(k_k=X[0, 0], k_a=X[0, 0])
    state_head_step(inputs, weights, ops.HeadOptions(2, 16), None, None, **settings)


def head(**settings: Any) -> None:
    inputs = ops.HeadInputs(*[X.flatten(2)] * 5)
    weights = ops.HeadWeights(k_k=X[0, 0], k_a=X[0, 0])
    ops.state_head(inputs, weights, ops.HeadOptions(2, 16), **settings)


LOW_RANK = LowRank(torch.randn(32, 4), torch.randn(4, 32), torch.randn(32))
OPERATORS: dict[str, Callable[..., object]] = {
    "wkv7": lambda **s: ops.wkv7(X, -X.abs(), X, X, X, X, **s),
    "wkv7_from_projections": lambda **s: ops.wkv7_from_projections(
        X, X, X, X, X, None, X[0, 0], X[0, 0], a_max=1.0, **s
    ),
    "recurrence_inputs": lambda **s: ops.recurrence_inputs(X, X, X, X[0, 0], X[0, 0], 1.0, **s),
    "state_head": head,
    "state_head_step": head_step,
    "state_readout": lambda **s: state_readout(
        *(X, X, X, X), norm_weight=None, norm_bias=None, norm_eps=0.0, bonus=None, gate=None, **s
    ),
    "token_shift": lambda **s: ops.token_shift(X.flatten(2), X[0, 0].flatten(), **s),
    "low_rank": lambda **s: ops.low_rank(X.flatten(2), LOW_RANK, **s),
    "head_projections": lambda **s: ops.head_projections(
        X.flatten(2), torch.randn(32, 32), LOW_RANK, LOW_RANK, **s
    ),
    "rms_norm": lambda **s: ops.rms_norm(X.clone().requires_grad_(), torch.ones(16), eps=1e-5, **s),
    "cross_head": lambda **s: ops.cross_head(
        "concat",
        *(X, X, X[0, 0, :, 0], X[0, 0, :, :1], X[0, 0], X.new_ones(2, 32, 16), None),
        eps=1e-5,
        **s,
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_asks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OPERATORS[name]
    with pytest.raises(BackendError, match=r"^backend must be one of .*got 'cuda'"):
        run(backend="cuda")
    monkeypatch.setenv("WUNENG_BACKEND", "tritn")
    message = (
        r"^WUNENG_BACKEND must be one of reference, chunked, native, triton, fla, got 'tritn'\. "
        r"Did you mean 'triton'\?$"
    )
    with pytest.raises(ValueError, match=message) as caught:
        run()
    assert isinstance(caught.value, InputError)
    run(backend="reference")
    with using("reference"):
        run()
    monkeypatch.delenv("WUNENG_BACKEND")
    for old in ("WUNENG_CROSS_HEAD", "WUNENG_NATIVE"):
        with monkeypatch.context() as patch:
            patch.setenv(old, "0")
            with pytest.raises(BackendError, match=f"^{old} is no longer read"):
                run()
    run()


def test_an_unknown_name_enters_nothing() -> None:
    for name in ("", "Reference", "referenc"):
        with (
            pytest.raises(ValueError, match=r"^using\(\) must be one of .*Did you mean|got ''"),
            using(name),
        ):
            raise AssertionError("entered")
    assert asked() is None
    assert backend._traced is None


def test_the_steps_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token of the public step: the token loop under ``reference``, the same numbers."""
    token = [X[:, 0]] * 6
    state = torch.randn(1, 2, 16, 16)
    expected = ops.wkv7_step(*token, state)
    exact = ops.wkv7_step(*(x.double() for x in token), state.double())
    interface = importlib.import_module("wuneng.ops.wkv7.interface")
    monkeypatch.setattr(interface, "step", None)
    with using("reference"):
        found = ops.wkv7_step(*token, state)
    assert_as_exact(found, expected, exact)


@pytest.mark.parametrize("in_place", [True, False])
def test_the_head_step_by_the_formulas(in_place: bool) -> None:
    """Mixed dtypes, a carry, and memory that is overwritten or not."""
    x = X[:, :1].flatten(2).bfloat16()
    options = ops.HeadOptions(2, 16, norm_eps=1e-5, letters="kv")

    def formulas(x: Tensor, weight: Tensor) -> Any:
        given = (ops.HeadInputs(*[x] * 7), ops.HeadWeights(*[weight] * 8), options)
        return state_head_step(*given, weight.new_ones(1, 2, 16, 16), x.new_ones(1, 64))

    given = (ops.HeadInputs(*[x] * 7), ops.HeadWeights(*[X[0, 1]] * 8), options)
    expected, exact = formulas(x, X[0, 1]), formulas(x.double(), X[0, 1].double())
    state, carry = torch.ones(1, 2, 16, 16), x.new_ones(1, 64)
    with using("reference"):
        out = state_head_step(*given, state, carry, in_place=in_place)
    assert (out.state is state, out.carry is carry) == (in_place, in_place)
    assert out.readout.dtype == torch.bfloat16
    assert out.carry is not None
    assert_as_exact(out[:3], expected[:3], exact[:3])
