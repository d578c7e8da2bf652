"""``convert``: find out what the source is, build the conversion that was asked for, do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wuneng.convert.conversion import Conversion, Outcome, carry_out, check_destination
from wuneng.convert.distributed import from_dcp, write_dcp
from wuneng.convert.export import to_transformers
from wuneng.convert.graft import GraftSettings
from wuneng.convert.pure_state import from_rwkv7
from wuneng.convert.resave import to_wuneng
from wuneng.convert.source import Located, locate
from wuneng.convert.transformer import from_transformer
from wuneng.data.tokenizer import check_tokenizer
from wuneng.errors import InputError, nearest
from wuneng.hub.upload import check_repository, upload
from wuneng.records import verify

__all__ = ["Request", "convert"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LONG_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
TARGETS = ("wuneng", "transformers", "dcp")


@dataclass(frozen=True)
class Request:
    """What the user asks for; None is "not said".

    Attributes:
        source: a directory, a hub name, a run, or an RWKV-7 file.
        destination: a directory that does not exist yet.
        to: ``wuneng``, ``transformers`` or ``dcp``.
        graft: the heads to add to a Transformer; None says nothing about them.
        dtype: ``fp32``, ``bf16`` or ``fp16``; None keeps the source's.
        seed: of new parameters.
        state_from: an RWKV-7 to start state heads from.
        tokenizer: for an RWKV-7 without one: ``bytes``, ``world``, a World vocabulary file or a
            directory.
        stock: for ``transformers``: True insists on a stock architecture, False on remote code;
            None takes stock where nothing is lost.
        verify: compare logits before the destination appears.
        check_source: compare the source's and the tokenizer's files with their checksums, where
            there are some.
        new_apart: whether new heads get a file of their own: the others then hold the same bytes
            whatever is added, and several conversions of one source can share them.
        push_to_hub: a repository ``owner/name`` to upload the result to.
        private: make that one private.
        progress: show on stderr how far the upload is.
        skip_check: the option that leaves that out, for the error over a damaged file.
    """

    source: str
    destination: Path
    to: str = "wuneng"
    graft: GraftSettings | None = None
    dtype: str | None = None
    seed: int = 0
    state_from: str | None = None
    tokenizer: str | Path | None = None
    stock: bool | None = None
    verify: bool = True
    check_source: bool = True
    new_apart: bool = False
    push_to_hub: str | None = None
    private: bool = False
    progress: bool = False
    skip_check: str = "--no-checksums"


def convert(request: Request, note: Callable[[str], None] = lambda _: None) -> Outcome:
    """Carry out ``request``; ``note`` hears what is going on.

    Raises:
        DamagedError: a file of the source is not what was written.
        ModelError: the source is missing, broken or of an architecture that does not convert.
        InputError: options that contradict the source or each other; an existing destination.
        VerificationError: the logits differ; nothing was written.
        DiskError: the disk is full; nothing is left behind.
        RunError: the result is there, but could not be uploaded.
    """
    if request.to not in TARGETS:
        raise InputError(
            f"--to: expected one of {', '.join(TARGETS)}, got {request.to!r}."
            f"{nearest(request.to, TARGETS)}"
        )
    dtype = _dtype(request.dtype)
    _check_upload(request)
    check_destination(request.destination)
    located = locate(request.source)
    if request.check_source:
        for origin in (located, locate(request.state_from) if request.state_from else None):
            if origin is not None and not origin.is_file:
                verify(origin.path, skip=request.skip_check)
        if request.tokenizer is not None:
            check_tokenizer(str(request.tokenizer), request.skip_check)
    _check_options(request, located)
    if request.to == "dcp":
        return write_dcp(located, request.destination, verify=request.verify, note=note)
    conversion = _build(request, located, dtype)
    repository = request.push_to_hub
    outcome = carry_out(
        conversion, request.destination, verify=request.verify, note=note, repository=repository
    )
    if repository is None:
        return outcome
    note(f"uploading {outcome.directory} to {repository}")
    options = {"private": request.private, "progress": request.progress}
    return replace(outcome, uploaded=upload(outcome.directory, repository, **options))


def _build(request: Request, located: Located, dtype: torch.dtype | None) -> Conversion:
    if request.to == "transformers":
        return to_transformers(located, dtype=dtype, stock=request.stock)
    if located.is_distributed:
        return from_dcp(located, dtype=dtype)
    if located.is_rwkv7:
        return from_rwkv7(
            located,
            dtype=dtype,
            tokenizer=None if request.tokenizer is None else str(request.tokenizer),
        )
    if located.is_wuneng and request.graft is None and request.state_from is None:
        return to_wuneng(located, dtype=dtype)
    return from_transformer(
        located,
        request.graft or GraftSettings(),
        dtype=dtype,
        seed=request.seed,
        state_from=request.state_from,
        new_apart=request.new_apart,
    )


def _check_options(request: Request, located: Located) -> None:
    """Refuse options that would do nothing for this source and target."""
    grafts = request.to == "wuneng" and not (located.is_rwkv7 or located.is_distributed)
    if not grafts and (request.graft is not None or request.state_from is not None):
        raise InputError(
            f"{located.label} ({located.kind}) to {request.to} adds no heads: --state-heads, "
            "--state-layers, --state-head-dim, --cross-head, --snapshots, --key-source, "
            "--value-source and --state-from do not apply"
        )
    if request.tokenizer is not None and not (located.is_rwkv7 and request.to == "wuneng"):
        raise InputError("--tokenizer is for RWKV-7 sources; others bring their own")
    if request.stock is not None and request.to != "transformers":
        raise InputError("--stock and --remote-code go with --to transformers")
    if request.to != "wuneng" and not located.is_wuneng:
        raise InputError(
            f"{located.label} is a {located.kind}; --to {request.to} takes a WuNeng model. "
            "Convert it with --to wuneng first."
        )
    if request.to == "dcp" and request.dtype is not None:
        raise InputError("--to dcp writes the tensors as they are; --dtype does not apply")


def _check_upload(request: Request) -> None:
    """Refuse, before any work, what could not or must not be uploaded after it."""
    if request.push_to_hub is None:
        if request.private:
            raise InputError("--private goes with --push-to-hub")
        return
    check_repository(request.push_to_hub)
    if request.to == "dcp":
        raise InputError("--push-to-hub is for models; nobody loads a distributed checkpoint there")
    if not request.verify:
        raise InputError("--push-to-hub uploads what was compared; leave out --no-verify")


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    short = _LONG_NAMES.get(name, name)
    if short not in DTYPES:
        raise InputError(
            f"--dtype: expected one of {', '.join(DTYPES)}, got {name!r}.{nearest(name, DTYPES)}"
        )
    return DTYPES[short]
