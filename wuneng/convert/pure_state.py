"""RWKV-7 to a WuNeng without attention heads: the same function, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from wuneng.convert.conversion import Conversion
from wuneng.convert.plan import main_dtype, make_plan, model_shapes
from wuneng.convert.rwkv7 import read_rwkv7
from wuneng.convert.rwkv_tokenizer import is_world_vocabulary, world_tokenizer
from wuneng.convert.source import Located, open_tensors
from wuneng.convert.verify import check_against_rwkv7
from wuneng.errors import ModelError
from wuneng.foreign import regular_file_inside

__all__ = ["from_rwkv7"]


def from_rwkv7(
    located: Located, *, dtype: torch.dtype | None, tokenizer: Path | None
) -> Conversion:
    """An RWKV-7 checkpoint of either layout as a pure state model.

    Args:
        dtype: of the destination; None keeps the source's.
        tokenizer: a World vocabulary file, or a directory with a tokenizer; None looks beside the
            weights.

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
    companions, write = _tokenizer_writer(located, tokenizer, config.vocab_size)
    return Conversion(
        what="rwkv7 to wuneng",
        source=located.label,
        config=config,
        counted=None,
        plan=plan,
        dtype=target,
        companions=companions,
        verify=lambda written, probe: check_against_rwkv7(checkpoint, written, probe, target),
        write=write,
    )


def _tokenizer_writer(
    located: Located, given: Path | None, vocab_size: int
) -> tuple[Path | None, Callable[[Path], None]]:
    """Where tokenizer files are copied from, and what writes those that must be made."""
    if given is not None and not given.exists():
        raise ModelError(f"--tokenizer {given}: no such file or directory")
    if given is not None and given.is_dir():
        return given, _nothing
    directory = located.path.parent if located.is_file else located.path
    if given is None and not located.is_file and (directory / "tokenizer.json").is_file():
        return directory, _nothing
    if given is None:
        beside = [f for f in sorted(directory.glob("*.txt")) if is_world_vocabulary(f)]
        given = regular_file_inside(beside[0], directory) if beside else None
    if given is None:
        return (None if located.is_file else directory), _nothing
    made = world_tokenizer(given)
    if len(made) > vocab_size:
        raise ModelError(f"{given}: {len(made)} tokens, the model has only {vocab_size}")
    return None, partial(_save, made)


def _nothing(_: Path) -> None:
    """No file has to be made."""


def _save(tokenizer: object, directory: Path) -> None:
    tokenizer.save_pretrained(directory)  # type: ignore[attr-defined]
