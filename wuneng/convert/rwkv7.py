"""RWKV-7 checkpoints as pure state models: names, shapes and the configuration they imply.

Two layouts. ``x070``: RWKV-LM's ``.pth`` names (``blocks.0.att.receptance.weight``). ``fla``: the
transformers form of flash-linear-attention (``model.layers.0.attn.r_proj.weight``), whose low-rank
pairs are Linear weights, transposed against RWKV-LM's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from wuneng.built_in_arms import RWKV7_TIME_MIX
from wuneng.convert.layouts import described_keys
from wuneng.convert.plan import Route
from wuneng.convert.tensor_files import TensorSource
from wuneng.errors import ModelError, shortened
from wuneng.model import WuNengConfig
from wuneng.older_files import BEFORE

__all__ = ["RWKV7_INITIAL", "RWKV7_WIRING", "Rwkv7", "read_rwkv7"]

#: What makes RWKV-7 of a WuNeng, whatever its sizes.
RWKV7_WIRING: dict[str, Any] = {
    **RWKV7_TIME_MIX,
    "state_a_max": 1.0,
    "num_key_value_heads": 0,
    "ffn": "rwkv7",
    "norm": "layernorm",
}

#: Initial values that RWKV-LM draws, which no checkpoint states.
RWKV7_INITIAL: dict[str, Any] = {
    **BEFORE,
    "initializer_range": 0.02,
    "state_branch_init": "normal",
}

_TOP = {
    "emb.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "blocks.0.ln0.weight": "model.embed_norm.weight",
    "blocks.0.ln0.bias": "model.embed_norm.bias",
}
_IN_BLOCK = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "att.receptance": "state_heads.r_proj",
    "att.key": "state_heads.k_proj",
    "att.value": "state_heads.v_proj",
    "att.output": "cross_head.branch_proj",
    "att.ln_x": "state_heads.g_norm",
    "ffn": "mlp",
    "att": "state_heads",
}
#: fla's spelling of x070 names.
_FLA_TOP = {
    "model.embeddings.weight": "emb.weight",
    "lm_head.weight": "head.weight",
    "model.norm.weight": "ln_out.weight",
    "model.norm.bias": "ln_out.bias",
}
_FLA_IN_BLOCK = {
    "pre_norm": "ln0",
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "attn.r_proj": "att.receptance",
    "attn.k_proj": "att.key",
    "attn.v_proj": "att.value",
    "attn.o_proj": "att.output",
    "attn.g_norm": "att.ln_x",
    "ffn": "ffn",
    "attn": "att",
}
_FLA_LOW_RANK = {"2.bias": "0", "0.weight": "1", "2.weight": "2"}
_OTHER_VERSIONS = {
    "att.time_maa_w1": "RWKV-6",
    "att.time_faaaa": "RWKV-5 or RWKV-6",
    "att.time_decay": "RWKV-4 to RWKV-6",
    "qkv.qq.weight": "RWKV-7b, with DeepEmbedAttention",
    "qkv.k_emb.weight": "RWKV-7b, with DeepEmbedAttention",
    "ffn.s_emb.weight": "RWKV-7a, with DeepEmbed in its feed-forward layers",
}


@dataclass(frozen=True)
class Rwkv7:
    """An RWKV-7 checkpoint under RWKV-LM's names, whichever layout it is stored in.

    Attributes:
        source: the stored tensors.
        stored: x070 name to stored name.
        transposed: x070 names whose stored values are transposed.
        config: the pure state model that computes the same.
        ignored: stored names that RWKV-7 never reads, with the reason.
    """

    source: TensorSource
    stored: dict[str, str]
    transposed: frozenset[str]
    config: WuNengConfig
    ignored: dict[str, str]

    def read(self, name: str) -> Tensor:
        """A tensor by its x070 name, in x070's orientation."""
        tensor = self.source.read(self.stored[name])
        return tensor.transpose(0, 1) if name in self.transposed else tensor

    def routes(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Route]:
        """Where each stored tensor goes in our model.

        Raises:
            ModelError: a tensor is none that RWKV-7 has; names it.
        """
        routes = {}
        for name, stored in self.stored.items():
            target = _our_name(name)
            if target not in wanted:
                file = self.source.tensors[stored].file
                raise ModelError(
                    f"{file}: {stored} is no tensor of RWKV-7 (x070), nor one that may be dropped"
                )
            turned = name in self.transposed
            routes[stored] = Route(target, partial(_fitted, shape=wanted[target], turned=turned))
        return routes


def read_rwkv7(source: TensorSource, where: str, settings: Mapping[str, Any] | None) -> Rwkv7:
    """Recognise an RWKV-7 checkpoint and the configuration it implies.

    Args:
        settings: fla's config.json; None for RWKV-LM's own names.

    Raises:
        ModelError: it is another version of RWKV, a variant that is not supported, or incomplete.
    """
    stored, transposed = {}, set()
    for name in source.tensors:
        x070, turned = (name, False) if settings is None else _from_fla(name)
        stored[x070] = name
        if turned:
            transposed.add(x070)
    for sign, version in _OTHER_VERSIONS.items():
        if any(name.endswith(sign) for name in stored):
            raise ModelError(
                f"{where}: this is {version} (it holds *.{sign}); expected RWKV-7 (x070)"
            )
    ignored = {
        stored.pop(name): "layer 0 has no value residual"
        for name in ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")
        if name in stored
    }
    shapes = {
        x070: _shape(source.tensors[name].shape, x070 in transposed)
        for x070, name in stored.items()
    }
    config = _config(shapes, where, settings, source.tensors)
    return Rwkv7(source, stored, frozenset(transposed), config, ignored)


