"""LoRA by peft: wrapped, saved and loaded, disabled and merged; what it computes is the sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.exactness import assert_as_near, exact
from tests.model.small import OTHER_KINDS, small_model

peft = pytest.importorskip("peft", reason="peft is not installed")

VARIANTS = ["default", "gate-and-value-residual", "snapshots", "pure-rwkv7", "mha", *OTHER_KINDS]
TARGETS = {
    "attention": ["q_proj", "v_proj"],
    "all": "all-linear",
    "state": ["r_proj", "branch_proj"],
}
CASES = [
    (variant, name)
    for variant in VARIANTS
    for name in TARGETS
    if not (name == "attention" and "pure" in variant)
    and not (name == "state" and variant in ("mha", "pure-rwkv7"))
]


def wrapped(variant: str, targets: Any) -> Any:
    """A small model with adapters that already say something."""
    torch.manual_seed(2)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(small_model(variant), config).eval()


@pytest.mark.parametrize(("variant", "name"), CASES)
def test_wrapped_equals_merged(variant: str, name: str) -> None:
    ids = torch.randint(1, 61, (2, 30))
    model = wrapped(variant, TARGETS[name])
    with torch.no_grad():
        adapted = model(input_ids=ids, use_cache=False).logits
        with model.disable_adapter():
            bare = model(input_ids=ids, use_cache=False).logits
        truth = exact(model, ids)
        assert torch.equal(bare, small_model(variant)(ids, use_cache=False).logits)
        merged = model.merge_and_unload()
        found = merged(ids, use_cache=False).logits
    assert (adapted - bare).abs().max() > 0.01 * bare.abs().max(), "the adapters say nothing"
    assert_as_near(found, adapted, truth)


@pytest.mark.parametrize("variant", ["default", "pure-rwkv7", *OTHER_KINDS])
def test_wrapped_models_decode_with_their_cache(variant: str) -> None:
    ids = torch.randint(1, 61, (2, 9))
    model = wrapped(variant, TARGETS["all"])
    settings: dict[str, Any] = {"max_new_tokens": 15, "do_sample": False, "pad_token_id": 0}
    settings |= {"eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    without = model.generate(input_ids=ids, use_cache=False, **settings)
    assert torch.equal(model.generate(input_ids=ids, use_cache=True, **settings), without)
    merged = model.merge_and_unload()
    assert torch.equal(merged.generate(ids, **settings), without)


def test_saved_adapters_come_back(tmp_path: Path) -> None:
    ids = torch.randint(1, 61, (2, 20))
    model = wrapped("default", TARGETS["all"])
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(small_model("default"), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
