"""Families whose layers are wired otherwise than a Llama's: same logits, the same files back."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Phi3ForCausalLM

from tests.convert.sources import assert_same_bits, save_source, tensors_of
from wuneng.convert import GraftSettings, Request, convert
from wuneng.convert.architectures import does_not_fit
from wuneng.convert.families import FAMILIES, OWN_WIRING, WIRING
from wuneng.errors import ModelError
from wuneng.evaluate.scoring import CallLimits, score_answers
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.model.head_loss import summed_cross_entropy, token_scores
from wuneng.model.pretrained import load_whole_model

THREE_HEADS = {"num_attention_heads": 3, "num_key_value_heads": 1}
FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
}
GRANITE = {
    "kind": "granite",
    "embedding_multiplier": 3.3,
    "attention_multiplier": 0.11,
    "residual_multiplier": 0.22,
    "logits_scaling": 1.7,
}
#: Of odd shapes; every field that only this family has is away from what changes nothing.
SOURCES: dict[str, dict[str, Any]] = {
    "granite-three-heads": GRANITE | THREE_HEADS,
    "granite-biases-head14": GRANITE
    | {"head_dim": 14, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen3-moe": {
        "kind": "qwen3_moe",
        **THREE_HEADS,
        "head_dim": 10,
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "use_sliding_window": True,
        "sliding_window": 9,
    },
    "smollm3-windows": {
        "kind": "smollm3",
        **THREE_HEADS,
        "num_hidden_layers": 4,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 7,
        "pad_token_id": 0,
    },
    "smollm3-biases-tied": {
        "kind": "smollm3",
        "no_rope_layers": [0, 1],
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    "phi3-window-head10": {"kind": "phi3", "sliding_window": 9, "head_dim": 10, "pad_token_id": 0},
    "phi3-partial-tied": {
        "kind": "phi3",
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
        },
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    "phi3-longrope": {  # whose factors change while the probe is generated
        "kind": "phi3",
        **THREE_HEADS,
        "original_max_position_embeddings": 40,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 500.0,
            "short_factor": [1.0 + n / 10 for n in range(4)],
            "long_factor": [2.0 + n for n in range(4)],
            "partial_rotary_factor": 0.5,
        },
        "pad_token_id": 0,
    },
    "olmo2-three-heads": {"kind": "olmo2", **THREE_HEADS, "attention_bias": True},
    "olmo2-yarn-head10": {"kind": "olmo2", "head_dim": 10, "rope_parameters": YARN},
    "olmo3": {
        "kind": "olmo3",
        **THREE_HEADS,
        "layer_types": [SLIDING, FULL],
        "sliding_window": 7,
        "rope_parameters": {
            FULL: YARN,
            SLIDING: {"rope_type": "default", "rope_theta": 500.0},
        },
    },
    "gemma2": {
        "kind": "gemma2",
        **THREE_HEADS,
        "head_dim": 10,
        "sliding_window": 7,
        "query_pre_attn_scalar": 24,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "gemma3-head14-linear": {
        "kind": "gemma3_text",
        "num_key_value_heads": 1,
        "head_dim": 14,
        "sliding_window": 7,
        "layer_types": [SLIDING, FULL],
        "query_pre_attn_scalar": 24,
        "rope_parameters": {
            FULL: {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
            SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        },
        "tie_word_embeddings": True,
    },
    "gemma3-capped": {
        "kind": "gemma3_text",
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "num_hidden_layers": 7,
        "sliding_window": 7,
        "final_logit_softcapping": 3.0,
    },
}
#: Written by transformers of its own accord, or said a second time in another field.
NOT_COMPARED = {"head_dim", "_name_or_path", "transformers_version", "no_rope_layer_interval"}
IDS = torch.arange(46).view(2, 23) * 5 % 97


class Converted(NamedTuple):
    name: str
    source: Path
    grafted: Path
    record: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(SOURCES[self.name]["kind"])


#: How transformers' own class reads a text anew that has outgrown longrope's short factors.
_REREADING = inspect.getsource(Phi3ForCausalLM.prepare_inputs_for_generation)


@pytest.fixture(scope="module", params=SOURCES)
def converted(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A source in bfloat16 (so that float32 is compared as well), and what was made of it."""
    if request.param == "phi3-longrope" and "next_sequence_length" not in _REREADING:
        pytest.skip("this transformers' Phi-3 forgets the text where its factors change")
    place = tmp_path_factory.mktemp("converted")
    source = save_source(place / "source", **SOURCES[request.param], dtype=torch.bfloat16)
    record = convert(Request(str(source), place / "grafted")).record
    return Converted(request.param, source, place / "grafted", record)


