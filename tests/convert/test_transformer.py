"""Transformers gain silent heads: same logits to the last bit, same text, every tensor kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.convert.sources import assert_same_bits, save_source, tensors_of
from wuneng import WuNengForCausalLM
from wuneng.convert import GraftSettings, Request, convert
from wuneng.errors import InputError
from wuneng.ops import using

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
MIXED = ["full_attention", "sliding_attention"]

#: Each with an odd head size, grouped keys, biases, windows or rotary scaling of its own.
SOURCES: dict[str, dict[str, Any]] = {
    "llama-bias-head14": {
        "kind": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 14,
    },
    "llama-one-key-head": {"kind": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama-dynamic": {
        "kind": "llama",
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    },
    "llama3": {
        "kind": "llama",
        "rope_parameters": LLAMA3
        | {"high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    },
    "qwen2": {"kind": "qwen2", "num_attention_heads": 6},
    "qwen2-last-layer-slides": {
        "kind": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    },
    "qwen2-window-not-used": {"kind": "qwen2", "use_sliding_window": False, "sliding_window": 5},
    "qwen3-head20": {"kind": "qwen3", "head_dim": 20, "tie_word_embeddings": True},
    "qwen3-layer-types": {
        "kind": "qwen3",
        "head_dim": 6,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 9,
        "layer_types": MIXED,
        "rope_parameters": YARN | {"original_max_position_embeddings": 16},
    },
    "mistral-window7-head10": {"kind": "mistral", "sliding_window": 7, "head_dim": 10},
    "mistral-no-window": {
        "kind": "mistral",
        "sliding_window": None,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    },
}


@pytest.fixture(autouse=True)
def module_by_module() -> Iterator[None]:
    """A decoded token in one call of C adds up in another order than the source, which its rounding
    shows (``test_decoded_proof.py``); everything else here has to be the source's to the bit."""
    with using("chunked"):
        yield


