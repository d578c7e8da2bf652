"""A silent self that is asked once for every row, and remembered on disk.

What is kept lies in ``<cache>/teachers/<key>/`` (``teacher_rows``). The key is made of all that its
answers depend on besides the row: the weights that the silent model has, what its configuration
says of them, the precision of the arithmetic, the temperature and k. The tokenizer is in the rows,
which are token ids. So epochs, seeds, arms and runs that have the same teacher share its answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.model import WuNengConfig
from wuneng.model.head_loss import HeadLoss, called_top_k, called_top_k_distillation
from wuneng.ops.linear_cross_entropy import TopK
from wuneng.recipe import DistillStage
from wuneng.train.distillation import SilentSelf
from wuneng.train.lora import is_adapter
from wuneng.train.teacher_rows import TeacherRows, row_name
from wuneng.train.trainable import is_grafted

__all__ = ["KeptSelf", "teacher_key"]

_VERSION = 1
#: Fields of a configuration that say nothing of a model whose branch is silent.
_OF_THE_BRANCH = {
    *("layers", "num_state_heads", "token_shift", "token_shift_on", "decay_rank", "rate_rank"),
    *("value_rank", "gate_rank", "cross_head", "snapshots", "snapshot_every"),
    *("initializer_range", "output_init", "use_cache", "keys_to_ignore_at_inference"),
}


@dataclass(frozen=True)
class KeptSelf(SilentSelf):
    """Of a distil stage with ``teacher_top_k``. The loss is ``kl KL + ce CE`` with the KL of
    ``wuneng.ops.linear_cross_entropy.top_k``.

    The teacher is asked for one row at a time: what it says of a row, to the last bit, then does
    not depend on the batch that the row was first met in.
    """

    cache: Path
    """The cache, below which answers are kept."""

    @cached_property
    def _rows(self) -> TeacherRows:
        assert isinstance(self.settings, DistillStage)
        assert self.settings.teacher_top_k is not None
        place = self.cache / "teachers" / teacher_key(self.model, self.settings)
        return TeacherRows(place, self.settings.teacher_top_k)

    def loss(self, input_ids: Tensor, documents: Tensor | None, labels: Tensor) -> HeadLoss:
        """As ``Teacher``'s. DiskError where an answer cannot be kept."""
        told = [
            self._asked(ids, None if documents is None else documents[row])
            for row, ids in enumerate(input_ids)
        ]
        fields = ("tokens", "log_probabilities", "log_rest")
        kept = TopK(
            *(torch.stack([getattr(one, f) for one in told]).to(labels.device) for f in fields)
        )

        def loss(hidden: Tensor, head: nn.Module) -> Tensor:
            given = self.settings
            parts = called_top_k_distillation(hidden, head, kept, labels, given.temperature)
            total = given.kl * parts[0] + given.ce * parts[1]
            return torch.stack([total, *parts.detach()])

        return loss

    def _asked(self, input_ids: Tensor, documents: Tensor | None) -> TopK:
        """Of one row ``[T]``: as it was kept, also where it is only now being kept."""
        name = row_name(input_ids, documents)
        found = self._rows.read(name, len(input_ids))
        if found is not None:
            return found
        whole = None if documents is None else documents[None]
        hidden, head = self.heard(input_ids[None], whole)
        answer = called_top_k(hidden[0], head, self._rows.k, self.settings.temperature)
        return self._rows.write(name, answer)


def teacher_key(model: nn.Module, settings: DistillStage) -> str:
    """40 digits: what the silent ``model`` answers depends on, besides the row."""
    config: Any = getattr(model, "config", None)
    told = {
        "version": _VERSION,
        "k": settings.teacher_top_k,
        "temperature": settings.temperature,
        "precision": _precision(next(model.parameters()).device.type),
        "config": _of_base(config),
    }
    digest = hashlib.sha256(repr(sorted(told.items())).encode("utf-8"))
    for name, tensor in sorted(model.state_dict().items()):
        if is_grafted(name) or is_adapter(name):
            continue
        digest.update(f"{name.replace('.base_layer.', '.')} {tensor.dtype} {tensor.shape}".encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()[:40]


def _precision(device: str) -> str:
    lowered = torch.is_autocast_enabled(device)
    return f"{device} {torch.get_autocast_dtype(device) if lowered else torch.float32}"


def _of_base(config: WuNengConfig) -> list[tuple[str, Any]]:
    fields = sorted(
        name
        for name in WuNengConfig.__annotations__
        if not name.startswith("state_") and name not in _OF_THE_BRANCH
    )
    return [(name, getattr(config, name, None)) for name in fields]