def _load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_whole_model(directory, dtype=dtype).eval()


def test_every_family_of_the_kind_is_here() -> None:
    plain = {"llama", "qwen2", "qwen3", "mistral"}  # of test_transformer
    others = {name for name, family in FAMILIES.items() if family.role == "attention"} - plain
    assert {source["kind"] for source in SOURCES.values()} == others


def test_the_logits_are_the_sources_and_the_way_back_is_its_files(
    converted: Converted, tmp_path: Path
) -> None:
    record = converted.record
    ways = {(check["name"], check["dtype"]) for check in record["checks"]}
    asked = ("full forward", "left padding", "cache, token by token", "generate()")
    assert ways == {(way, dtype) for way in asked for dtype in ("float32", "bfloat16")}
    assert record["argmax_agreement"] == 1.0
    outcome = convert(Request(str(converted.grafted), tmp_path / "back", to="transformers"))
    assert outcome.record["what"] == f"wuneng to stock {converted.kind}"
    assert_same_bits(tensors_of(converted.source), tensors_of(tmp_path / "back"))
    before, after = (
        AutoConfig.from_pretrained(p).to_dict() for p in (converted.source, tmp_path / "back")
    )
    for field in {*before, *after} - NOT_COMPARED:
        assert before.get(field) == after.get(field), field


def test_every_field_of_the_family_reaches_the_model(converted: Converted) -> None:
    """Left at what a Llama has, each would give other logits, if only by their rounding."""
    model = _load(converted.grafted, torch.bfloat16)
    assert type(model) is WuNengForCausalLM
    family = FAMILIES[converted.kind]
    fields = [
        field
        for field in (*WIRING, *OWN_WIRING)
        if getattr(model.config, field) != getattr(WuNengConfig, field)
    ]
    assert {*fields} >= {*family.fields, *family.wiring} - {"attention_softcap", "logit_softcap"}
    with torch.no_grad():
        right = model(IDS).logits
        for field in {*fields} - {"longrope_recompute", "num_experts", "moe_intermediate_size"}:
            config = WuNengConfig.from_dict(model.config.to_dict())
            setattr(config, field, getattr(WuNengConfig, field))
            other = WuNengForCausalLM(config).to(torch.bfloat16).eval()
            try:
                other.load_state_dict(model.state_dict())
            except RuntimeError:
                continue  # it decides which parts there are
            assert not torch.equal(other(IDS).logits, right), field


