"""Decays without a lower bound: gated delta nets may forget everything in a token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.ops.wkv7_cases import Case, assert_matches
from wuneng.ops import wkv7
from wuneng.ops.state_head.native import is_available
from wuneng.ops.wkv7 import chunked, decays
from wuneng.ops.wkv7.decays import allows_full_chunks, longest_chunk, lowest_log_decay

BACKENDS = ("chunked", "native")
SLOW = -0.05


def log_decays(kind: str, shape: torch.Size, seed: int = 5) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    drawn = torch.rand(shape, generator=random, dtype=torch.float64)
    if kind == "steady":
        return torch.full(shape, -20.0, dtype=torch.float64)
    if kind == "any":
        return -20 * drawn
    if kind == "most slow":
        return -20 * drawn**6
    if kind == "some channels":
        return torch.where(torch.arange(shape[-1]) % 3 == 0, -20.0, SLOW).expand(shape).clone()
    forgotten = {"forgets": -math.inf, "beyond": -1e4}[kind]
    return torch.where(drawn[..., :1] < 0.1, forgotten, SLOW * drawn)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "kind", ["steady", "any", "most slow", "some channels", "forgets", "beyond"]
)
@pytest.mark.parametrize("delta", ["decayed key", "decayed write"])
def test_down_to_everything(kind: str, backend: str, delta: str) -> None:
    """As kda (a = -decay k) and as gated_delta (b = decay beta k) call it."""
    if backend == "native" and not is_available(16):
        pytest.skip("no C compiler")
    case = Case(batch=2, tokens=75, size=16, initial_state=True)
    w = log_decays(kind, case.leaves["w"].shape)
    case.leaves["w"] = w
    case.leaves["a" if delta == "decayed key" else "b"] *= w.exp()
    assert_matches(case, backend)


@pytest.mark.parametrize("tokens", [1, 2, 3, 31, 32, 33, 64, 131])
@pytest.mark.parametrize("kind", ["any", "forgets"])
def test_any_length(tokens: int, kind: str) -> None:
    case = Case(tokens=tokens, size=8, initial_state=True)
    case.leaves["w"] = log_decays(kind, case.leaves["w"].shape)
    assert_matches(case)


@pytest.mark.parametrize("kind", ["steady", "most slow", "forgets"])
def test_packed_documents_and_snapshots(kind: str) -> None:
    for options in ({"lengths": (5, 0, 1, 40, 29)}, {"tokens": 70, "every": 16, "count": 2}):
        case = Case(size=8, initial_state=True, **options)  # type: ignore[arg-type]
        case.leaves["w"] = log_decays(kind, case.leaves["w"].shape)
        assert_matches(case)


@pytest.mark.parametrize("kind", ["steady", "most slow", "forgets"])
def test_a_compiled_graph_chooses_when_it_runs(kind: str) -> None:
    """One graph for decays that nobody has seen yet, and its backward."""

    def compiled(*inputs: Any, **options: Any) -> Any:
        def run(*inputs: Any) -> Any:
            return wkv7(*inputs, **options, backend="chunked")

        return torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)

    case = Case(tokens=70, size=8, initial_state=True)
    case.leaves["w"] = log_decays(kind, case.leaves["w"].shape)
    assert_matches(case, compiled)


def test_float64_keeps_what_float32_may_drop() -> None:
    case = Case(tokens=40, size=8, initial_state=True)
    case.leaves["w"] = torch.where(torch.rand_like(case.leaves["w"]) < 0.3, -200.0, -1e-3)
    found, exact = (
        case.values_and_gradients(backend, torch.float64) for backend in ("chunked", "reference")
    )
    for name, x in exact.items():
        torch.testing.assert_close(found[name], x, rtol=1e-11, atol=1e-11, msg=name)


def test_a_chunk_is_as_long_as_its_decays_allow() -> None:
    shape = (2, 100, 1, 4)

    def longest(w: torch.Tensor) -> int:
        return longest_chunk(w, torch.float32)

    for step, length in ((-0.6, 32), (-1.8, 32), (-2.0, 16), (-5.0, 8), (-10.0, 4), (-30.0, 2)):
        assert longest(torch.full(shape, step)) == length
    once = torch.full(shape, SLOW)
    once[:, 50] = -30.0
    assert longest(once) == 32
    once[1, 61] = -30.0
    assert longest(once) == 8, "two such tokens 11 apart do not fit into one chunk"
    assert longest(once[:, :61]) == 32
    assert longest(torch.full((2, 100, 1, 1), -2.0).expand(shape)) == 16
    assert longest(torch.full(shape, math.nan)) == 2
    assert longest(once[:, :0]) == 32
    assert lowest_log_decay(torch.float32) == -30.0
    assert allows_full_chunks(-0.61, torch.float32)
    assert not allows_full_chunks(-3.0, torch.float32)
    assert not allows_full_chunks(None, torch.float64)


def test_rwkv7_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its decays are bounded by what they are: no GPU is waited for, at any token."""
    from tests.model.small import small_model

    def looked(*args: Any) -> int:
        raise AssertionError("the decays were looked at")

    monkeypatch.setattr(chunked, "longest_chunk", looked)
    monkeypatch.setenv("WUNENG_BACKEND", "chunked")
    with torch.no_grad():
        small_model()(torch.arange(40)[None] % 61)
    with pytest.raises(AssertionError, match="looked at"):
        wkv7(*Case().leaves.values(), backend="chunked")


def test_triton_leaves_such_decays_to_the_chunked_form(monkeypatch: pytest.MonkeyPatch) -> None:
    from wuneng.ops.wkv7 import interface

    called: list[str] = []
    plain = interface.load

    def noted(backend: str, **_: Any) -> Any:
        called.append(backend)
        return plain("chunked" if backend == "chunked" else "reference")

    monkeypatch.setattr(interface, "load", noted)
    case = Case(tokens=40)
    wkv7(*case.leaves.values(), backend="triton")
    case.leaves["w"][:, 20] = -50.0
    wkv7(*case.leaves.values(), backend="triton")
    assert called == ["triton", "chunked"]


def test_the_room_is_what_float32_has() -> None:
    assert math.exp(decays._ROOM[torch.float32]) < torch.finfo(torch.float32).max / 1e11
