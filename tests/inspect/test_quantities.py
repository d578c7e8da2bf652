"""Each quantity against another way of computing it, in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.model.small import small_model
from wuneng.controls.switch import blocks_of
from wuneng.inspect.quantities import (
    effective_rank,
    entropy,
    half_life,
    in_context_rate,
    state_path,
    state_share,
)
from wuneng.inspect.recording import record
from wuneng.ops import wkv7


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_half_life_is_when_half_is_left() -> None:
    """Apply the mean decay so often, and half of the state is left."""
    w = -drawn(20, 3, 5).abs()
    found = half_life(w)
    per_channel = np.empty((3, 5))
    for head in range(3):
        for channel in range(5):
            mean = math.exp(float(w[:, head, channel].mean()))
            per_channel[head, channel] = math.log(0.5, mean)
    np.testing.assert_allclose(found.shortest, per_channel.min(1), rtol=1e-12)
    np.testing.assert_allclose(found.median, np.median(per_channel, axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.longest, per_channel.max(1), rtol=1e-12)
    even = half_life(w[..., :4]).median
    np.testing.assert_allclose(even, np.median(per_channel[:, :4], axis=1), rtol=1e-12)
    never = half_life(torch.zeros(4, 1, 2))
    assert [float(one) for one in never] == [math.inf] * 3


def test_rate_is_what_a_write_corrects() -> None:
    """A state that is read where it was just corrected has lost that share of what was there."""
    key = torch.nn.functional.normalize(drawn(4), dim=0)
    S, beta = drawn(4, 4, seed=1), 1.7
    b = beta * key
    after = S + torch.outer(S @ -key, b)
    torch.testing.assert_close(after @ key, (1 - beta) * (S @ key))
    assert float(in_context_rate(b.view(1, 1, 4))) == pytest.approx(beta)
    rates = torch.tensor([0.1, 0.4, 0.9, 1.6], dtype=torch.float64)
    expected = math.sqrt(sum(float(r * c) ** 2 for r, c in zip(rates, key, strict=True)))
    assert float(in_context_rate((rates * key).view(1, 1, 4))) == pytest.approx(expected)


def test_effective_rank_counts_directions() -> None:
    turned = torch.linalg.qr(drawn(6, 6)).Q
    assert float(effective_rank(turned)) == pytest.approx(6)
    assert float(effective_rank(torch.outer(drawn(6), drawn(6, seed=1)))) == pytest.approx(1)
    assert float(effective_rank(torch.zeros(6, 6))) == 0
    S = drawn(2, 6, 6)
    for one, found in zip(S.numpy(), effective_rank(S).tolist(), strict=True):
        values = np.sqrt(np.linalg.eigvalsh(one @ one.T).clip(0))
        share = values / values.sum()
        assert found == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_states_are_those_that_the_operator_ends_with() -> None:
    inputs = [drawn(1, 9, 2, 4, seed=n) for n in range(6)]
    inputs[1] = -inputs[1].abs()
    path = state_path([x[0] for x in inputs], [3, 9])
    ends = [
        wkv7(*(x[:, :t] for x in inputs), backend="reference")[1][0].numpy() for t in range(1, 10)
    ]
    before = [np.zeros_like(ends[0]), *ends]

    def cosine(first: Any, second: Any) -> float:
        lengths = np.sqrt((first**2).sum() * (second**2).sum())
        return float((first * second).sum() / lengths) if lengths else 0.0

    for head in range(2):
        for t, S in enumerate(ends):
            expected = cosine(S[head], before[t][head])
            assert float(path.turn[t, head]) == pytest.approx(expected, abs=1e-12)
        for place, token in enumerate((3, 9)):
            S = ends[token - 1][head]
            assert float(path.norm[place, head]) == pytest.approx(np.sqrt((S**2).sum()))
            rank = float(effective_rank(torch.from_numpy(S)))
            assert float(path.rank[place, head]) == pytest.approx(rank)
        # principal components by the singular values of the centred path
        centred = np.stack([S[head].ravel() for S in ends])
        left, values, _ = np.linalg.svd(centred - centred.mean(0), full_matrices=False)
        expected = left[:, 0] / np.abs(left[:, 0]).max() * np.sign(left[-1, 0])
        np.testing.assert_allclose(path.coordinate[:, head], expected, atol=1e-9)
        share = values[0] ** 2 / (values**2).sum()
        assert float(path.coordinate_share[head]) == pytest.approx(share)
        crossings = sum(a * b < 0 for a, b in pairwise(expected))
        assert int(path.flips[head]) == crossings
    assert path.places == [3, 9]


def test_a_state_that_never_moves_has_no_coordinate() -> None:
    path = state_path([torch.zeros(5, 1, 3)] * 6, [5])
    assert path.coordinate.flatten().tolist() == [0.0] * 5
    assert path.coordinate_share.tolist() == [0.0]
    assert path.flips.tolist() == [0]
    assert path.turn.flatten().tolist() == [0.0] * 5


def test_shares_and_entropies() -> None:
    assert state_share(torch.zeros(3, 1, 2), torch.ones(3, 1, 2)).tolist() == [1]
    ones = torch.ones(3, 1, 2)
    assert state_share(3 * ones, ones).tolist() == [pytest.approx(0.1)]
    weights = torch.full((1, 4, 4), 0.25)
    assert entropy(weights).flatten().tolist() == pytest.approx([math.log(4)] * 4)
    assert entropy(torch.eye(4)[None]).flatten().tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", ["gated", "additive", "concat"])
def test_gates_are_those_of_the_middle_heads(kind: str) -> None:
    """Solved for from what the module makes of its inputs, not computed again."""
    model = small_model(cross_head=kind, num_attention_heads=2, num_state_heads=2).double()
    tokens = torch.randint(0, 61, (12,), generator=torch.Generator().manual_seed(0))
    seen: list[Any] = []
    for block in blocks_of(model):
        mixing = block.cross_head
        formula = mixing.formula

        def watch(A: Tensor, grouped: Tensor, R: Tensor, run: Any = formula) -> Any:
            out = run(A, grouped, R)
            # what is left of Mid without the state, and without attention
            seen.append((grouped, R, out[1], run(A, 0 * grouped, R)[1], run(A, grouped, 0 * R)[1]))
            return out

        mixing.operator = None  # the plain formula runs
        mixing.formula = watch
    records = record(model, tokens)
    assert len(records) == len(seen) == 2
    for found, (grouped, R, middle, only_state, only_attention) in zip(records, seen, strict=True):
        assert found.middle is not None
        assert found.middle.kind == kind
        assert found.middle.share is not None
        if kind == "gated":
            state = (grouped - middle) / (grouped - R)
            assert found.middle.gate is not None
            torch.testing.assert_close(found.middle.gate, state.mean(-1)[0])
            terms = (1 - state) * grouped, state * R
        else:
            assert found.middle.gate is None
            terms = only_attention, only_state
            torch.testing.assert_close(sum(terms), middle)
        energy = [(x[0] ** 2).sum((0, 2)) for x in terms]
        torch.testing.assert_close(found.middle.share, energy[1] / (energy[0] + energy[1]))


@pytest.mark.parametrize("variant", ["gqa-qk-norm-bias", "sliding"])
def test_attention_entropy_is_that_of_its_scores(variant: str) -> None:
    """Softmax by hand, from what enters attention's own function."""
    import transformers.models.llama.modeling_llama as llama

    model = small_model(variant).double()
    tokens = torch.randint(0, 61, (13,), generator=torch.Generator().manual_seed(0))
    seen: list[Any] = []
    original = llama.eager_attention_forward

    def watch(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **named: Any) -> Any:
        seen.append((q[0], k[0], named["scaling"], named["sliding_window"]))
        return original(module, q, k, v, mask, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wuneng.model.block.eager_attention_forward", watch)
        records = record(model, tokens)
    assert len(seen) == len(records)
    for found, (q, k, scaling, window) in zip(records, seen, strict=True):
        assert found.window == window
        assert found.entropy is not None
        k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
        for head in range(q.shape[0]):
            for t in range(13):
                first = max(0, t + 1 - window) if window else 0
                scores = (k[head, first : t + 1] @ q[head, t]) * scaling
                p = scores.exp() / scores.exp().sum()
                expected = float(-(p * p.log()).sum())
                assert float(found.entropy[t, head]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("variant", ["default", "snapshots", "pure-rwkv7", "paper"])
def test_watching_changes_nothing(variant: str) -> None:
    model = small_model(variant)
    tokens = torch.randint(0, 61, (20,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens[None]).logits
        record(model, tokens)
        assert torch.equal(model(tokens[None]).logits, before)
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(IndexError):
        record(model, torch.tensor([61]))
    assert model.config._attn_implementation == "sdpa"
    assert all(b.state_heads is None or b.state_heads.recurrence is None for b in blocks_of(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
