"""The arguments of a model's call: what the cache is called, and what nobody would read.

transformers 5.24 renamed the cache from ``past_key_values`` to ``cache``, in calls as in outputs.
Both names are taken; ``generate`` and outputs use the installed release's. What a ``forward`` does
not know it refuses: an argument that it swallows (a cache under a new name, say) would change the
answer without a word.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

from wuneng.model.cache import WuNengCache

_OUTPUT_FIELDS = {field.name for field in dataclasses.fields(BaseModelOutputWithPast)}
#: What the installed transformers calls a cache: ``past_key_values`` up to 5.23, then ``cache``.
CACHE_NAME = "cache" if "cache" in _OUTPUT_FIELDS else "past_key_values"

#: What ``generate`` may be told of its cache: nothing, or that it grows with the text.
CACHE_KINDS = (None, "dynamic", "hybrid")
#: Packed rows as flash attention takes them. Attention reads a text before itself alone, so that
#: queries and keys have the same documents.
BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k")
_LONGEST = ("max_length_q", "max_length_k")
#: What transformers hands to a model's layers: reported outputs and packed rows.
_KNOWN = frozenset(
    {
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        *BOUNDARIES,
        *_LONGEST,
        "is_causal",
    }
)
#: What it hands to the loss, which a model without a head does not make.
_OF_THE_LOSS = ("shift_labels", "ignore_index", "num_items_in_batch")
_NAMED = frozenset(
    {
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "cache",
        "inputs_embeds",
        "labels",
        "use_cache",
        "logits_to_keep",
        "document_ids",
        "seq_idx",
        "head_loss",
        *_OF_THE_LOSS,
    }
)


def cache_of(output: Any) -> Any:
    """The cache that a model's output carries, None without one; of any project's model."""
    if hasattr(output, CACHE_NAME):
        return getattr(output, CACHE_NAME)
    return output.past_key_values


def with_cache(cache: Any, model: Any = None) -> dict[str, Any]:
    """``cache`` as the keyword argument that ``model`` takes it under.

    Without ``model``: the name that the installed transformers and our own models use. Another
    project's model may know the older name alone.
    """
    kind: Any = type(model)
    return {CACHE_NAME if model is None else _cache_argument(kind): cache}


@lru_cache
def _cache_argument(kind: Any) -> str:
    for base in kind.__mro__:  # a subclass that hands on **kwargs says nothing itself
        forward = base.__dict__.get("forward")
        names = inspect.signature(forward).parameters if callable(forward) else {}
        for name in (CACHE_NAME, "past_key_values"):
            if name in names:
                return name
    return CACHE_NAME


def given_cache(past_key_values: Any, cache: Any) -> WuNengCache | None:
    """The one cache of a call, whichever of the two names it came under.

    Raises:
        ValueError: both were given, and they are not the same.
        TypeError: another kind of cache, which has no room for a recurrent state.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("Give the cache once: as cache= or as past_key_values=, not as both.")
    found = cache if past_key_values is None else past_key_values
    if found is None or isinstance(found, WuNengCache):
        return found
    kind = type(found)
    raise TypeError(
        f"A {kind.__module__}.{kind.__qualname__} cannot hold what a WuNeng model caches "
        "(recurrent state and shifted tokens beside keys and values). Pass no cache, an empty "
        "wuneng.WuNengCache, or the one that an earlier call of this model returned."
    )


def loss_arguments(arguments: dict[str, Any], labels: Any, head_loss: Any) -> dict[str, Any]:
    """What the loss reads, taken out of ``arguments``.

    ``num_items_in_batch`` alone passes: transformers' Trainer gives it to whoever makes the loss.

    Raises:
        ValueError: two ways of making the loss, or an argument of a loss that is not made.
    """
    found = {name: arguments.pop(name) for name in _OF_THE_LOSS if name in arguments}
    shifted = found.get("shift_labels")
    if head_loss is not None and (labels is not None or shifted is not None):
        raise ValueError("head_loss makes the loss in place of labels: give one of them")
    if found.get("ignore_index") is not None and labels is None and shifted is None:
        raise ValueError("ignore_index is read with labels only: give both")
    return found


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that no part of the model reads; None says nothing and passes.

    Raises:
        TypeError: an unknown argument, with the nearest known name.
        ValueError: ``is_causal=False``: a recurrence reads from left to right only; the longest
            document without the boundaries of all.
    """
    for name, value in arguments.items():
        if value is None or name in _KNOWN:
            continue
        close = difflib.get_close_matches(name, sorted((_KNOWN | _NAMED) - {name}), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise TypeError(f"A WuNeng model's forward takes no argument {name!r}{hint}")
    alone = [name for name in _LONGEST if arguments.get(name) is not None]
    if alone and all(arguments.get(name) is None for name in BOUNDARIES):
        raise ValueError(f"{alone[0]} says nothing of where documents start: give {BOUNDARIES[0]}")
    if not arguments.get("is_causal") and arguments.get("is_causal") is not None:
        raise ValueError(
            "is_causal=False: a WuNeng model is causal, its state reads left to right."
        )
