"""The head and the loss as one operator: exact, never whole, and the plain way for the unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.largest import Largest
from tests.precision import assert_as_exact
from wuneng.ops import using
from wuneng.ops.linear_cross_entropy import (
    by_hand,
    interface,
    linear_cross_entropy,
    linear_distillation,
)

WORDS, WIDTH = 37, 12


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows of logits a chunk, of numbers that every run draws alike."""
    torch.manual_seed(0)
    monkeypatch.setitem(by_hand._CHUNK_BYTES, "cpu", 5 * 4 * WORDS)
    monkeypatch.setattr(by_hand, "_FEWEST_ROWS", 1)


def problem(rows: tuple[int, ...], dtype: torch.dtype, scored: float = 0.7) -> list[Tensor]:
    """hidden, weight, taught hidden, taught weight, labels."""
    drawn = [
        torch.randn(*shape, dtype=torch.float64).to(dtype)
        for shape in ((*rows, WIDTH), (WORDS, WIDTH), (*rows, 7), (WORDS, 7))
    ]
    labels = torch.randint(WORDS, rows)
    return [*drawn, labels.masked_fill(torch.rand(rows) > scored, -100)]


def entropy(given: list[Tensor], whole_bytes: int = 0) -> Tensor:
    return linear_cross_entropy(given[0], given[1], given[4], whole_bytes=whole_bytes)


def divergence(given: list[Tensor], whole_bytes: int = 0) -> Tensor:
    weights = {"temperature": 1.7, "kl": 0.6, "ce": 0.3}
    total, parts = linear_distillation(*given, **weights, whole_bytes=whole_bytes)
    assert not parts.requires_grad
    assert torch.allclose(total.detach(), 0.6 * parts[0] + 0.3 * parts[1])
    return total


def results(of: Callable[[list[Tensor]], Tensor], given: list[Tensor]) -> dict[str, Tensor]:
    """The loss, and the gradients by hidden states and weight of a third of it."""
    hidden, weight = (x.detach().clone().requires_grad_() for x in given[:2])
    loss = of([hidden, weight, *given[2:]])
    (loss / 3).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return {"loss": loss.detach(), "by hidden": hidden.grad, "by weight": weight.grad}


@pytest.mark.parametrize("of", [entropy, divergence])
@pytest.mark.parametrize("rows", [(1,), (5,), (3, 7), (2, 3, 11)], ids=str)
def test_as_exact_as_whole_logits(of: Any, rows: tuple[int, ...]) -> None:
    given = problem(rows, torch.float32)
    given[4].flatten()[0] = 3  # at least one is scored
    found = results(of, given)
    with using("reference"):
        plain = results(of, given)
        exact = results(of, [x.double() if x.is_floating_point() else x for x in given])
    assert_as_exact(found, plain, exact)
    doubled = results(of, [x.double() if x.is_floating_point() else x for x in given])
    for name, tensor in doubled.items():
        torch.testing.assert_close(tensor, exact[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("of", [entropy, divergence])
def test_in_half_precision_as_exact_as_whole_logits(of: Any) -> None:
    given = problem((4, 9), torch.float32)
    with using("reference"):
        exact = results(of, [x.double() if x.is_floating_point() else x for x in given])
    with torch.autocast("cpu", torch.bfloat16):
        found = results(of, given)
        with using("reference"):
            plain = results(of, given)
    for name in exact:
        lost = (found[name] - exact[name]).abs().max()
        assert lost <= 4 * (plain[name] - exact[name]).abs().max() + 2**-8 * exact[name].abs().max()
        assert found[name].dtype == torch.float32


@pytest.mark.parametrize("of", [entropy, divergence])
def test_logits_are_never_whole(of: Any) -> None:
    given = problem((50, 4), torch.float32, scored=1.0)
    with Largest() as largest:
        results(of, given)
    assert largest.numel == max(x.numel() for x in given[:4])  # not 200 x 37
    with Largest() as whole, using("reference"):
        results(of, given)
    assert whole.numel == 200 * WORDS


def test_a_frozen_head_and_frozen_states_get_no_gradient() -> None:
    hidden, weight, *_, labels = problem((9,), torch.float32)
    whole = results(entropy, [hidden, weight, hidden, weight, labels])
    for name, kept, frozen in (("by hidden", hidden, weight), ("by weight", weight, hidden)):
        x = kept.clone().requires_grad_()
        first = name == "by hidden"
        loss = entropy([*((x, frozen) if first else (frozen, x)), x, x, labels])
        (loss / 3).backward()
        assert frozen.grad is None
        assert torch.equal(x.grad, whole[name])
    with torch.no_grad():
        assert torch.equal(entropy([hidden, weight, hidden, weight, labels]), whole["loss"])


def test_nothing_scored_is_nothing_lost() -> None:
    given = problem((6,), torch.float32, scored=0.0)
    found = results(entropy, given)
    assert all(not x.any() for x in found.values())


def test_gradients_are_made_once_and_say_so() -> None:
    given = problem((6,), torch.float32)
    given[0].requires_grad_()
    loss = entropy(given)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        loss.backward()


class Marked(torch.Tensor):
    """A subclass, of which the chunks know nothing."""


@pytest.mark.parametrize("case", ["reference", "subclass", "float16", "small"])
def test_what_the_chunks_are_not_for_goes_the_plain_way(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*arguments: Any) -> Any:
        raise AssertionError("in chunks")

    monkeypatch.setattr(interface, "in_chunks", poisoned)
    given = problem((9,), torch.float16 if case == "float16" else torch.float32)
    with pytest.raises(AssertionError, match="in chunks"):
        entropy(problem((9,), torch.float32))
    if case == "subclass":
        given[1] = given[1].as_subclass(Marked)
    whole_bytes = 4 * 9 * WORDS if case == "small" else 0
    with using("reference" if case == "reference" else "native"):
        assert entropy(given, whole_bytes).isfinite()
        assert divergence(given, whole_bytes).isfinite()


def test_a_compiled_model_breaks_its_graph_and_is_not_compiled_again() -> None:
    """A new function for the head at every step, as in training."""
    hidden, weight, *_, labels = problem((9,), torch.float32)
    compilations: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    def forward(x: Tensor, of_head: Callable[[Tensor], Tensor]) -> Tensor:
        return of_head(2 * x)

    compiled = torch.compile(forward, backend=backend)
    counts = []
    for _ in range(4):
        found = compiled(hidden, lambda x: linear_cross_entropy(x, weight, labels, whole_bytes=0))
        counts.append(len(compilations))
    assert torch.equal(found, entropy([2 * hidden, weight, hidden, weight, labels]))
    assert counts == counts[:1] * 4


@pytest.mark.parametrize("scored", [0.0, 0.7, 1.0])
def test_captured_in_a_graph_it_does_not_look_at_what_is_scored(
    scored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = problem((3, 7), torch.float64, scored)
    narrow = [*(x.float() for x in wide[:4]), wide[4]]
    usual, exact = results(entropy, narrow), results(entropy, wide)
    monkeypatch.setattr(interface, "_is_captured", lambda x: True)
    monkeypatch.setattr(interface, "_scored", None)
    assert_as_exact(results(entropy, narrow), usual, exact)
    assert_as_exact(results(entropy, wide), exact, exact)
