"""``wkv7_from_projections`` in torch against float64, outputs and every gradient; its checks."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor

from tests.ops.from_projections_checks import ARGUMENTS, ProjectionCase, assert_close
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.ops import Snapshots, wkv7_from_projections
from wuneng.ops.state_head.recurrence_inputs import log_decay, recurrence_inputs
from wuneng.ops.wkv7 import wkv7


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared-key", "own-removal-key"])
@pytest.mark.parametrize("a_max", [1.0, 2.0])
@pytest.mark.parametrize("lengths", [(), (1, 0, 16, 20)], ids=["batch", "packed"])
def test_outputs_and_gradients(
    backend: str, shared: bool, a_max: float, lengths: tuple[int, ...]
) -> None:
    case = ProjectionCase(tokens=37, heads=2, shared=shared, a_max=a_max, lengths=lengths)
    case.options["backend"] = backend
    assert_close(case, wkv7_from_projections)


@pytest.mark.parametrize("decay", ["none", "strongest", "both"])
@pytest.mark.parametrize("repeats", [0, 20])
def test_decays_at_both_ends_and_identical_tokens(decay: str, repeats: int) -> None:
    case = ProjectionCase(decay=decay, repeats=repeats, options={"backend": "chunked"})
    assert_close(case, wkv7_from_projections)


def arguments(case: ProjectionCase | None = None) -> list[Tensor | None]:
    case = case or ProjectionCase(tokens=20, heads=2)
    leaves = case.tested_leaves(case.leaves())
    return [leaves.get(name) for name in ARGUMENTS]


def test_snapshots_reach_the_recurrence() -> None:
    given = [None if x is None else x.detach() for x in arguments()]
    weights = torch.softmax(torch.randn(1, 20, 2, 3), -1)
    found = wkv7_from_projections(
        *given, a_max=1.0, snapshots=Snapshots(16, weights), backend="chunked"
    )
    r, decay_logit, k, v, rate_logit, _, k_k, k_a = given
    key, a, b = recurrence_inputs(k, k, rate_logit, k_k, k_a, 1.0)
    w = log_decay(decay_logit)
    y, state, ring = wkv7(
        *(r, w, key, v, a, b), snapshots=Snapshots(16, weights), backend="chunked"
    )
    for x, expected in zip(found, (y, key, state, ring), strict=True):
        assert torch.equal(x, expected)


def test_no_source_is_the_key_and_a_view_of_it_too() -> None:
    given = arguments()
    wide = [None if x is None else x.detach().double().requires_grad_() for x in given]

    def results(inputs: list[Tensor | None], source: Tensor | None, **how: str) -> list[Tensor]:
        y, key, state, ring = wkv7_from_projections(
            *inputs[:5], source, *inputs[6:], a_max=2.0, **how
        )
        assert ring is None
        return [
            y,
            key,
            state,
            *torch.autograd.grad(y.square().sum() + state.square().sum(), inputs[2]),
        ]

    reference = results(given, None, backend="reference")
    exact = results(wide, None, backend="reference")
    for source in (None, given[2], given[2].view_as(given[2])):
        assert_as_exact(results(given, source), reference, exact, floor=CHUNKED_FLOOR)


def test_one_token_without_gradients_takes_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = importlib.import_module("wuneng.ops.wkv7.interface")
    calls = []
    step = interface.step
    monkeypatch.setattr(interface, "step", lambda *xs, **how: calls.append(xs) or step(*xs, **how))
    given = arguments(ProjectionCase(batch=2, tokens=1))
    with torch.no_grad():
        found = wkv7_from_projections(*given, a_max=1.0, backend="chunked")
    assert len(calls) == 1
    reference = wkv7_from_projections(*given, a_max=1.0, backend="reference")
    wide = [None if x is None else x.double() for x in given]
    exact = wkv7_from_projections(*wide, a_max=1.0, backend="reference")
    assert_as_exact(*((out.y, out.state) for out in (found, reference, exact)))


def test_log_decay_is_float32_and_in_range() -> None:
    logit = torch.tensor([-50.0, 0.0, 50.0], dtype=torch.bfloat16)
    found = log_decay(logit)
    assert found.dtype == torch.float32
    reference, exact = (
        -math.exp(-0.5) * logit.to(x).sigmoid() for x in (torch.float32, torch.float64)
    )
    assert_as_exact(found, reference, exact)
    assert exact.tolist() == pytest.approx([0.0, -0.30326533, -0.60653067])
    assert log_decay(logit.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        (1, lambda x: x[:, :-1], r"decay_logit must have shape \[1, 20, 2, 16\], got \[1, 19"),
        (4, lambda x: x.long(), "rate_logit must be floating point, got torch.int64"),
        (6, lambda x: x.flatten(), r"k_k must have shape \[2, 16\], got \[32\]"),
        (7, lambda x: x.to("meta"), "k_a must be on v's device cpu, got meta"),
        (3, lambda x: x[0], r"v must be \[B, T, S, N\], got shape \[20, 2, 16\]"),
    ],
)
def test_what_does_not_fit_is_named(index: int, change: object, words: str) -> None:
    given = arguments()
    given[index] = change(given[index])  # type: ignore[operator]
    with pytest.raises(ValueError, match=words):
        wkv7_from_projections(*given, a_max=1.0)
