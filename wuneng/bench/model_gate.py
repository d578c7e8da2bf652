"""Correctness of whole models before their speed, over ``MODEL_TOKENS`` tokens.

Logits of a prompt, logits of tokens decoded one by one, or gradients of every parameter, against
the same weights by the plain formulas (``using("reference")``) and eager attention. Another
project's model, which has no such path, is compared with its weights in ours (:class:`Twin`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.bench.gate import GateResult, judge, relative_error
from wuneng.model.call_arguments import cache_of, with_cache
from wuneng.model.head_loss import ask, summed_cross_entropy
from wuneng.ops import using

__all__ = ["Twin", "decode_gate", "gradient_gate", "prefill_gate"]

MODEL_TOKENS = 128
_SAME_MODEL = "the same weights through the token loop and eager attention"


@dataclass(frozen=True)
class Twin:
    """Another project's weights in our model, which has a reference to compare with."""

    model: Any
    """Float32, on the peer's device."""
    renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    """The peer's tensors (weights or their gradients), by our names and in our shapes."""
    name: str


@contextmanager
def _reference_of(model: Any, twin: Twin | None) -> Iterator[Any]:
    """A model of the same weights, run by the plain formulas and eager attention."""
    reference = model if twin is None else twin.model
    attention = reference.config._attn_implementation
    reference.set_attn_implementation("eager")
    try:
        with using("reference"):
            yield reference
    finally:
        reference.set_attn_implementation(attention)


def _tokens(model: Any, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    return ids.to(next(model.parameters()).device)


@torch.no_grad()
def prefill_gate(row: Any, model: Any, twin: Twin | None = None) -> GateResult:
    """Logits of every position."""
    ids = _tokens(model, min(row.seq_len, MODEL_TOKENS))
    found = model(input_ids=ids).logits
    with _reference_of(model, twin) as reference:
        return _judge_logits(row, found, lambda m: m(input_ids=ids).logits, reference, twin)


@torch.no_grad()
def decode_gate(row: Any, model: Any, twin: Twin | None = None, steps: int = 4) -> GateResult:
    """Logits of the last tokens, decoded one by one, against a full forward."""
    ids = _tokens(model, max(steps + 1, min(row.seq_len, MODEL_TOKENS)))
    out = model(input_ids=ids[:, :-steps], use_cache=True)
    found = []
    for position in range(ids.shape[1] - steps, ids.shape[1]):
        token = ids[:, position : position + 1]
        out = model(input_ids=token, use_cache=True, **with_cache(cache_of(out), model))
        found.append(out.logits)
    with _reference_of(model, twin) as reference:
        last = torch.cat(found, 1)
        logits = partial(_last_logits, ids, steps)
        return _judge_logits(row, last, logits, reference, twin)


def _last_logits(ids: Tensor, steps: int, model: Any) -> Tensor:
    logits: Tensor = model(input_ids=ids).logits[:, -steps:]
    return logits


def _judge_logits(
    row: Any,
    found: Tensor,
    logits: Callable[[Any], Tensor],
    reference: Any,
    twin: Twin | None,
) -> GateResult:
    """``found`` against ``logits(reference)``, and that against float64 if they differ."""
    expected = logits(reference)

    def lost() -> dict[str, float]:
        return {"logits": relative_error(expected, logits(copy.deepcopy(reference).double()))}

    errors = {"logits": relative_error(found, expected)}
    name = _SAME_MODEL if twin is None else twin.name
    return judge(row, errors, found.dtype, reference=name, lost=lost)


def gradient_gate(
    row: Any, model: nn.Module, dtype: torch.dtype, twin: Twin | None = None
) -> GateResult:
    """Gradients of every parameter, over half as many tokens: the loop's backward is slow."""
    ids = _tokens(model, min(row.seq_len, MODEL_TOKENS // 2))
    inputs, labels = ids[:, :-1], ids[:, 1:]
    # In chunks even where few logits are made: the sizes that are timed may have many.
    wanted = summed_cross_entropy(labels, whole_bytes=0)

    def gradients(of: Any, autocast: bool) -> dict[str, Tensor]:
        of.zero_grad(set_to_none=True)
        with torch.autocast(ids.device.type, dtype=dtype, enabled=autocast):
            loss = ask(of, inputs, None, wanted)
        (loss / labels.numel()).backward()
        return {n: p.grad for n, p in of.named_parameters() if p.grad is not None}

    rounded = dtype != torch.float32
    found = gradients(model, rounded)
    covered = None
    if twin is not None:
        covered = twin.renamed(dict(model.named_parameters()))
        found = twin.renamed(found)
    name = _SAME_MODEL if twin is None else twin.name
    with _reference_of(model, twin) as reference:
        expected = gradients(reference, rounded and twin is None)
        if covered is not None:
            expected = {name: g for name, g in expected.items() if name in covered}
        errors = _gradient_errors(found, expected)

        def lost() -> dict[str, float]:
            exact = gradients(copy.deepcopy(reference).double(), False)
            return _gradient_errors(expected, {name: exact[name] for name in expected})

        verdict = judge(row, errors, dtype, gradients=True, reference=name, lost=lost)
    model.zero_grad(set_to_none=True)
    return verdict


def _gradient_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each of ``expected`` relative to the largest entry of all of them."""
    norm = torch.cat([g.double().flatten() for g in expected.values()]).abs().max().item()
    return {
        f"gradient of {name}": (found[name].double() - g.double()).abs().max().item() / norm
        for name, g in expected.items()
    }
