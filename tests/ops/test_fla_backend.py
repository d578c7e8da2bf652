"""Backend ``fla``: a stand-in of that package's interface, computed by the token loop.

It shares the recurrence with the reference, but not layout, signs or states: those are what is
tested. The package's own kernels are judged by ``benchmarks.repeated_tokens`` and ``wuneng bench``.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.wkv7_cases import INPUT_NAMES
from tests.precision import assert_as_exact
from wuneng.errors import BackendError
from wuneng.ops import HeadInputs, HeadOptions, HeadWeights, Snapshots, state_head, using, wkv7
from wuneng.ops.wkv7.reference import wkv7_reference

Calls = list[dict[str, Any]]


def chunk_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    safe_gate: bool = False,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """As documented there: ``[B, T, H, K]``, log decay, states ``[sequences, H, K, V]``."""
    assert not kwargs
    assert len({x.dtype for x in (r, k, v, a, b)}) == 1, "matrix operands of one dtype"
    assert cu_seqlens is None or cu_seqlens.dtype == torch.int64
    if initial_state is not None:
        assert initial_state.is_contiguous()
        initial_state = initial_state.mT
    y, state, _ = wkv7_reference(
        scale * r, w, k, v, a, b, initial_state=initial_state, cu_seqlens=cu_seqlens
    )
    return y, state.mT if output_final_state else None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The stand-in is installed; the arguments of its calls."""
    found: Calls = []

    def recorded(**arguments: Any) -> Any:
        found.append(arguments)
        return chunk_rwkv7(**arguments)

    recorded.__signature__ = inspect.signature(chunk_rwkv7)  # type: ignore[attr-defined]
    install(monkeypatch, recorded)
    return found


def install(monkeypatch: pytest.MonkeyPatch, operator: Any) -> None:
    for name in ("fla", "fla.ops", "fla.ops.rwkv7"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["fla.ops.rwkv7"].chunk_rwkv7 = operator  # type: ignore[attr-defined]
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def inputs(batch: int = 2, tokens: int = 11, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    r, w, k, v, a, b = (torch.randn(batch, tokens, 3, 8, generator=generator) for _ in range(6))
    kappa = torch.nn.functional.normalize(a, dim=-1)
    given = (r, -0.6 * torch.sigmoid(w), k, v, -kappa, kappa * torch.sigmoid(b))
    return [x.to(dtype) for x in given]


def test_outputs_states_and_gradients(calls: Calls) -> None:
    given = [*inputs(), torch.randn(2, 3, 8, 8)]
    seeds = [torch.randn(2, 11, 3, 8), torch.randn(2, 3, 8, 8)]

    def side(backend: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        *leaves, state = [x.to(dtype).requires_grad_() for x in given]
        out = wkv7(*leaves, initial_state=state, backend=backend)
        into = torch.autograd.grad(out, [*leaves, state], [seed.to(dtype) for seed in seeds])
        values = [*(x.detach() for x in out), *into]
        return dict(zip(("y", "final", *INPUT_NAMES, "state"), values, strict=True))

    assert_as_exact(side("fla"), side("reference"), side("reference", torch.float64))
    (call,) = calls
    assert call["scale"] == 1.0
    assert not {"safe_gate", "chunk_size", "lower_bound"} & set(call), "wrong on equal tokens"


def test_packed_documents_continued(calls: Calls) -> None:
    given, bounds = inputs(1, 20), torch.tensor([0, 7, 8, 20], dtype=torch.int32)
    first = wkv7(*given, cu_seqlens=bounds, backend="fla")
    again = wkv7(*given, cu_seqlens=bounds, initial_state=first[1], backend="fla")

    def expected(dtype: torch.dtype) -> list[Tensor]:
        x = [value.to(dtype) for value in given]
        state = wkv7(*x, cu_seqlens=bounds, backend="reference")[1]
        return list(wkv7(*x, cu_seqlens=bounds, initial_state=state, backend="reference"))

    assert_as_exact(again, expected(torch.float32), expected(torch.float64))
    assert len(calls) == 2


def test_half_precision_keeps_the_decay_and_the_state(calls: Calls) -> None:
    r, w, k, v, a, b = inputs(dtype=torch.bfloat16)
    y, state = wkv7(r, w.float(), k.float(), v, a, b.float(), backend="fla")
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    (call,) = calls
    assert call["w"].dtype == torch.float32
    assert {call[name].dtype for name in "rkvab"} == {torch.bfloat16}


def test_no_tokens(calls: Calls) -> None:
    state = torch.randn(2, 3, 8, 8)
    y, final = wkv7(*inputs(tokens=0), initial_state=state, backend="fla")
    assert y.shape == (2, 0, 3, 8)
    assert torch.equal(final, state)
    assert not calls


@pytest.mark.parametrize("tokens", [1, 9])
def test_state_heads(tokens: int, calls: Calls) -> None:
    """Asked for around a layer it is the recurrence, of a single token too; the rest is torch's."""
    x, weights = inputs(2, tokens), torch.rand(3, 8)

    def side(backend: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        heads = HeadInputs(*(u.flatten(2).to(dtype) for u in x[:5]))
        given = (heads, HeadWeights(*[weights.to(dtype)] * 8), HeadOptions(3, 8, norm_eps=1e-5))
        with torch.no_grad(), using(backend):
            found = state_head(*given)
        return [found.readout, found.state]

    found = side("fla")
    assert len(calls) == 1
    assert_as_exact(found, side("reference"), side("reference", torch.float64))


def test_what_it_cannot_do(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs()
    snapshots = Snapshots(16, torch.ones(2, 11, 3, 1))
    with pytest.raises(BackendError, match="backend 'fla' has no snapshots"):
        wkv7(*given, snapshots=snapshots, backend="fla")
    with pytest.raises(BackendError, match="backend 'fla' has no float64"):
        wkv7(*given[:5], given[5].double(), backend="fla")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"backend 'fla' needs CUDA tensors, v is on cpu"):
        wkv7(*given, backend="fla")
    assert not calls


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, chunk_rwkv7)
    monkeypatch.setitem(sys.modules, "fla", None)
    for name in ("fla.ops", "fla.ops.rwkv7"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="package flash-linear-attention, which is not"):
        wkv7(*inputs(), backend="fla")


def test_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "fla":
                raise RuntimeError("no active driver")

    install(monkeypatch, chunk_rwkv7)
    for name in ("fla", "fla.ops", "fla.ops.rwkv7"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(BackendError, match="does not load here: no active driver"):
        wkv7(*inputs(), backend="fla")


def test_an_old_release(monkeypatch: pytest.MonkeyPatch) -> None:
    def old(r: Any, k: Any, v: Any, a: Any, b: Any, w: Any = None, log_w: Any = None) -> None:
        raise AssertionError("called")

    install(monkeypatch, old)
    with pytest.raises(BackendError, match="needs a newer flash-linear-attention"):
        wkv7(*inputs(), backend="fla")