def test_what_reads_the_head_sees_the_models_own_logits(converted: Converted) -> None:
    """Losses and scores that never make the logits whole, beside those of the source's class."""
    stock, ours = _load(converted.source), _load(converted.grafted)
    labels = torch.cat([IDS[:, 1:], IDS.new_full((2, 1), -100)], dim=1)
    with torch.no_grad():
        wanted = stock(IDS, labels=IDS).loss
        assert torch.allclose(ours(IDS, labels=IDS).loss, wanted, rtol=1e-5)
        for whole_bytes in (0, 1 << 30):
            total = ours(IDS, head_loss=summed_cross_entropy(labels, whole_bytes)).loss
            assert torch.allclose(total / (labels >= 0).sum(), wanted, rtol=1e-5)
        nats = ours(IDS, head_loss=token_scores(labels)).loss[0]
        assert torch.allclose(nats.sum() / (labels >= 0).sum(), wanted, rtol=1e-5)
        logs = stock(IDS[:1]).logits[0].log_softmax(-1)
    limits = CallLimits.on(torch.device("cpu"), None)
    rows = IDS[0].tolist()
    asked = [(rows[:20], rows[20:]), (rows[:9], rows[9:11])]
    (score, _), _ = score_answers(ours, asked, 40, limits)
    assert score == pytest.approx(sum(float(logs[t, rows[t + 1]]) for t in (19, 20, 21)), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"residual_multiplier": 0.5}, "residual_multiplier is 0.5, a Llama has 1.0"),
        ({"norm_placement": "post"}, "norm_placement is 'post', a Llama has 'pre'"),
        ({"attention_softcap": 9.0}, "attention_softcap is 9.0, a Llama has None"),
        ({"rope_layers": [1]}, "has rotary positions in every layer"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "turns whole heads",
        ),
        (
            {
                "sliding_window": 4,
                "sliding_rope_parameters": {"rope_type": "default", "rope_theta": 10.0},
            },
            "has one set of rotary positions for all layers",
        ),
    ],
)
def test_what_fits_no_llama_is_said(changes: dict[str, Any], reason: str) -> None:
    config = WuNengConfig(num_state_heads=0, cross_head="none", **changes)
    assert does_not_fit(config, FAMILIES["llama"]) == reason


def test_a_scale_that_gemma_cannot_state_fits_another_family() -> None:
    plain: dict[str, Any] = {"num_state_heads": 0, "cross_head": "none", "qk_norm": False}
    config = WuNengConfig(**plain, **FAMILIES["gemma2"].wiring, attention_multiplier=0.3)
    assert "not 1 over the root of a whole number" in does_not_fit(config, FAMILIES["gemma2"])
    granite = WuNengConfig(**plain, residual_multiplier=0.5)
    assert does_not_fit(granite, FAMILIES["granite"]) == ""


def test_a_model_that_speaks_takes_its_code_along(tmp_path: Path) -> None:
    """Its modelling code needs nothing of this package, whatever the family was."""
    source = save_source(tmp_path / "source", **SOURCES["gemma3-head14-linear"])
    graft = GraftSettings(state_heads=2, state_kind="gated_delta", cross_head="none")
    record = convert(Request(str(source), tmp_path / "grafted", graft=graft)).record
    assert record["max_abs_logit_difference"] == 0.0
    model = _load(tmp_path / "grafted")
    for block in model.model.layers:
        torch.nn.init.normal_(block.cross_head.branch_proj.weight, std=0.1)
    model.save_pretrained(tmp_path / "speaking")
    outcome = convert(Request(str(tmp_path / "speaking"), tmp_path / "out", to="transformers"))
    assert outcome.record["what"] == "wuneng to transformers with modelling code"
    assert outcome.record["argmax_agreement"] == 1.0


def test_soft_caps_are_never_left_out_in_silence(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", **SOURCES["gemma2"])
    convert(Request(str(source), tmp_path / "grafted", verify=False))
    model = _load(tmp_path / "grafted")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="does not support"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "grafted", attn_implementation="sdpa")
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=r"attention_softcap is 2.0, got 'sdpa', which has no"):
        model(IDS)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": -4}, "query_pre_attn_scalar must be a positive"),
        ("smollm3-windows", {"no_rope_layers": [1, 0]}, "no_rope_layers must be a list of 4 of 0"),
        ("phi3-window-head10", {"num_key_value_heads": 4}, "qkv_proj.weight has shape"),
    ],
)
def test_broken_fields_are_named(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = save_source(tmp_path / "source", **SOURCES[name])
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=message):
        convert(Request(str(source), tmp_path / "out"))
