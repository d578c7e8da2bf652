"""An RWKV-7 read from a GGUF file as llama.cpp reads it, and computed token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wuneng.convert.rwkv7 import read_rwkv7
from wuneng.convert.rwkv7_reference import Rwkv7Reference
from wuneng.convert.tensor_files import TensorInfo

#: RWKV-LM's names of llama.cpp's tensors.
_WHOLE = {
    "token_embd": "emb",
    "token_embd_norm": "blocks.0.ln0",
    "output_norm": "ln_out",
    "output": "head",
}
_OF_A_LAYER = {
    "attn_norm": "ln1",
    "attn_norm_2": "ln2",
    "time_mix_receptance": "att.receptance",
    "time_mix_key": "att.key",
    "time_mix_value": "att.value",
    "time_mix_output": "att.output",
    "time_mix_ln": "att.ln_x",
    "channel_mix_key": "ffn.key",
    "channel_mix_value": "ffn.value",
}


def holds_rwkv7(file: Path) -> bool:
    """Whether the file says that it is one."""
    return bool(_fields(file)["general.architecture"] == "rwkv7")


def tensors_of(file: Path) -> dict[str, Tensor]:
    """All tensors by llama.cpp's names, in float32; ggml's first dimension is the last here."""
    import gguf

    return {
        t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]))
        for t in gguf.GGUFReader(file).tensors
    }


def read_rwkv7_gguf(file: Path, dtype: torch.dtype = torch.float32) -> Rwkv7Reference:
    """The formulas with the file's weights; the file's settings have to be what they take."""
    fields = _fields(file)
    held = _by_rwkv_names(tensors_of(file), fields["rwkv7.wkv.head_size"])
    reference = Rwkv7Reference(read_rwkv7(_Held(held), str(file), None), dtype)
    config = reference.config
    wanted = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": 0,
        "wkv.head_size": config.state_head_dim,
        "attention.decay_lora_rank": config.decay_rank,
        "attention.iclr_lora_rank": config.rate_rank,
        "attention.value_residual_mix_lora_rank": config.value_rank,
        "attention.gate_lora_rank": config.gate_rank,
    }
    assert {name: fields[f"rwkv7.{name}"] for name in wanted} == wanted
    config.rms_norm_eps = fields["rwkv7.attention.layer_norm_epsilon"]
    return reference


class _Held:
    """Tensors as a conversion reads a checkpoint's."""

    def __init__(self, held: dict[str, Tensor]) -> None:
        self.held = held
        self.tensors = {
            n: TensorInfo(tuple(t.shape), t.dtype, Path("gguf")) for n, t in held.items()
        }

    def read(self, name: str) -> Tensor:
        return self.held[name]


def _by_rwkv_names(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    named = {}
    for name, rows in tensors.items():
        stem, _, last = name.rpartition(".")
        if stem in _WHOLE:
            named[f"{_WHOLE[stem]}.{last}"] = rows
            continue
        _, layer, part = stem.split(".")
        block = f"blocks.{layer}"
        if part in _OF_A_LAYER:
            named[f"{block}.{_OF_A_LAYER[part]}.{last}"] = rows
        elif part == "time_mix_lerp_fused":
            for letter, row in zip("rwkvag", rows, strict=True):
                named[f"{block}.att.x_{letter}"] = row.flatten()
        elif part == "channel_mix_lerp_k":
            named[f"{block}.ffn.x_k"] = rows
        else:
            leaf = part.removeprefix("time_mix_")
            turned = rows.T if rows.dim() == 2 else rows  # x @ w1 there, w1 of a Linear here
            named[f"{block}.att.{leaf}"] = turned.view(-1, size) if leaf == "r_k" else turned
    return named


def _fields(file: Path) -> dict[str, Any]:
    import gguf

    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
