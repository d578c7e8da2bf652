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


def adapted(variant: str = "default", **options: Any) -> Any:
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    return peft.get_peft_model(small_model(variant), config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["q_proj", "r_porj"]}, "target_modules: .*'r_porj'.*'r_proj'"),
        ({"target_modules": ["q_proj", "w1"]}, "'w1'.* It is a parameter: target_parameters"),
        (
            {"target_modules": [], "target_parameters": ["state_heads.w1", "state_heads.w9"]},
            "target_parameters: .*'state_heads.w9'",
        ),
        (
            {"target_modules": ["r_proj"], "modules_to_save": ["g_norm", "final_norm"]},
            "modules_to_save: .*'final_norm'",
        ),
        ({"target_modules": ["g_norm"]}, "HeadGroupNorm.* is not supported"),
        # before 0.20 peft's own words are those of a tuple
        (
            {"target_modules": [], "target_parameters": ["state_heads.w0"]},
            "1 dimensional|index out of range",
        ),
        ({"target_modules": ["nothing"]}, "not found in the base model"),
    ],
)
def test_what_adapters_cannot_reach_is_an_error(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, IndexError), match=said):
        adapted(**options)


def test_attention_is_not_there_to_be_adapted() -> None:
    with pytest.raises(ValueError, match="'q_proj'"):
        adapted("pure-rwkv7", target_modules=["r_proj", "q_proj"])


def test_injected_adapters_are_looked_at_too() -> None:
    model = small_model()
    assert not hasattr(model, "peft_config")
    config = peft.LoraConfig(target_modules=["q_proj", "zz_proj"])
    with pytest.raises(ValueError, match="'zz_proj'"):
        peft.inject_adapter_in_model(config, model)


def _plain_merged() -> Any:
    """What peft leaves of a module that does not look at adapters; its versions differ."""
    plain = torch.nn.Sequential(torch.nn.Linear(2, 2))
    return peft.PeftModel(plain, peft.LoraConfig(target_modules=["0"])).merge_and_unload()


REACHED: dict[str, dict[str, Any]] = {
    "projections and norms": {
        "target_modules": ["q_proj", "r_proj", "branch_proj"],
        "modules_to_save": ["g_norm", "group_norm", "input_layernorm"],
    },
    "low-rank parameters": {
        "target_modules": [],
        "target_parameters": ["state_heads.w1", "state_heads.a2", "cross_head.gate_weight"],
    },
}


@pytest.mark.parametrize("what", REACHED)
def test_all_that_is_reached_trains_is_saved_and_merges(what: str, tmp_path: Path) -> None:
    ids = torch.randint(1, 61, (2, 20), generator=torch.Generator().manual_seed(3))
    model = adapted(**REACHED[what])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in trained)
    optimizer.step()
    model.eval().save_pretrained(tmp_path / "adapters")
    again = peft.PeftModel.from_pretrained(small_model(), tmp_path / "adapters").eval()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        assert torch.equal(again(input_ids=ids).logits, expected)
        truth = exact(model, ids)
        merged = model.merge_and_unload()
        assert hasattr(merged, "peft_config") == hasattr(_plain_merged(), "peft_config")
        assert_as_near(merged(ids).logits, expected, truth)
        merged.save_pretrained(tmp_path / "merged")
        loaded = type(merged).from_pretrained(tmp_path / "merged").eval()
        assert torch.equal(loaded(ids).logits, merged(ids).logits)
    if "modules_to_save" in REACHED[what]:
        before = dict(small_model().named_parameters())
        moved = [n for n, p in loaded.named_parameters() if not torch.equal(p, before[n])]
        assert any(name.endswith("g_norm.weight") for name in moved)
