"""On CUDA only kernels that a GPU has judged are taken unasked, each by itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.fast_paths import TRITON_PATHS, PoisonedError, poisoned
from tests.ops.memoryless import called, called_unasked, drawn, head_arguments, others, run_operator
from wuneng.ops import (
    Snapshots,
    backend,
    cross_head,
    using,
    wkv7,
    wkv7_from_projections,
)
from wuneng.ops.readout import state_readout
from wuneng.ops.token_shift import token_shift
from wuneng.ops.token_shift.by_hand import _TokenShift
from wuneng.ops.wkv7 import triton_autograd

#: Without one, values are looked at, which these tensors do not have.
BOUND = -0.7


def projections() -> tuple[torch.Tensor, ...]:
    """r, decay, k, v and rate of two sequences, then k_k and k_a."""
    return (*(drawn(2, 40, 3, 64) for _ in range(5)), drawn(3, 64), drawn(3, 64))


def run_projections() -> None:
    *given, k_k, k_a = projections()
    wkv7_from_projections(*given, None, k_k, k_a, a_max=1.0)


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
    "projections": (run_projections, "wkv7_from_projections_triton_forward", set()),
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


@pytest.mark.parametrize("kernel", REACHED)
def test_kernels_that_no_gpu_has_judged_are_off_until_asked_for(
    kernel: str, called_unasked: list[str], by_hand: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, name, needs = REACHED[kernel]
    monkeypatch.setattr(backend, "JUDGED", frozenset())
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


def test_a_gpu_has_a_say_about_every_kernel(repository: Path) -> None:
    assert REACHED.keys() == TRITON_PATHS.keys()
    assert {*REACHED, "segments"} >= backend.JUDGED
    page = (repository / "docs" / "kernels.md").read_text()
    assert all(f"`{kernel}`" in page for kernel in backend.JUDGED), "say there that it was judged"


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
