"""RWKV-7 checkpoints in other layouts, made from RWKV-LM's names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_FLA = {
    "ln0": "pre_norm",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "att": "attn",
    "ffn": "ffn",
}
_PROJECTIONS = {
    "receptance": "r_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "ln_x": "g_norm",
}
_TOP = {"emb": "model.embeddings", "head": "lm_head", "ln_out": "model.norm"}


def as_fla(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """flash-linear-attention's names and orientations of an x070 checkpoint."""
    found = {}
    for name, tensor in tensors.items():
        first, *rest = name.split(".")
        if first in _TOP:
            found[".".join([_TOP[first], *rest])] = tensor
            continue
        layer, part, *leaf = rest
        where = f"model.layers.{layer}.{_FLA[part]}"
        low_rank = re.fullmatch(r"([wavg])([012])", leaf[0])
        if part == "att" and low_rank:
            letter, number = low_rank.groups()
            inner = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[number]
            value = tensor.flatten() if number == "0" else tensor.t()
            found[f"{where}.{letter}_lora.lora.{inner}"] = value
        elif part == "att":
            found[".".join([where, _PROJECTIONS.get(leaf[0], leaf[0]), *leaf[1:]])] = tensor
        else:
            found[".".join([where, *leaf])] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def save_fla(directory: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    """A directory in the fla layout."""
    directory.mkdir()
    save_file(as_fla(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    vocab, width = tensors["emb.weight"].shape
    config = {
        "model_type": "rwkv7",
        "architectures": ["RWKV7ForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": width,
        "head_dim": 64,
        "norm_eps": 1e-5,
        "hidden_act": "sqrelu",
        "norm_first": True,
        "norm_bias": True,
        "attn": None,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


def random_x070(layers: int = 2, heads: int = 2, size: int = 8, vocab: int = 61) -> dict[str, Any]:
    """A random x070 checkpoint with low ranks of 4 to 7, so that none is mistaken for another."""
    generator = torch.Generator().manual_seed(0)
    width = heads * size

    def draw(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    tensors = {"emb.weight": draw(vocab, width), "head.weight": draw(vocab, width)}
    norms = ["ln_out", "blocks.0.ln0"]
    for layer in range(layers):
        block = f"blocks.{layer}"
        norms += [f"{block}.ln1", f"{block}.ln2", f"{block}.att.ln_x"]
        for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "w0", "a0", "v0"):
            tensors[f"{block}.att.{name}"] = draw(1, 1, width, scale=0.5)
        for letter, rank in (("w", 4), ("a", 5), ("v", 6), ("g", 7)):
            tensors[f"{block}.att.{letter}1"] = draw(width, rank)
            tensors[f"{block}.att.{letter}2"] = draw(rank, width)
        tensors[f"{block}.att.r_k"] = draw(heads, size)
        for name in ("receptance", "key", "value", "output"):
            tensors[f"{block}.att.{name}.weight"] = draw(width, width)
        tensors[f"{block}.ffn.x_k"] = draw(1, 1, width)
        tensors[f"{block}.ffn.key.weight"] = draw(3 * width, width)
        tensors[f"{block}.ffn.value.weight"] = draw(width, 3 * width)
    for name in norms:
        tensors[f"{name}.weight"] = 1 + draw(width)
        tensors[f"{name}.bias"] = draw(width)
    return tensors