def _load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.mark.parametrize("name", SOURCES)
def test_random_sources_keep_their_logits(name: str, tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", **SOURCES[name])
    outcome = convert(Request(str(source), tmp_path / "out"))
    assert outcome.record["max_abs_logit_difference"] == 0.0
    assert outcome.record["argmax_agreement"] == 1.0
    before, after = _load(source), _load(tmp_path / "out")
    assert type(after) is WuNengForCausalLM
    ids = torch.randint(0, 97, (3, 41), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(before(ids).logits, after(ids).logits)
    stored, kept = tensors_of(source), tensors_of(tmp_path / "out")
    assert_same_bits(stored, {name: kept[name] for name in stored})
    assert len(kept) == len(stored) + outcome.record["tensors"]["new"]
    assert outcome.record["added_parameters"] == sum(
        tensor.numel() for name, tensor in kept.items() if name not in stored
    )


@pytest.mark.parametrize("model", ["stories260k", "tinystories_656k"])
def test_trained_models_keep_logits_and_text_with_every_cross_head(
    model: str, shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "models" / model
    before = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    start = torch.tensor([[1]])
    settings = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = before.generate(start, **settings)
    text = tokenizer("One day a little girl found a red ball", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = before(text).logits
    if model == "stories260k":
        written = (source / "expected_greedy.txt").read_text(encoding="utf-8").strip()
        assert written.startswith(tokenizer.decode(expected[0], skip_special_tokens=True).strip())
    for kind in ("gated", "concat", "additive", "none"):
        out = tmp_path / kind
        graft = GraftSettings(cross_head=kind, state_heads=4)
        outcome = convert(Request(str(source), out, graft=graft, dtype="fp32"))
        assert outcome.record["max_abs_logit_difference"] == 0.0
        after = _load(out)
        assert after.config.cross_head == kind
        assert after.dtype == torch.float32
        with torch.no_grad():
            assert (after(text).logits - logits).abs().max().item() == 0.0
        assert torch.equal(after.generate(start, **settings), expected)
        again = AutoTokenizer.from_pretrained(out)
        assert (
            again("Once upon a time, café!")["input_ids"]
            == (tokenizer("Once upon a time, café!")["input_ids"])
        )


def test_every_option_reaches_the_model(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", num_hidden_layers=3)
    graft = GraftSettings(
        state_heads=3,
        state_layers=(2, 0),
        state_head_dim=16,
        cross_head="none",
        snapshots=2,
        key_source="own",
        value_source="attention_output",
    )
    convert(Request(str(source), tmp_path / "out", graft=graft, dtype="bf16", seed=5))
    config = _load(tmp_path / "out").config
    assert config.dtype == torch.bfloat16
    assert (config.num_state_heads, config.state_head_dim, config.snapshots) == (3, 16, 2)
    assert config.state_layers == [0, 2]
    assert (config.state_key_source, config.state_value_source) == ("own", "attention_output")
    tensors = tensors_of(tmp_path / "out")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert not any(name.startswith("model.layers.1.state_heads") for name in tensors)
    assert "model.layers.2.state_heads.snapshot_proj.weight" in tensors


def test_only_the_way_out_is_silent_and_gradients_reach_it(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    convert(Request(str(source), tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    silent = {n for n, p in model.named_parameters() if "cross_head" in n and not p.any()}
    assert {n.rpartition("cross_head.")[2] for n in silent} == {"branch_proj.weight", "gate_bias"}
    ids = torch.randint(0, 97, (2, 24))
    model(ids, labels=ids).loss.backward()
    assert all(block.cross_head.branch_proj.weight.grad.any() for block in model.model.layers)


def test_the_seed_decides_the_new_parameters(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    results = []
    for number, seed in enumerate((7, 7, 8)):
        out = tmp_path / str(number)
        convert(Request(str(source), out, seed=seed, verify=False))
        results.append(tensors_of(out))
    assert_same_bits(results[0], results[1])
    name = "model.layers.0.state_heads.r_proj.weight"
    assert not torch.equal(results[0][name], results[2][name])
    assert not torch.equal(results[0][name], results[0][name.replace("layers.0", "layers.1")])


def test_rounding_is_told_apart_from_conversion(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", "mistral", sliding_window=6)
    outcome = convert(Request(str(source), tmp_path / "out", dtype="bf16"))
    by_dtype = {(check.name, check.dtype): check for check in outcome.checks}
    assert {dtype for _, dtype in by_dtype} == {"bfloat16", "float32 to bfloat16"}
    rounding = by_dtype["rounding alone", "float32 to bfloat16"]
    assert rounding.max_abs_logit_difference > 0
    assert rounding.tolerance is None
    assert by_dtype["full forward", "bfloat16"].max_abs_logit_difference == 0.0
    assert outcome.record["max_abs_logit_difference"] == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sources_stay_as_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", "qwen2", dtype=dtype)
    outcome = convert(Request(str(source), tmp_path / "out"))
    assert {check.dtype for check in outcome.checks} == {
        "float32",
        str(dtype).removeprefix("torch."),
    }
    assert outcome.record["max_abs_logit_difference"] == 0.0
    stored, kept = tensors_of(source), tensors_of(tmp_path / "out")
    assert_same_bits(stored, {name: kept[name] for name in stored})
    assert {tensor.dtype for tensor in kept.values()} == {dtype}


def test_two_different_embeddings_win_over_a_configuration_that_ties_them(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    outcome = convert(Request(str(source), tmp_path / "out"))
    assert outcome.record["max_abs_logit_difference"] == 0.0
    assert _load(tmp_path / "out").config.tie_word_embeddings is False


def test_a_plain_wuneng_can_be_upgraded_and_one_with_state_cannot(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", "qwen3", head_dim=20)
    convert(Request(str(source), tmp_path / "plain", graft=GraftSettings(state_heads=0)))
    assert_same_bits(tensors_of(source), tensors_of(tmp_path / "plain"))
    graft = GraftSettings(state_heads=2, cross_head="concat")
    outcome = convert(Request(str(tmp_path / "plain"), tmp_path / "full", graft=graft))
    assert outcome.record["max_abs_logit_difference"] == 0.0
    assert outcome.record["tensors"]["new"] > 0
    with pytest.raises(InputError, match="has state heads already"):
        convert(Request(str(tmp_path / "full"), tmp_path / "more", graft=graft))


@pytest.mark.parametrize(
    ("graft", "message"),
    [
        (GraftSettings(state_heads=3), "--state-heads.*multiple of num_state_heads"),
        (GraftSettings(state_layers=(5,)), "--state-layers.*0..1"),
        (GraftSettings(cross_head="mixed"), "--cross-head.*additive, concat, gated"),
        (GraftSettings(state_head_dim=5, cross_head="gated"), "--state-head-dim.*head_dim"),
        (GraftSettings(key_source="mine"), "--key-source.*attention, own"),
    ],
)
def test_heads_that_do_not_fit(graft: GraftSettings, message: str, tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    with pytest.raises(InputError, match=message):
        convert(Request(str(source), tmp_path / "out", graft=graft))
    assert not (tmp_path / "out").exists()
