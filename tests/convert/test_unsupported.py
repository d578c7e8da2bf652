"""Architectures that do not convert say why, from their configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.convert.rwkv_files import random_x070
from wuneng.convert import Request, convert
from wuneng.convert.families import FAMILIES
from wuneng.errors import ModelError

HYBRIDS = (
    *("qwen3_next", "qwen3_5", "qwen3_5_moe_text", "falcon_h1", "jamba", "bamba"),
    *("granitemoehybrid", "nemotron_h", "lfm2", "zamba2", "olmo_hybrid", "kimi_linear"),
)
CASES: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mixtral", "num_local_experts": 8}, "num_local_experts: 8 (a mixture"),
    ({"model_type": "qwen2_moe", "num_experts": 60}, "num_experts: 60 (a mixture of experts)"),
    ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "kv_lora_rank: 512 (multi-head latent"),
    ({"model_type": "mpt", "attn_config": {"alibi": True}}, "attn_config.alibi: True (ALiBi"),
    ({"model_type": "bloom"}, "model_type: bloom (ALiBi positions)"),
    ({"model_type": "gpt_oss", "num_local_experts": 32}, "attention sinks and a mixture"),
    ({"model_type": "vaultgemma", "attn_logit_softcapping": 50.0}, "soft-capped attention logits"),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, "attention to later tokens"),
    ({"model_type": "gemma3", "text_config": {"hidden_size": 8}}, "inside a multimodal one"),
    ({"model_type": "phi3", "resid_pdrop": 0.1}, "resid_pdrop: 0.1 (dropout of what a layer adds)"),
    ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
    ({"model_type": "llama", "residual_multiplier": 0.5}, "0.5 (scaled residuals)"),
    ({"model_type": "someones", "layer_types": ["full_attention", "conv"]}, "layer_types: conv"),
    *(({"model_type": name}, f"model_type: {name} (a hybrid: ") for name in HYBRIDS),
    ({"model_type": "mamba2"}, "Mamba-2's state-space layers"),
    ({"model_type": "rwkv7qwen2"}, "QRWKV-7, of RADLADS: a Qwen2 whose attention is an RWKV-7"),
    ({"model_type": "rwkv6qwen2"}, "QRWKV-6: RWKV-6's recurrence in a Qwen2"),
    ({"model_type": "cohere", "logit_scale": 0.0625}, "logit_scale: 0.0625 (scaled output"),
    ({"model_type": "gpt2", "n_positions": 1024}, "learned absolute positions"),
    ({"model_type": "gpt_neox", "use_parallel_residual": True}, "in parallel"),
    ({"model_type": "phi", "partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
    ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantised weights"),
    ({"model_type": "qwen2", "vision_config": {"depth": 2}}, "an image encoder"),
    ({"model_type": "llama4_text", "no_rope_layers": [1, 0]}, "layers without rotary positions"),
    ({"model_type": "lama"}, "Did you mean 'llama'?"),
]


@pytest.mark.parametrize(("config", "reason"), CASES, ids=lambda value: str(value)[:40])
def test_the_reason_is_named(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    source = tmp_path / "llama"  # a folder's name decides nothing
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        convert(Request(str(source), tmp_path / "out"))
    message = str(caught.value)
    assert reason in message
    for kind in FAMILIES:
        assert kind in message.rpartition("supported:")[2]


def test_neutral_values_rule_nothing_out() -> None:
    from wuneng.convert.unsupported import ruled_out

    neutral = {
        "num_experts": 0,
        "logit_scale": 1.0,
        "attn_logit_softcapping": None,
        "quantization_config": None,
        "no_rope_layers": [1, 1],
        "rope_scaling": {"partial_rotary_factor": 1.0},
    }
    assert ruled_out(neutral) == []


@pytest.mark.parametrize(
    ("tensor", "variant"),
    [
        ("blocks.0.ffn.s_emb.weight", "RWKV-7a, with DeepEmbed in its feed-forward layers"),
        ("blocks.0.qkv.qq.weight", "RWKV-7b, with DeepEmbedAttention"),
    ],
)
def test_variants_of_rwkv7_are_named(tensor: str, variant: str, tmp_path: Path) -> None:
    file = tmp_path / "rwkv.safetensors"
    save_file(random_x070() | {tensor: torch.zeros(61, 4)}, file)
    with pytest.raises(ModelError, match=f"this is {variant} .*expected RWKV-7"):
        convert(Request(str(file), tmp_path / "out"))


@pytest.mark.parametrize("as_file", [True, False])
def test_a_gguf_file_says_what_reads_it(tmp_path: Path, as_file: bool) -> None:
    file = tmp_path / "some where" / "model.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelError, match=r"a GGUF file, .*pip install gguf") as caught:
        convert(Request(str(file if as_file else file.parent), tmp_path / "out"))
    assert f"from_pretrained({str(file.parent)!r}, gguf_file='model.gguf')" in str(caught.value)
    assert not (tmp_path / "out").exists()