def _config(
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    settings: Mapping[str, Any] | None,
    held: Collection[str],
) -> WuNengConfig:
    def shape(name: str, rank: int = 2) -> tuple[int, ...]:
        if name not in shapes:
            raise ModelError(
                f"{where}: no {name}; expected an RWKV-7 (x070) checkpoint. {described_keys(held)}"
            )
        if len(shapes[name]) != rank:
            raise ModelError(f"{where}: {name} has shape {list(shapes[name])}, expected {rank}-d")
        return shapes[name]

    vocab, width = shape("emb.weight")
    heads, head_dim = shape("blocks.0.att.r_k")
    layers = 0
    while f"blocks.{layers}.ffn.key.weight" in shapes:
        layers += 1
    ranks = {
        f"{name}_rank": shape(f"blocks.0.att.{letter}1")[1]
        for name, letter in (("decay", "w"), ("rate", "a"), ("gate", "g"))
    }
    value_rank = shape("blocks.1.att.v1")[1] if layers > 1 else 32
    eps = _fla_settings(settings, where) if settings is not None else 1e-5
    if heads * head_dim != width:
        raise ModelError(
            f"{where}: r_k makes {heads} heads of {head_dim}, the model's width is {width}; only "
            "RWKV-7 with as many state channels as model channels is supported"
        )
    return WuNengConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=shape("blocks.0.ffn.key.weight")[0],
        head_dim=head_dim,
        num_state_heads=heads,
        state_head_dim=head_dim,
        rms_norm_eps=eps,
        # 64e-5 at RWKV's usual 64 channels in a head; fla states it as head_dim * norm_eps
        state_norm_eps=64e-5 if settings is None else head_dim * eps,
        embedding_norm="blocks.0.ln0.weight" in shapes,
        tie_word_embeddings=_is_tied(shapes, where, settings),
        max_position_embeddings=int((settings or {}).get("max_position_embeddings") or 4096),
        value_rank=value_rank,
        **RWKV7_INITIAL,
        **RWKV7_WIRING,
        **ranks,
        **_token_ids(settings),
    )


def _is_tied(
    shapes: Mapping[str, tuple[int, ...]], where: str, settings: Mapping[str, Any] | None
) -> bool:
    if "head.weight" in shapes:
        return False
    if settings is None or settings.get("tie_word_embeddings") is not True:
        raise ModelError(f"{where}: no output projection (head.weight or lm_head.weight)")
    return True


def _fla_settings(settings: Mapping[str, Any], where: str) -> float:
    """The norms' epsilon; refuses variants that compute something else."""
    expected = {"attn": None, "hidden_act": "sqrelu", "norm_bias": True, "norm_first": True}
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ModelError(
                f"{where}: {name} is {shortened(repr(settings[name]))}; only {value!r} is "
                "supported for RWKV-7"
            )
    eps = settings.get("norm_eps", 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ModelError(
            f"{where}: norm_eps must be a small positive number, got {shortened(repr(eps))}"
        )
    return eps


def _token_ids(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    if settings is None:
        return {"bos_token_id": None, "eos_token_id": 0}  # World vocabularies end texts with 0
    return {n: settings.get(n) for n in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _from_fla(name: str) -> tuple[str, bool]:
    """The x070 name of a tensor of the fla layout, and whether it is stored transposed."""
    if name in _FLA_TOP:
        return _FLA_TOP[name], False
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if not found:
        return name, False
    layer, rest = found.groups()
    low_rank = re.fullmatch(r"attn\.([wavg])_lora\.lora\.(2\.bias|0\.weight|2\.weight)", rest)
    if low_rank:
        number = _FLA_LOW_RANK[low_rank.group(2)]
        return f"blocks.{layer}.att.{low_rank.group(1)}{number}", number != "0"
    return f"blocks.{layer}.{_renamed(rest, _FLA_IN_BLOCK)}", False


def _our_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if not found:
        return name
    return f"model.layers.{found.group(1)}.{_renamed(found.group(2), _IN_BLOCK)}"


def _renamed(rest: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if rest.startswith(f"{old}."):
            return new + rest[len(old) :]
    return rest


def _shape(shape: tuple[int, ...], transposed: bool) -> tuple[int, ...]:
    return shape[::-1] if transposed else shape


def _fitted(tensor: Tensor, shape: tuple[int, ...], turned: bool) -> Tensor:
    """Transposed if it is stored so; ``[1, 1, C]`` and ``[C]`` vectors brought to our shape."""
    if turned:
        tensor = tensor.transpose(0, 1)
    same = [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]
    vector = len(shape) == 1 or tensor.dim() == 1  # ln_x: [C] against our [heads, N]
    return tensor.reshape(shape) if same or vector else tensor
