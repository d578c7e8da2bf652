"""A transformers Llama as a GGUF file, which llama.cpp reads.

The format is described in ggml's repository (https://github.com/ggml-org/ggml). There is no
vocabulary in the file: a benchmark gives token ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wuneng.bench.engine import Unsupported
from wuneng.bench.peers import load_peer

__all__ = ["DTYPES", "finish", "store", "write_gguf"]

#: What is stored of each type, by gguf's and by ggml's name.
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

_OF_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(llama: Any, file: Path, dtype: torch.dtype) -> None:
    """Write a ``LlamaForCausalLM`` of any floating-point type to ``file``.

    Matrices are stored as ``dtype`` (float32, bfloat16 or float16), vectors in float32.

    Raises:
        Missing: the package gguf is not installed.
        Unsupported: a setting that this does not write, or another type.
    """
    gguf = load_peer("gguf", "gguf")
    config = llama.config
    _check(config, dtype)
    writer = gguf.GGUFWriter(file, "llama")
    _write_settings(writer, config)
    for name, tensor in llama.state_dict().items():
        target = _target(name)
        if target is None or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        rows = tensor.detach().cpu().float()
        if ".q_proj." in name or ".k_proj." in name:
            rows = _interleaved(rows, config.head_dim)
        store(writer, target, rows, torch.float32 if rows.dim() == 1 else dtype)
    finish(writer)


def store(writer: Any, name: str, rows: Tensor, dtype: torch.dtype) -> None:
    """Add a float32 tensor to a GGUF file, in ``dtype``, one of ``DTYPES``."""
    gguf = load_peer("gguf", "gguf")
    kind = getattr(gguf.GGMLQuantizationType, DTYPES[dtype])
    stored = gguf.quants.quantize(rows.contiguous().numpy(), kind)
    writer.add_tensor(name, stored, raw_dtype=kind)


def finish(writer: Any) -> None:
    """Write what was added to a GGUF file, and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check(config: Any, dtype: torch.dtype) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    refused = {
        "RoPE of the kind " + str(rope.get("rope_type")): rope.get("rope_type", "default")
        != "default",
        "biases": config.attention_bias or config.mlp_bias,
        f"{config.hidden_act} in the feed-forward": config.hidden_act != "silu",
        str(dtype): dtype not in DTYPES,
    }
    for what, is_so in refused.items():
        if is_so:
            raise Unsupported(f"for llama.cpp no file of a Llama with {what} is written")


def _write_settings(writer: Any, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("no_vocab")


def _target(name: str) -> str | None:
    """GGUF's name of a tensor; None of one that is not stored."""
    stem, _, last = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{last}"
    if not stem.startswith("model.layers."):
        return None
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_OF_A_LAYER[part]}.{last}" if part in _OF_A_LAYER else None


def _interleaved(rows: Tensor, size: int) -> Tensor:
    """Rows of heads of ``size`` in llama.cpp's order: RoPE turns neighbours there, and in
    transformers the first half with the second."""
    heads = rows.view(-1, 2, size // 2, rows.shape[1])
    return heads.transpose(1, 2).reshape(rows.shape).contiguous()
