"""``training.compile``: equal layers share one compiled graph, and compute what they did."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.precision import assert_as_exact
from wuneng.distributed.wrapping import blocks
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.ops import using
from wuneng.train.compiled_blocks import compile_blocks

IDS = torch.arange(24).view(2, 12) % 11


def small() -> WuNengForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 10, "num_attention_heads": 2}
    return WuNengForCausalLM(WuNengConfig(vocab_size=11, num_state_heads=1, **shape)).train()


def gradients(model: WuNengForCausalLM) -> list[torch.Tensor]:
    ids = IDS
    model(ids, labels=ids, use_cache=False).loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_equal_layers_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: compiled(forward, backend=counter))
    torch._dynamo.reset()
    model, plain, exact = small(), small(), small().double()
    compile_blocks(model)
    assert len(blocks(model)) == 10  # more than the eight graphs that torch allows a function
    assert_as_exact(gradients(model), gradients(plain), gradients(exact))
    assert counter.frame_count == 1


def test_validation_runs_layers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("compiled code in validation")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    model, plain = small().eval(), small().eval()
    compile_blocks(model)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    with pytest.raises(AssertionError, match="in validation"):
        model.train()(IDS, use_cache=False)


def test_a_copy_computes_with_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: compiled(forward, backend="eager"))
    model, plain = small(), small()
    compile_blocks(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for p in [*copied.parameters(), *plain.parameters()]:
            p.mul_(1.5)
        before = model(IDS, use_cache=False).logits
        assert torch.equal(copied(IDS, use_cache=False).logits, plain(IDS, use_cache=False).logits)
        assert copied.double()(IDS, use_cache=False).logits.dtype == torch.float64
        assert torch.equal(model(IDS, use_cache=False).logits, before)


def test_the_reference_runs_nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("compiled code in the reference")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    model, plain = small(), small()
    compile_blocks(model)
    with using("reference"), torch.no_grad():
        found, expected = (m(IDS, use_cache=False).logits for m in (model, plain))
    assert torch.equal(found, expected)
