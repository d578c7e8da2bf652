"""Configurations in the spelling that published checkpoints have: what is read out of them."""

from __future__ import annotations

from typing import Any

import pytest

from wuneng.convert.architectures import plain_fields
from wuneng.convert.graft import GraftSettings, grafted_config
from wuneng.convert.unsupported import check_supported

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 512,
    "attention_factor": 1.2,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
#: Configuration, and fields of the WuNeng that it becomes.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "phi-4-mini": (
        {
            "model_type": "phi3",
            "partial_rotary_factor": 0.75,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 9,
                "long_factor": [2.0] * 9,
            },
            "original_max_position_embeddings": 512,
            "sliding_window": 262144,
            "resid_pdrop": 0.0,
            "tie_word_embeddings": True,
        },
        {"longrope_recompute": True, "sliding_window": 262144, "sliding_window_layers": None},
    ),
    "gemma-3-1b": (
        {
            "model_type": "gemma3_text",
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": None,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 256,
            "final_logit_softcapping": None,
            "head_dim": 32,
        },
        {
            "sliding_window_layers": [0, 1, 2, 3, 4],
            "sliding_rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "attention_multiplier": 1 / 16,
            "hidden_act": "gelu_pytorch_tanh",
            "logit_softcap": None,
        },
    ),
    "gemma-2-2b": (
        {"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 32},
        {"attention_softcap": 50.0, "logit_softcap": 30.0, "sliding_window_layers": [0, 2, 4]},
    ),
    "olmo-3": (
        {
            "model_type": "olmo3",
            "rope_theta": 5e5,
            "rope_scaling": YARN,
            "sliding_window": 1024,
            "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 2,
            "num_hidden_layers": 8,
        },
        {
            "sliding_window_layers": [0, 1, 2, 4, 5, 6],
            "rope_parameters": {**YARN, "rope_theta": 5e5},
            "norm_placement": "post",
            "qk_norm_over": "width",
        },
    ),
    "granite-3": (
        {
            "model_type": "granite",
            "attention_multiplier": 0.015625,
            "embedding_multiplier": 12,
            "residual_multiplier": 0.22,
            "logits_scaling": 8,
        },
        {"attention_multiplier": 0.015625, "embedding_multiplier": 12, "logits_scaling": 8},
    ),
    "smollm3": (
        {
            "model_type": "smollm3",
            "no_rope_layers": [1, 1, 1, 0, 1, 1],
            "use_sliding_window": False,
            "sliding_window": None,
            "rope_theta": 5e6,
        },
        {"rope_layers": [0, 1, 2, 4, 5], "sliding_window": None},
    ),
    "qwen3-moe": (
        {
            "model_type": "qwen3_moe",
            "decoder_sparse_step": 2,
            "mlp_only_layers": [5],
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "use_sliding_window": False,
            "max_window_layers": 48,
        },
        {"moe_layers": [1, 3], "num_experts": 8, "norm_topk_prob": True, "sliding_window": None},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_published_is_read(name: str) -> None:
    config, wanted = CASES[name]
    family = check_supported(SIZES | config, "config.json")
    fields = plain_fields(SIZES | config, family, "config.json")
    built = grafted_config(fields, GraftSettings())
    found = {field: getattr(built, field) for field in wanted}
    assert found == wanted
    if name == "phi-4-mini":
        assert built.rope_parameters["partial_rotary_factor"] == 0.75
        assert built.rope_parameters["original_max_position_embeddings"] == 512
