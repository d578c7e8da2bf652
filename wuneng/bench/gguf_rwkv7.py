"""An RWKV-7 as a GGUF file, which llama.cpp reads.

Names, order and orientation of the tensors are those of llama.cpp's own converter. What llama.cpp's
RWKV-7 does not compute is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wuneng.bench.engine import Unsupported
from wuneng.bench.gguf_file import DTYPES, finish, store
from wuneng.bench.peers import load_peer
from wuneng.model import WuNengConfig

__all__ = ["HEAD_SIZE", "NORM_EPS", "write_rwkv7_gguf"]

#: Channels of a head, or a divisor of them: llama.cpp goes through them in whole vectors.
HEAD_SIZE = 64
#: Of the norm over each head, which no file states.
NORM_EPS = 64e-5

_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.embed_norm": "token_embd_norm",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_OF_A_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "attn_norm_2",
    "state_heads.r_proj": "time_mix_receptance",
    "state_heads.k_proj": "time_mix_key",
    "state_heads.v_proj": "time_mix_value",
    "state_heads.g_norm": "time_mix_ln",
    "cross_head.branch_proj": "time_mix_output",
    "mlp.key": "channel_mix_key",
    "mlp.value": "channel_mix_value",
}
#: Parameters that are no module's ``weight`` or ``bias``.
_BARE = {
    **{f"state_heads.{name}": f"time_mix_{name}" for name in ("w0", "a0", "v0", "k_k", "k_a")},
    "state_heads.r_k": "time_mix_r_k",
    "mlp.x_k": "channel_mix_lerp_k",
}
_LOW_RANK = ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2")
#: The six token shifts are one tensor, in this order.
_SHIFTS = "rwkvag"
#: Stored in float32 in llama.cpp's own files, whatever the type of the other matrices.
_EXACT = ("time_mix_w1", "time_mix_w2", "time_mix_lerp_fused")
#: Fields of a configuration that an RWKV-7 may have otherwise: sizes, first values, ids, notes.
_FREE = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_state_heads", "state_head_dim", "max_position_embeddings", "tie_word_embeddings"),
    *("decay_rank", "rate_rank", "value_rank", "gate_rank", "rms_norm_eps"),
}
_NO_MATTER = {
    *("initializer_range", "output_init", "state_init", "state_branch_init"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "architectures", "dtype", "use_cache"),
    *("transformers_version", "_name_or_path", "converted_from"),
}


def write_rwkv7_gguf(model: Any, file: Path, dtype: torch.dtype) -> None:
    """Write a WuNeng that is an RWKV-7 and nothing else, of any floating-point type, to ``file``.

    Matrices are stored as ``dtype`` (float32, bfloat16 or float16), vectors and the decay's
    low-rank pair in float32. A tied embedding is stored twice: llama.cpp reads two.

    Raises:
        Missing: the package gguf is not installed.
        Unsupported: something that llama.cpp's RWKV-7 does not compute, or another type.
    """
    gguf = load_peer("gguf", "gguf")
    tensors = {name: t.detach().cpu().float() for name, t in model.state_dict().items()}
    _check(model.config, tensors, dtype)
    writer = gguf.GGUFWriter(file, "rwkv7")
    _write_settings(writer, model.config)
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for name, rows in _renamed(tensors, model.config.num_hidden_layers):
        exact = rows.dim() == 1 or name.split(".")[-2] in _EXACT
        store(writer, name, rows, torch.float32 if exact else dtype)
    finish(writer)


def _check(config: WuNengConfig, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    from wuneng.convert.rwkv7 import RWKV7_INITIAL, RWKV7_WIRING

    size, heads = config.state_head_dim or 0, config.num_state_heads
    if not size or heads * size != config.hidden_size:
        raise Unsupported(
            f"for llama.cpp no file is written of {heads} state heads of {size} channels in "
            f"{config.hidden_size} (expected heads that fill them)"
        )
    given = config.to_dict()
    sizes = {name: given[name] for name in _FREE}
    own = {"embedding_norm": True, "state_norm_eps": NORM_EPS}
    plain = WuNengConfig(**{**sizes, **RWKV7_INITIAL, **RWKV7_WIRING, **own}).to_dict()
    refused = {
        f"{name} {given[name]!r} (expected {plain.get(name)!r})": given[name] != plain.get(name)
        for name in given.keys() - _NO_MATTER
    } | {
        f"heads of {size} channels (expected a multiple of {HEAD_SIZE})": size % HEAD_SIZE != 0,
        "cross_head.scale other than one": any(
            name.endswith("cross_head.scale") and bool((rows != 1).any())
            for name, rows in tensors.items()
        ),
        str(dtype): dtype not in DTYPES,
    }
    for what in sorted(refused):
        if refused[what]:
            raise Unsupported(f"for llama.cpp no file of an RWKV-7 with {what} is written")


def _write_settings(writer: Any, config: WuNengConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(0)  # of attention
    writer.add_layer_norm_eps(config.rms_norm_eps)
    writer.add_wkv_head_size(config.state_head_dim)
    writer.add_decay_lora_rank(config.decay_rank)
    writer.add_iclr_lora_rank(config.rate_rank)
    writer.add_value_residual_mix_lora_rank(config.value_rank)
    writer.add_gate_lora_rank(config.gate_rank)
    writer.add_tokenizer_model("no_vocab")


def _renamed(tensors: dict[str, Tensor], layers: int) -> Iterator[tuple[str, Tensor]]:
    """GGUF's names and orientation of all tensors."""
    for stem, name in _WHOLE.items():
        for last in ("weight", "bias"):
            if f"{stem}.{last}" in tensors:
                yield f"{name}.{last}", tensors[f"{stem}.{last}"]
    for layer in range(layers):
        start = f"model.layers.{layer}."
        held = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        for name, rows in _of_a_layer(held):
            yield f"blk.{layer}.{name}", rows


def _of_a_layer(held: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for stem, name in _OF_A_LAYER.items():
        for last in ("weight", "bias"):
            if (rows := held.get(f"{stem}.{last}")) is not None:
                yield f"{name}.{last}", rows.flatten() if stem.endswith("g_norm") else rows
    for ours, name in _BARE.items():
        if ours in held:
            yield f"{name}.weight", held[ours].flatten()
    for pair in _LOW_RANK:
        if (rows := held.get(f"state_heads.{pair}")) is not None:
            yield f"time_mix_{pair}.weight", rows.T
    shifts = torch.stack([held[f"state_heads.x_{letter}"] for letter in _SHIFTS])
    yield "time_mix_lerp_fused.weight", shifts[:, None, None]
    if "state_heads.v0" not in held:  # the first layer's are read and not used
        yield "time_mix_v0.weight", torch.zeros_like(held["state_heads.a0"])
        for number in "12":
            yield f"time_mix_v{number}.weight", torch.zeros_like(held[f"state_heads.a{number}"].T)
