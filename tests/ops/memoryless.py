"""CUDA tensors without memory, and which of our operators they reach: no GPU is needed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed")

from wuneng.ops import HeadInputs, HeadOptions, HeadWeights, state_head, using
from wuneng.ops.head_arguments import HeadOutputs
from wuneng.ops.plain import PLAIN_TYPES
from wuneng.ops.state_head import step as head_step


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


def head_arguments(size: int, tokens: int = 1) -> tuple[HeadInputs, HeadWeights, HeadOptions]:
    """Two sequences, three heads; r, w and a are slices of one row, v has a head too many."""
    width = 3 * size
    r, w, a = drawn(2, tokens, 3 * width).split(width, dim=-1)
    inputs = HeadInputs(r, w, drawn(2, tokens, width), drawn(2, tokens, 4 * size), a)
    weights = HeadWeights(
        mu_k=drawn(width), k_k=drawn(width), k_a=drawn(width, dtype=torch.float32)
    )
    return inputs, weights, HeadOptions(3, size, letters="k")


def run_operator(size: int = 64, tokens: int = 1, **how: Any) -> HeadOutputs:
    state = drawn(2, 3, size, size, dtype=torch.float32)
    how = {"state": state, "carry": drawn(2, 3 * size), "keeps_carry": True} | how
    return state_head(*head_arguments(size, tokens), **how)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs in the kernel's place: fake tensors cannot be indexed in a torch without CUDA."""
    names: list[str] = []

    def torch_step(*_: Any, **__: Any) -> HeadOutputs:
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
