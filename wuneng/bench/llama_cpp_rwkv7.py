"""RWKV-7 in llama.cpp as an arm: as wide and deep as the compared model, with as many parameters.

It is RWKV-7 as published (LayerNorm, its own feed-forward), which is what llama.cpp reads. A state
cannot be cut back to fewer tokens, as keys and values can: a cache stays as it is, and what comes
after it goes on from a copy of its state, which llama.cpp makes when it reads the state anyway.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.bench.gguf_rwkv7 import HEAD_SIZE, NORM_EPS, write_rwkv7_gguf
from wuneng.bench.llama_cpp import Cache, LlamaCpp
from wuneng.bench.model_gate import Twin
from wuneng.bench.peer_models import RWKV7_TWIN, fla_config
from wuneng.errors import InputError
from wuneng.model import WuNengConfig, WuNengForCausalLM

__all__ = ["build_llama_cpp_rwkv7", "llama_cpp_rwkv7_config", "llama_cpp_rwkv7_twin"]


def llama_cpp_rwkv7_config(config: WuNengConfig, arm: str) -> WuNengConfig:
    """RWKV-7 as wide and deep as ``config``; the feed-forward not yet matched.

    Raises:
        InputError: heads of that size do not fill the width, or are none that llama.cpp computes.
    """
    rwkv7 = fla_config(config, arm)
    size = rwkv7.state_head_dim or 0
    if size % HEAD_SIZE:
        raise InputError(
            f"--against {arm}: llama.cpp computes RWKV-7's heads of {HEAD_SIZE} channels or a "
            f"multiple, this model's have {size}"
        )
    return rwkv7.changed({"state_norm_eps": NORM_EPS})


def build_llama_cpp_rwkv7(config: WuNengConfig) -> LlamaCppRwkv7:
    """An RWKV-7 of :func:`llama_cpp_rwkv7_config`'s shapes with random weights, for llama.cpp.

    Matrices that start at zero are drawn and all vectors moved from where they start, so that the
    check sees what each of them does.
    """
    torch.manual_seed(0)
    model = WuNengForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("cross_head.scale"):
                parameter.fill_(1.0)  # what RWKV-7 has not
            elif parameter.dim() == 1 or "g_norm" in name or "r_k" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif parameter.abs().max() < 1e-3:
                nn.init.normal_(parameter, std=max(parameter.shape) ** -0.5)
    return LlamaCppRwkv7(model)


def llama_cpp_rwkv7_twin(model: Any) -> Twin:
    """The same weights in our RWKV-7, float32."""
    return Twin(copy.deepcopy(model.weights).float().eval(), dict, RWKV7_TWIN)


class LlamaCppRwkv7(LlamaCpp):
    """An RWKV-7 that llama.cpp runs, called as :class:`LlamaCpp`."""

    places = 4
    """The last four caches can be gone on from: each token's goes to the next place. Always the
    same one after the same cache, for which llama.cpp keeps its graph."""

    def _write(self, file: Path) -> None:
        write_rwkv7_gguf(self.weights, file, self._dtype)

    def buffers(self) -> Iterator[Tensor]:
        """A tied embedding, which is in the file a second time, as the output's matrix."""
        return iter([self.weights.lm_head.weight] if self.config.tie_word_embeddings else [])

    def held_bytes(self, batch: int, tokens: int) -> tuple[int, int]:
        """None of keys and values; of states and both shifted tokens, float32 in all layers."""
        width = self.config.hidden_size
        numbers = width * (self.config.state_head_dim + 2) * self.config.num_hidden_layers
        return 0, batch * numbers * torch.float32.itemsize

    def _go_on(self, cache: Cache) -> int:
        batch, place = cache.ids.shape[0], (cache.place + 1) % self.places
        self._stamps[place] = max(self._stamps) + 1
        memory = self._library.llama_get_memory(self._contexts[0])
        for sequence in range(batch):
            source, target = cache.place * batch + sequence, place * batch + sequence
            self._library.llama_memory_seq_cp(memory, source, target, -1, -1)
        return place
