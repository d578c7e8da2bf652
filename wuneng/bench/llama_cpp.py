"""llama.cpp as an arm: a Llama of the compared model's size, run by llama-cpp-python on the CPU.

Random weights are written as GGUF and read back, in the type of the run (keys and values too), and
checked against transformers' Llama with the same weights. Called as transformers' models are.
RWKV-7 is run by the same class (``llama_cpp_rwkv7.py``).
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wuneng.bench.engine import Unsupported
from wuneng.bench.gguf_file import DTYPES, write_gguf
from wuneng.bench.model_gate import Twin
from wuneng.bench.peer_models import build_llama
from wuneng.bench.peers import LLAMA_CPP, load_peer
from wuneng.model import WuNengConfig
from wuneng.records.scratch import scratch_directory

__all__ = ["Cache", "LlamaCpp", "build_llama_cpp", "llama_cpp_twin", "require_llama_cpp"]

#: Positions that a context has beyond those it was asked for, so that decoding finds room.
_ROOM = 64
_NO_FLASH_ATTENTION = 0


def require_llama_cpp(device: torch.device) -> None:
    """Whether llama.cpp runs here.

    Raises:
        Missing: llama-cpp-python or gguf is not installed or does not load here.
        Unsupported: the run is not on a CPU.
    """
    load_peer(LLAMA_CPP, "llama_cpp")
    load_peer("gguf", "gguf")
    if device.type != "cpu":
        raise Unsupported(f"llama.cpp is measured on a CPU, this run is on {device.type}")


def build_llama_cpp(config: WuNengConfig) -> LlamaCpp:
    """A Llama with the shapes of a plain-attention WuNeng and random weights, for llama.cpp."""
    return LlamaCpp(build_llama(config))


def llama_cpp_twin(model: Any) -> Twin:
    """The same weights in transformers' Llama, float32."""
    twin = type(model.weights)(model.config)  # anew: a cast model has cast RoPE's frequencies too
    twin.load_state_dict(model.weights.state_dict())
    return Twin(twin.eval(), dict, "the same weights in transformers' Llama")


