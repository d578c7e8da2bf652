"""A stand-in for llama-cpp-python: its low-level functions, computed by transformers' Llama, which
is read from the GGUF file with transformers' own reader, or by RWKV-7's formulas token by token.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.bench.rwkv7_from_gguf import holds_rwkv7, read_rwkv7_gguf

_INT = ctypes.c_int32


class _Context:
    """Tokens by sequence, and the logits that were asked for last."""

    def __init__(self, model: Any, settings: Any) -> None:
        self.model, self.settings = model, settings
        self.recurrent = hasattr(model, "weights")
        self.tokens: list[list[int]] = [[] for _ in range(settings.n_seq_max)]
        self.logits: dict[int, Any] = {}


def install(monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> list[_Context]:
    """Put it where ``import`` finds it; returns the contexts that are made. ``factor`` makes logits
    wrong."""
    contexts: list[_Context] = []

    def load(path: bytes, settings: Any) -> Any:
        assert settings.use_mmap is False
        file = Path(path.decode())
        if holds_rwkv7(file):
            return read_rwkv7_gguf(file)
        return AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32
        ).eval()

    def begin(model: Any, settings: Any) -> _Context:
        contexts.append(_Context(model, settings))
        return contexts[-1]

    def clear(context: _Context, data: bool) -> None:
        context.tokens = [[] for _ in context.tokens]

    def remove(context: _Context, sequence: int, first: int, last: int) -> bool:
        assert last == -1
        if context.recurrent and first > 0:
            return False
        del context.tokens[sequence][first:]
        return True

    def copy(context: _Context, source: int, target: int, first: int, last: int) -> None:
        assert (first, last) == (-1, -1)
        context.tokens[target] = list(context.tokens[source])

    def decode(context: _Context, given: Any) -> int:
        assert given.n_tokens <= context.settings.n_batch
        places = []
        for index in range(given.n_tokens):
            assert given.n_seq_id[index] == 1
            held = context.tokens[given.seq_id[index][0]]
            assert given.pos[index] == len(held) < context.settings.n_ctx / len(context.tokens)
            held.append(given.token[index])
            places.append((given.seq_id[index][0], given.pos[index]))
        with torch.no_grad():
            whole = {
                sequence: _logits(context, context.tokens[sequence])
                for sequence in {sequence for sequence, _ in places}
            }
        context.logits = {
            index: np.ascontiguousarray(factor * whole[sequence][position].numpy())
            for index, (sequence, position) in enumerate(places)
            if given.logits[index]
        }
        return 0

    contents = {
        "__version__": "9.7",
        "GGML_TYPE_F32": 0,
        "GGML_TYPE_F16": 1,
        "GGML_TYPE_BF16": 30,
        "llama_log_callback": ctypes.CFUNCTYPE(
            None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
        ),
        "llama_log_set": lambda callback, data: None,
        "llama_model_default_params": SimpleNamespace,
        "llama_context_default_params": SimpleNamespace,
        "llama_model_load_from_file": load,
        "llama_model_free": lambda model: None,
        "llama_init_from_model": begin,
        "llama_free": lambda context: None,
        "llama_get_memory": lambda context: context,
        "llama_memory_clear": clear,
        "llama_memory_seq_rm": remove,
        "llama_memory_seq_cp": copy,
        "llama_batch_init": _batch,
        "llama_batch_free": lambda given: None,
        "llama_decode": decode,
        "llama_get_logits_ith": lambda context, index: context.logits[index].ctypes.data_as(
            ctypes.POINTER(ctypes.c_float)
        ),
    }
    module = ModuleType("llama_cpp")
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    return contexts


def _logits(context: _Context, held: list[int]) -> torch.Tensor:
    ids = torch.tensor(held)
    if context.recurrent:
        return context.model.logits(ids)  # type: ignore[no-any-return]
    return context.model(ids[None]).logits[0]  # type: ignore[no-any-return]


def _batch(tokens: int, embedded: int, sequences: int) -> Any:
    rows = [(_INT * sequences)() for _ in range(tokens)]
    return SimpleNamespace(
        n_tokens=0,
        token=ctypes.cast((_INT * tokens)(), ctypes.POINTER(_INT)),
        pos=ctypes.cast((_INT * tokens)(), ctypes.POINTER(_INT)),
        n_seq_id=ctypes.cast((_INT * tokens)(), ctypes.POINTER(_INT)),
        logits=ctypes.cast((ctypes.c_int8 * tokens)(), ctypes.POINTER(ctypes.c_int8)),
        seq_id=rows,
    )
