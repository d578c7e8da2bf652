"""A decoded token's short way through all of a model's layers: one call in C.

Taken on a CPU with a C compiler for one token of every sequence, without gradients, where each
layer is attention, state heads (``is_known`` in :mod:`wuneng.layers.state`) or both, and SwiGLU,
behind RMSNorm, and nothing watches or has replaced a module; otherwise the blocks run one by one,
with equal results. Keys, values and states go to the cache as they do there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from wuneng.layers.block_token import layer_weights
from wuneng.layers.norms import RMSNorm
from wuneng.layers.plain_modules import is_plain, modes_are_on
from wuneng.layers.snapshot import Snapshot
from wuneng.model.cache import WuNengCache
from wuneng.model.call_shapes import is_padding
from wuneng.model.decoded_cache import CachePlan
from wuneng.model.token_layout import positions
from wuneng.ops.backend import candidates
from wuneng.ops.native import model_token
from wuneng.ops.native.model_token import ModelToken
from wuneng.ops.native.token_arguments import FinalNorm
from wuneng.ops.plain import are_plain

#: What the call computes, in float32 and to its rounding.
_SOFTMAX = (sdpa_attention_forward, eager_attention_forward)
#: How a layer has to be wired, for the call computes nothing else. What comes before the layers
#: (scaled embeddings) and after the last norm (scaled, capped logits) is none of its business.
_WIRING = {
    "norm_placement": "pre",
    "qk_norm_over": "head",
    "residual_multiplier": 1.0,
    "attention_softcap": None,
    "rope_layers": None,
    "sliding_rope_parameters": None,
    "rope_float32": False,
    "num_experts": 0,
}
#: What the layers read of the configuration at every call, and may be told otherwise meanwhile.
_READ_ANEW = (
    *("attention_dropout", "attention_token_shift", "attention_short_conv", "qk_norm"),
    *("attention_output_gate", "state_short_conv", "state_a_max", "state_output_gate"),
    *("state_norm", "token_shift", "token_shift_on"),
)
#: Arguments of a call that ask for nothing here.
_SILENT = ("return_dict", "is_causal")


def decoded_token(
    model: Any,
    kind: type,
    hidden: Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    documents: Mapping[str, Tensor | None],
    cache: WuNengCache | None,
    asked: Mapping[str, Any],
) -> Tensor | None:
    """``hidden`` ``[B, 1, D]`` through all layers and the last norm; None where the modules have to
    run.

    Args:
        model: a ``WuNengModel`` whose blocks are of the class ``kind``.
        attention_mask, position_ids, documents, cache: as
            :func:`wuneng.model.call_layout.whole_call`.
        asked: the call's other arguments.
    """
    if hidden.shape[1] != 1 or cache is None or not _may(model, hidden, cache):
        return None
    if any(x is not None for x in documents.values()) or _asks(asked):
        return None
    served, real = _real_tokens(attention_mask)
    if not served:
        return None
    known = _known(model, kind, hidden.shape[0])
    if known is None or not known.caches.fits(cache):
        return None
    block, rotation = known.block, None
    if block.heads:
        placed = positions(hidden, position_ids, cache.get_seq_length(), None)
        rotation = model.rotary_emb(hidden, position_ids=placed)
        if not _is_rotation(rotation, block.size):
            return None
    decoded = block(hidden, rotation, real, known.caches.advanced(cache))
    cache.advance(1)
    return decoded


def _may(model: Any, hidden: Tensor, cache: Any) -> bool:
    """What a glance decides."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or type(cache) is not WuNengCache:
        return False
    if torch.is_autocast_enabled("cpu") or hidden.shape[0] > model_token.MOST_SEQUENCES:
        return False
    if not are_plain(hidden) or not hidden.is_cpu or hidden.dtype != torch.float32:
        return False
    if "native" not in candidates("token", hidden.device) or "update" in cache.__dict__:
        return False
    if modes_are_on():
        return False
    if not _is_wired_so(model.config):
        return False
    name = model.config._attn_implementation
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward) in _SOFTMAX


def _is_wired_so(config: Any) -> bool:
    held = vars(config)
    return all(held.get(name, usual) == usual for name, usual in _WIRING.items())


def _asks(asked: Mapping[str, Any]) -> bool:
    return any(value not in (None, False) for name, value in asked.items() if name not in _SILENT)


def _real_tokens(attention_mask: Any) -> tuple[bool, Tensor | None]:
    """Whether the call is served with this mask, and which tokens are real, bool ``[B, all]``; None
    where all are."""
    if attention_mask is None:
        return True, None
    if not is_padding(attention_mask) or not are_plain(attention_mask):
        return False, None
    real = attention_mask.bool()
    if bool(real.all()):
        return True, None
    return bool(real[:, -1].all()), real.contiguous()


class _Read(NamedTuple):
    """A model's block and what its caches have to be, and what they were read from."""

    block: ModelToken
    caches: CachePlan
    layers: nn.ModuleList
    norm: nn.Module
    snapshot: Snapshot
    settings: list[Any]


_READ: WeakKeyDictionary[Any, _Read] = WeakKeyDictionary()


def _known(model: Any, kind: type, batch: int) -> _Read | None:
    """What is known of the model, read again where anything about it has changed."""
    parts, config, known = model._modules, model.config, _READ.get(model)
    settings = [getattr(config, name) for name in _READ_ANEW]
    if (
        known is not None
        and known.layers is parts["layers"]
        and known.norm is parts["norm"]
        and known.block.batch == batch
        and known.block.threads == torch.get_num_threads()
        and known.settings == settings
        and known.snapshot.holds()
    ):
        return known
    layers, norm = parts["layers"], parts["norm"]
    block = _read(layers, norm, kind, config, batch)
    if block is None:
        return None
    caches, snapshot = CachePlan(layers, config, batch), Snapshot((layers, norm))
    _READ[model] = known = _Read(block, caches, layers, norm, snapshot, settings)
    return known


def _read(layers: Any, norm: Any, kind: type, config: Any, batch: int) -> ModelToken | None:
    if not is_plain(layers, nn.ModuleList) or not is_plain(norm, RMSNorm):
        return None
    found = []
    for block in layers:
        if not is_plain(block, kind) or block.branch_way is not None:
            return None
        weights = layer_weights(block, config)
        if weights is None:
            return None
        found.append(weights)
    final = FinalNorm(norm._parameters["weight"], norm.eps)
    attends = any(layer.q is not None for layer in found)
    size = config.head_dim if attends else config.state_head_dim
    return model_token.make(found, final, size, batch) if found else None


def _is_rotation(rotation: tuple[Tensor, Tensor], size: int) -> bool:
    return are_plain(*rotation) and all(
        x.shape[-1] == size and x.is_cpu and x.dtype == torch.float32 and x.is_contiguous()
        for x in rotation
    )