@dataclass
class Cache:
    """What a context holds of its first ``length`` positions."""

    ids: Tensor
    """``[1 or B, T]``, int64."""
    place: int
    """Of the context's, which of those that hold as many sequences."""
    stamp: int
    """Of the place's content."""
    owner: LlamaCpp
    layers: tuple[()] = field(default=())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As many sequences, all like the only one."""
        grown = self.owner(self.ids.expand(repeats, -1), use_cache=True).past_key_values
        self.ids, self.place, self.stamp = grown.ids, grown.place, grown.stamp

    def held_bytes(self) -> tuple[int, int]:
        """Bytes of its keys and values, and of its states."""
        return self.owner.held_bytes(*self.ids.shape)


class LlamaCpp:
    """A Llama that llama.cpp runs, with as much of a transformers model's interface as is used."""

    places = 1
    """As many caches of a batch are held at once."""

    def __init__(self, weights: Any) -> None:
        self.weights, self.config = weights.eval(), weights.config
        self._model: Any = None
        self._contexts: list[Any] = []
        """One or none; a list, so that what frees it need not hold this."""
        self._shape = (0, 0)
        self._stamps = [0] * self.places

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> LlamaCpp:
        """Write the weights in ``dtype`` and load them. Missing, Unsupported where that fails."""
        require_llama_cpp(device)
        self._library = load_peer(LLAMA_CPP, "llama_cpp")
        self._log = self._library.llama_log_callback(lambda level, text, data: None)
        self._library.llama_log_set(self._log, ctypes.c_void_p(0))
        self.weights, self._dtype = self.weights.to(dtype), dtype
        with scratch_directory(".wuneng-bench-") as place:
            file = place / "model.gguf"
            self._write(file)
            settings = self._library.llama_model_default_params()
            settings.n_gpu_layers, settings.use_mmap = 0, False
            self._model = self._library.llama_model_load_from_file(str(file).encode(), settings)
        if not self._model:
            raise Unsupported("llama.cpp does not load the model that was written for it")
        # Not __del__: at the interpreter's end the library would be gone first.
        weakref.finalize(self, _free, self._library, self._model, self._contexts)
        return self

    def _write(self, file: Path) -> None:
        write_gguf(self.weights, file, self._dtype)

    def eval(self) -> LlamaCpp:
        """It always is."""
        return self

    def requires_grad_(self, requires_grad: bool = False) -> LlamaCpp:
        """It has no gradients."""
        return self

    def parameters(self) -> Iterator[Tensor]:
        """The weights, in the type in which llama.cpp has them."""
        return iter(self.weights.parameters())

    def buffers(self) -> Iterator[Tensor]:
        """None that are stored."""
        return iter(())

    def held_bytes(self, batch: int, tokens: int) -> tuple[int, int]:
        """Bytes of keys and values in all layers, and of states."""
        heads = self.config.num_key_value_heads * self.config.head_dim
        of_a_token = 2 * self.config.num_hidden_layers * heads * self._dtype.itemsize
        return batch * tokens * of_a_token, 0

    def forward(
        self,
        input_ids: Tensor,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        past_key_values: Any = None,
    ) -> Any:
        """Logits ``[B, n, V]`` of the last ``logits_to_keep`` positions (0: all) of ``input_ids``
        ``[B, T]``, int64, after ``past_key_values``; and the cache."""
        cache, (batch, tokens) = past_key_values, input_ids.shape
        before = 0 if cache is None else cache.ids.shape[1]
        stale = cache is not None and cache.stamp != self._stamps[cache.place]
        if stale or (cache is not None and cache.ids.shape[0] != batch):
            raise RuntimeError("llama.cpp: what came later has taken the place of this cache's")
        if cache is None:
            self._begin(batch, tokens + _ROOM)
        elif before + tokens > self._shape[1]:
            raise RuntimeError(f"llama.cpp: the context holds {self._shape[1]} positions")
        place = 0 if cache is None else self._go_on(cache)
        logits = self._decode(input_ids, place, before, logits_to_keep or tokens)
        ids = input_ids if cache is None else torch.cat([cache.ids, input_ids], 1)
        kept = Cache(ids, place, self._stamps[place], self)
        return SimpleNamespace(logits=logits, past_key_values=kept)

    __call__ = forward

    def _go_on(self, cache: Cache) -> int:
        """The place where tokens after the cache's are to come; nothing is there after them."""
        memory = self._library.llama_get_memory(self._contexts[0])
        for sequence in range(cache.ids.shape[0]):
            self._library.llama_memory_seq_rm(memory, sequence, cache.ids.shape[1], -1)
        return cache.place

    def _begin(self, batch: int, positions: int) -> None:
        """An empty context for ``batch`` sequences of so many positions in each place."""
        self._stamps = [max(self._stamps) + 1 + place for place in range(self.places)]
        if self._contexts and batch == self._shape[0] and positions <= self._shape[1]:
            memory = self._library.llama_get_memory(self._contexts[0])
            self._library.llama_memory_clear(memory, False)
            return
        _free_contexts(self._library, self._contexts)
        settings = self._library.llama_context_default_params()
        positions = -(-positions // 256) * 256
        settings.n_batch, settings.n_seq_max = batch * positions, batch * self.places
        settings.n_ctx = settings.n_seq_max * positions
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        types = load_peer("gguf", "gguf").GGMLQuantizationType
        kind = int(getattr(types, DTYPES[self._dtype]))
        settings.type_k = settings.type_v = kind
        if self._dtype == torch.float32:  # its flash attention is off by 1e-3: float16 inside
            settings.flash_attn_type = _NO_FLASH_ATTENTION
        context = self._library.llama_init_from_model(self._model, settings)
        if not context:
            raise Unsupported(f"llama.cpp makes no context of {batch} x {positions} positions")
        self._contexts.append(context)
        self._shape = (batch, positions)

    def _decode(self, ids: Tensor, place: int, before: int, keep: int) -> Tensor:
        library, (batch, tokens) = self._library, ids.shape
        given = library.llama_batch_init(ids.numel(), 0, 1)
        try:
            given.n_tokens = ids.numel()
            array = np.ctypeslib.as_array
            array(given.token, (ids.numel(),))[:] = ids.cpu().numpy().ravel()
            positions = np.tile(np.arange(before, before + tokens), batch)
            array(given.pos, (ids.numel(),))[:] = positions
            array(given.n_seq_id, (ids.numel(),))[:] = 1
            for index in range(ids.numel()):
                given.seq_id[index][0] = place * batch + index // tokens
            wanted = positions >= before + tokens - keep
            array(given.logits, (ids.numel(),))[:] = wanted
            if library.llama_decode(self._contexts[0], given) != 0:
                raise RuntimeError("llama.cpp: llama_decode failed")
            rows = [
                array(
                    library.llama_get_logits_ith(self._contexts[0], int(i)),
                    (self.config.vocab_size,),
                )
                for i in np.flatnonzero(wanted)
            ]
            logits = torch.from_numpy(np.stack(rows)).view(batch, keep, -1)
        finally:
            library.llama_batch_free(given)
        return logits.to(self._dtype)


def _free(library: Any, model: Any, contexts: list[Any]) -> None:
    _free_contexts(library, contexts)
    library.llama_model_free(model)


def _free_contexts(library: Any, contexts: list[Any]) -> None:
    while contexts:
        library.llama_free(contexts.pop())
