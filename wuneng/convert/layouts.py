"""What a weights file that is refused holds: some of its keys, and the layout they belong to."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from wuneng.errors import shortened

__all__ = ["described_keys"]

_DIRECTORY = "convert the directory that it is in, with its config.json"
#: A key that tells a layout, and what to do with such a file. The first that is found counts.
_LAYOUTS: tuple[tuple[str, str], ...] = (
    (r"base_model\.model\..*lora_[AB]", "adapters of PEFT; merge them into their model first"),
    (r"model\.layers\.\d+\.(state_heads|cross_head)\.", f"a WuNeng; {_DIRECTORY}"),
    (r"model\.layers\.\d+\.attn\.r_proj\.", f"RWKV-7 in the fla layout; {_DIRECTORY}"),
    (
        r"model\.layers\.\d+\.self_attn\.[qkv]_proj\.",
        f"a Transformer such as Llama, Qwen or Mistral in transformers' layout; {_DIRECTORY}",
    ),
    (r"layers\.\d+\.attention\.wq\.", "Llama in Meta's layout; get it in transformers' layout"),
    (r"(transformer\.)?h\.\d+\.attn\.c_attn\.", "GPT-2, which does not convert"),
    (r"(backbone\.)?layers\.\d+\.mixer\.", "Mamba, which does not convert"),
    (r"blocks\.\d+\.att\.", "some RWKV, but not RWKV-7 (x070)"),
    (
        r"(state_dict|model|module|model_state_dict|optimizer|epoch|weights)$",
        "a training checkpoint with the weights inside; save them alone, as named tensors",
    ),
)


def described_keys(keys: Collection[Any]) -> str:
    """``it holds 3 keys: a, b, c`` and, where their names tell it, the layout they belong to."""
    names = [str(key) for key in keys]
    for pattern, meaning in _LAYOUTS:
        telling = next((name for name in names if re.match(pattern, name)), None)
        if telling is not None:
            first = [telling, *(name for name in names if name != telling)]
            return f"It holds {len(names):,} keys: {_some(first)}; these are the keys of {meaning}"
    return f"It holds {len(names):,} keys: {_some(names)}"


def _some(names: list[str]) -> str:
    return ", ".join(map(shortened, names[:4])) + (", ..." if len(names) > 4 else "")
