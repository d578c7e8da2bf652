"""transformers' ``resize_token_embeddings``: what was known stays, and every way on follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model.small import small_model
from wuneng import WuNengForCausalLM
from wuneng.model.head_loss import ask, summed_cross_entropy

OLD = 61
SIZES = [80, 40]
CASES = [
    (variant, tied, size)
    for variant, tied in (("default", True), ("default", False), ("pure-rwkv7", False))
    for size in SIZES
]


def resized(variant: str, tied: bool, size: int) -> tuple[Any, Any, torch.Tensor]:
    """A model, the same with another vocabulary, and tokens that reach to the end of it."""
    plain = small_model(variant, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = small_model(variant, tie_word_embeddings=tied)
    model.resize_token_embeddings(size)
    ids = torch.randint(1, size, (2, 14), generator=torch.Generator().manual_seed(1))
    ids[0, 3] = size - 1
    return plain, model, ids


@pytest.mark.parametrize(("variant", "tied", "size"), CASES)
def test_what_was_known_stays(variant: str, tied: bool, size: int) -> None:
    plain, model, ids = resized(variant, tied, size)
    assert model.config.vocab_size == size
    assert model.get_output_embeddings().out_features == size
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    known = min(size, OLD)
    with torch.no_grad():
        before = plain(ids % known, use_cache=False).logits
        after = model(ids % known, use_cache=False).logits
    assert after.shape[-1] == size
    assert torch.equal(after[..., :known], before[..., :known])
    # New rows are drawn about the mean of the old ones, with their spread.
    rows = model.model.embed_tokens.weight.detach()
    assert torch.equal(rows[:known], plain.model.embed_tokens.weight[:known])
    if size > OLD:
        assert rows[OLD:].isfinite().all()
        assert (rows[OLD:] - rows[:OLD].mean(0)).abs().max() < rows[:OLD].std()


@pytest.mark.parametrize(("variant", "tied", "size"), CASES)
def test_it_saves_loads_and_writes(variant: str, tied: bool, size: int, tmp_path: Path) -> None:
    _, model, ids = resized(variant, tied, size)
    model.save_pretrained(tmp_path)
    again = WuNengForCausalLM.from_pretrained(tmp_path).eval()
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    settings |= {"eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    written = model.generate(ids, use_cache=False, **settings)
    assert torch.equal(model.generate(ids, use_cache=True, **settings), written)
    assert torch.equal(again.generate(ids, use_cache=True, **settings), written)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("variant", "tied", "size"), CASES)
def test_its_losses_are_over_the_new_vocabulary(variant: str, tied: bool, size: int) -> None:
    _, model, ids = resized(variant, tied, size)
    model.requires_grad_(True).train()
    logits = model(ids, use_cache=False).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss = model(ids, labels=ids, use_cache=False).loss
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    labels = F.pad(ids[:, 1:], (0, 1), value=-100)
    # The logits made whole, and a chunk at a time.
    for whole_bytes in (1 << 30, 0):
        summed = ask(model, ids, None, summed_cross_entropy(labels, whole_bytes))
        mean = float(summed.detach()) / ids[:, 1:].numel()
        assert mean == pytest.approx(float(expected.detach()), rel=1e-5)
    summed.backward()
    gradient = model.lm_head.weight.grad
    assert gradient.shape[0] == size
    assert gradient[size - 1].abs().sum() > 0


def test_a_multiple_is_asked_for() -> None:
    model = small_model()
    model.resize_token_embeddings(70, pad_to_multiple_of=64)
    assert model.config.vocab_size == model.lm_head.weight.shape[0] == 128
