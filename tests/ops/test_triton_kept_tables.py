"""Tables of sequences are made once for all layers, and anew for whatever is another sequence."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.ops import triton_interpreter  # noqa: F401 (skips where there is no interpreter)
from tests.ops.from_projections_checks import ARGUMENTS, ProjectionCase
from wuneng.ops.wkv7 import triton_kept_tables, triton_launch, triton_passes
from wuneng.ops.wkv7.triton_from_projections import wkv7_from_projections_triton
from wuneng.ops.wkv7.triton_kept_tables import LAST, kept_table, tables_of_capture
from wuneng.ops.wkv7.triton_tables import sequence_table

CPU = torch.device("cpu")


class Made:
    """A maker of tables that counts them."""

    def __init__(self) -> None:
        self.calls = 0
        self.__qualname__ = "made"

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        return torch.tensor(self.calls)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = type(triton_kept_tables._kept)(maxlen=LAST)
    monkeypatch.setattr(triton_kept_tables, "_kept", empty)


def test_the_same_sequences_share_a_table() -> None:
    made, bounds = Made(), torch.tensor([0, 3, 8])
    first = kept_table(made, bounds, CPU, 8, 16)
    assert kept_table(made, bounds, CPU, 8, 16) is first
    assert kept_table(made, bounds.detach(), CPU, 8, 16) is first  # as autograd hands it back
    assert kept_table(made, None, CPU, 8, 16) is not first
    assert made.calls == 2


def test_other_sequences_have_their_own() -> None:
    made, bounds = Made(), torch.tensor([0, 3, 8])
    kept_table(made, bounds, CPU, 8, 16)
    for other in (bounds.clone(), bounds[:2], bounds[1:], bounds.view(torch.float64)):
        kept_table(made, other, CPU, 8, 16)
    kept_table(made, bounds, CPU, 8, 32)
    assert made.calls == 6
    bounds[1] = 4
    kept_table(made, bounds, CPU, 8, 16)
    assert made.calls == 7


def test_an_address_that_is_used_again_is_another_tensor() -> None:
    made, seen = Made(), set()
    for step in range(3 * LAST):
        bounds = torch.tensor([0, step, 100])
        seen.add(int(kept_table(made, bounds, CPU, 100)))
        del bounds
    assert len(seen) == made.calls == 3 * LAST
    assert len(triton_kept_tables._kept) == LAST


def test_what_changes_unseen_is_not_kept() -> None:
    made = Made()
    with torch.inference_mode():
        bounds = torch.tensor([0, 8])
        kept_table(made, bounds, CPU, 8)
    kept_table(made, bounds, CPU, 8)

    class Own(torch.Tensor):
        pass

    kept_table(made, torch.tensor([0, 8]).as_subclass(Own), CPU, 8)
    assert made.calls == 3
    assert not triton_kept_tables._kept


def test_a_capture_neither_keeps_nor_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of a CUDA graph is written only when it is replayed."""
    made, cuda = Made(), torch.device("cuda", 0)
    stream = type("Stream", (), {"cuda_stream": 7})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    kept_table(made, None, cuda, 8)
    capturing[0] = True
    kept_table(made, None, cuda, 8)
    capturing[0] = False
    kept_table(made, None, cuda, 8)
    assert made.calls == 2
    stream.cuda_stream = 9
    kept_table(made, None, cuda, 8)
    assert made.calls == 3


def test_threads() -> None:
    results = []

    def run() -> None:
        for step in range(200):
            bounds = torch.tensor([0, step % 5, 9])
            table = sequence_table(1, 9, bounds, None, 16)
            results.append(table is not None and int(table[0, 1]) == step % 5)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 800
    assert all(results)


@pytest.mark.parametrize("lengths", [(), (9, 40, 21)], ids=["one", "packed"])
def test_layers_make_one_table(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    cut = triton_passes.cut_sequences
    monkeypatch.setattr(
        triton_passes, "cut_sequences", lambda *given: calls.append(1) or cut(*given)
    )
    monkeypatch.setattr(triton_passes, "processors", lambda _: 132)
    monkeypatch.setattr(triton_launch, "SEGMENTED_CHUNKS", 4)
    case = ProjectionCase(tokens=70, lengths=lengths)
    leaves = case.tested_leaves(case.leaves())
    given = [leaves.get(name) for name in ARGUMENTS]
    bounds = torch.tensor([0, *lengths]).cumsum(0) if lengths else None
    total = torch.zeros(())
    for _ in range(3):
        y, *_ = wkv7_from_projections_triton(*given, a_max=1.0, cu_seqlens=bounds)
        given[0] = y
        total = total + y.sum()
    torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    assert len(calls) == 1


def test_bad_bounds_are_refused_every_time() -> None:
    bounds = torch.tensor([0, 9, 5])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cu_seqlens must be non-decreasing"):
            sequence_table(1, 5, bounds, None, 16)


def test_a_capture_has_tables_of_its_own() -> None:
    made, bounds = Made(), torch.tensor([0, 3, 8])
    outside = kept_table(made, bounds, CPU, 8, 16)
    with tables_of_capture():
        inside = kept_table(made, bounds, CPU, 8, 16)
        assert inside is not outside
        # Backward passes run in other threads.
        found: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: found.append(kept_table(made, bounds, CPU, 8, 16)))
        thread.start()
        thread.join()
        assert found[0] is inside
        bounds.add_(0)  # in place: another tensor, as far as anyone knows
        assert kept_table(made, bounds, CPU, 8, 16) is not inside
    with tables_of_capture():
        assert kept_table(made, bounds, CPU, 8, 16) is not inside
    assert len(triton_kept_tables._kept) == 1
