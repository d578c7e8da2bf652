"""RWKV-7 to a WuNeng without attention heads: the same function, tensor by tensor."""

from __future__ import annotations

import torch

from wuneng.convert.conversion import Conversion
from wuneng.convert.plan import main_dtype, make_plan, model_shapes
from wuneng.convert.rwkv7 import read_rwkv7
from wuneng.convert.rwkv_choice import choose_tokenizer
from wuneng.convert.source import Located, open_tensors
from wuneng.convert.verify import check_against_rwkv7

__all__ = ["from_rwkv7"]


def from_rwkv7(located: Located, *, dtype: torch.dtype | None, tokenizer: str | None) -> Conversion:
    """An RWKV-7 checkpoint of either layout as a pure state model.

    Args:
        dtype: of the destination; None keeps the source's.
        tokenizer: ``bytes``, ``world``, a World vocabulary file, or a directory with a tokenizer;
            None looks beside the weights.

    Raises:
        ModelError: another version of RWKV, a tensor that RWKV-7 does not have, broken files.
    """
    source = open_tensors(located)
    settings = None if located.is_file else located.config
    checkpoint = read_rwkv7(source, str(located.path), settings)
    config = checkpoint.config
    config.architectures = ["WuNengForCausalLM"]
    config.converted_from = "rwkv7"
    wanted = model_shapes(config)
    target = dtype or main_dtype(source)
    plan = make_plan(
        source,
        checkpoint.routes(wanted),
        checkpoint.ignored,
        dtype=dtype,
        wanted=wanted,
        # lambda of every state head, which RWKV-7 does not have: one changes nothing
        new=lambda name: torch.ones(wanted[name], dtype=target),
        may_be_new=lambda name: name.endswith("cross_head.scale"),
    )
    chosen = choose_tokenizer(located, tokenizer, config.vocab_size)
    return Conversion(
        what="rwkv7 to wuneng",
        source=located.label,
        place=located.path,
        config=config,
        counted=None,
        plan=plan,
        dtype=target,
        companions=chosen.directory,
        verify=lambda written, probe: check_against_rwkv7(checkpoint, written, probe, target),
        write=chosen.write,
        details=lambda: {"without_tokenizer": chosen.missing} if chosen.missing else {},
    )
