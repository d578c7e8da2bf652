"""The divergence from a teacher's k likeliest tokens and the rest: exact, and never whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.largest import Largest
from tests.precision import assert_as_exact
from wuneng.model.head_loss import called_top_k, called_top_k_distillation
from wuneng.ops.linear_cross_entropy import TopK, by_hand, top_k_distillation, top_k_of
from wuneng.ops.linear_cross_entropy.reference import distillation

WORDS, WIDTH, TAU = 37, 12, 1.7


def problem(rows: tuple[int, ...] = (2, 9)) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of an arm and of a teacher ``[..., V]`` in float64, and labels."""
    torch.manual_seed(0)
    own, taught = (torch.randn(*rows, WORDS, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(WORDS, rows).masked_fill(torch.rand(rows) > 0.7, -100)
    return own, 3 * taught, labels


def by_words(own: Tensor, taught: Tensor, labels: Tensor, k: int) -> list[float]:
    """The formula word by word, in Python's floats."""
    found = [0.0, 0.0]
    rows = own.flatten(0, -2), taught.flatten(0, -2), labels.flatten()
    for z, t, label in zip(*rows, strict=True):
        if label == -100:
            continue
        p, q = ((x / TAU).softmax(-1).tolist() for x in (t, z))
        likeliest = sorted(range(WORDS), key=lambda v: -p[v])[:k]
        for v in likeliest:
            found[0] += TAU**2 * p[v] * math.log(p[v] / q[v])
        rest = [v for v in range(WORDS) if v not in likeliest]
        if rest:
            left, own_left = sum(p[v] for v in rest), sum(q[v] for v in rest)
            found[0] += TAU**2 * left * math.log(left / own_left)
        found[1] -= math.log(z.softmax(-1)[label])
    return found


@pytest.mark.parametrize("k", [1, 5, WORDS - 1, WORDS])
def test_it_is_the_formula(k: int) -> None:
    own, taught, labels = problem()
    found = top_k_distillation(own, top_k_of(taught, k, TAU), labels, -100, TAU)
    assert found.tolist() == pytest.approx(by_words(own, taught, labels, k), rel=1e-12)


def test_with_all_words_it_is_the_whole_divergence() -> None:
    own, taught, labels = problem()
    own.requires_grad_()
    kept = top_k_of(taught, WORDS, TAU)
    assert kept.log_rest.isneginf().all()
    found, expected = (
        top_k_distillation(own, kept, labels, -100, TAU),
        distillation(own, taught, labels, -100, TAU),
    )
    assert torch.allclose(found, expected, rtol=1e-13)
    for one, other in zip(found, expected, strict=True):
        first, second = (torch.autograd.grad(x, own, retain_graph=True)[0] for x in (one, other))
        assert torch.allclose(first, second, rtol=1e-11, atol=1e-14)


def test_more_words_tell_more_and_never_more_than_all() -> None:
    own, taught, labels = problem()
    told = [
        float(top_k_distillation(own, top_k_of(taught, k, TAU), labels, -100, TAU)[0])
        for k in range(1, WORDS + 1)
    ]
    assert told == sorted(told)
    assert told[0] > 0
    assert told[-1] == pytest.approx(float(distillation(own, taught, labels, -100, TAU)[0]))


def test_its_gradient_is_the_one_that_is_stated() -> None:
    own, taught, labels = problem()
    own.requires_grad_()
    kept = top_k_of(taught, 4, TAU)
    loss = top_k_distillation(own, kept, labels, -100, TAU)
    [found] = torch.autograd.grad(loss[0], own)
    p, q = (taught / TAU).softmax(-1), (own.detach() / TAU).softmax(-1)
    inside = torch.zeros_like(p, dtype=torch.bool).scatter(-1, kept.tokens, True)
    left, own_left = (x.masked_fill(inside, 0).sum(-1, keepdim=True) for x in (p, q))
    expected = TAU * torch.where(inside, q - p, q * (1 - left / own_left))
    expected[labels == -100] = 0
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-14)


def test_what_is_rounded_is_a_distribution_again() -> None:
    own, taught, labels = problem()
    kept = top_k_of(taught, 5, TAU)
    halved = TopK(kept.tokens, kept.log_probabilities.half(), kept.log_rest.float())
    same = top_k_distillation(taught, halved, labels, -100, TAU)[0]
    assert 0 <= float(same) < 1e-4, "a divergence is never less than nothing"
    found, exact = (top_k_distillation(own, x, labels, -100, TAU)[0] for x in (halved, kept))
    assert float(found) == pytest.approx(float(exact), rel=1e-2)


@pytest.mark.parametrize("bias", [False, True])
def test_a_chunk_at_a_time_it_is_as_exact(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    monkeypatch.setitem(by_hand._CHUNK_BYTES, "cpu", 5 * 4 * WORDS)
    monkeypatch.setattr(by_hand, "_FEWEST_ROWS", 1)
    torch.manual_seed(1)
    rows, head = torch.randn(2, 9, WIDTH).double(), nn.Linear(WIDTH, WORDS, bias=bias).double()
    _, taught, labels = problem()
    kept = top_k_of(taught, 5, TAU)

    def results(dtype: torch.dtype, *, chunked: bool) -> dict[str, Tensor]:
        hidden = rows.detach().clone().to(dtype).requires_grad_()
        own = nn.Linear(WIDTH, WORDS, bias=bias).to(dtype)
        own.load_state_dict(head.state_dict())
        given = TopK(kept.tokens, kept.log_probabilities.to(dtype), kept.log_rest.to(dtype))
        with Largest() as largest:
            parts = (
                called_top_k_distillation(hidden, own, given, labels, TAU, whole_bytes=0)
                if chunked
                else top_k_distillation(own(hidden), given, labels, -100, TAU)
            )
            (0.6 * parts[0] + 0.3 * parts[1]).backward()
        if chunked:
            assert largest.numel < WORDS * labels.numel(), "no logits are whole"
        named = {n: p.grad for n, p in own.named_parameters()}
        return {"parts": parts.detach(), "hidden": hidden.grad, **named}  # type: ignore[dict-item]

    exact = results(torch.float64, chunked=False)
    assert_as_exact(
        results(torch.float32, chunked=True), results(torch.float32, chunked=False), exact
    )
    told = called_top_k(rows[0], head, 5, TAU)
    whole = top_k_of(head(rows[0]), 5, TAU)
    assert torch.equal(told.tokens, whole.tokens)
    assert torch.allclose(told.log_probabilities, whole.log_probabilities, rtol=1e-13)
    assert torch.allclose(told.log_rest, whole.log_rest, rtol=1e-13)
