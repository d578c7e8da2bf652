"""What a teacher says of rows of tokens, kept on disk: a file for each row.

    <directory>/<first two digits>/<row>.topk

    bytes       content, little-endian
    16          "WNTK", version, T, k as uint32
    4 T k       tokens, int32 [T, k]
    2 T k       their log-probabilities, float16 [T, k]
    4 T         log-probability of all other tokens together, float32 [T]
    32          SHA-256 of all before

A row is named by what is in it (``row_name``), so the same rows are found in another epoch, order,
batch or run. A file that is cut short or altered counts as absent, is told of and written again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wuneng.errors import DiskError
from wuneng.ops.linear_cross_entropy import TopK
from wuneng.records.files import disk_complaint, open_no_link
from wuneng.records.leftovers import lock, remove_abandoned

__all__ = ["TeacherRows", "bytes_of_row", "row_name"]

_log = logging.getLogger(__name__)
_HEADER = struct.Struct("<4s3I")
_MAGIC, _VERSION = b"WNTK", 1
_DIGEST = hashlib.sha256().digest_size
_LOWEST = float(np.finfo(np.float16).min)


def bytes_of_row(tokens: int, k: int) -> int:
    """Of the file of a row of so many tokens."""
    return _HEADER.size + tokens * (6 * k + 4) + _DIGEST


def row_name(input_ids: Tensor, documents: Tensor | None) -> str:
    """Names what a teacher is asked: ``[T]`` token ids and the document of each."""
    told = hashlib.sha256(input_ids.cpu().numpy().astype("<i8").tobytes())
    if documents is not None:
        told.update(documents.cpu().numpy().astype("<i4").tobytes())
    return told.hexdigest()[:40]


class TeacherRows:
    """Those in ``directory``, which is one teacher's; of k tokens a position."""

    def __init__(self, directory: Path, k: int) -> None:
        self.directory, self.k = directory, k
        with suppress(OSError):
            for place in directory.iterdir():  # of processes that were killed
                remove_abandoned(place)

    def read(self, row: str, tokens: int) -> TopK | None:
        """``[tokens, k]`` of a row in float32, on the CPU; None where it is not there, or is
        damaged."""
        path = self._path(row)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        body, digest = content[:-_DIGEST], content[-_DIGEST:]
        expected = _HEADER.pack(_MAGIC, _VERSION, tokens, self.k)
        whole = len(content) == bytes_of_row(tokens, self.k) and body.startswith(expected)
        if not whole or hashlib.sha256(body).digest() != digest:
            _log.warning("what the teacher said in %s is damaged; it is asked again", path)
            return None
        return _parsed(body, tokens, self.k)

    def write(self, row: str, found: TopK) -> TopK:
        """Keep ``[T, k]`` of a row, and return it as it will be read. It is not flushed to the
        disk: the checksum tells.

        Raises:
            DiskError: the disk refuses, or is full.
        """
        tokens = found.log_rest.shape[0]
        probabilities = found.log_probabilities.float().clamp(min=_LOWEST)
        body = b"".join(
            (
                _HEADER.pack(_MAGIC, _VERSION, tokens, self.k),
                found.tokens.cpu().numpy().astype("<i4").tobytes(),
                probabilities.cpu().numpy().astype("<f2").tobytes(),
                found.log_rest.float().cpu().numpy().astype("<f4").tobytes(),
            )
        )
        path = self._path(row)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _put(path, body + hashlib.sha256(body).digest())
        except OSError as error:
            raise DiskError(
                f"what the teacher says cannot be kept in {path}: {disk_complaint(error)}; free "
                "some space, choose another place with data.cache_dir or WUNENG_CACHE, or leave "
                "out teacher_top_k"
            ) from error
        return _parsed(body, tokens, self.k)

    def _path(self, row: str) -> Path:
        return self.directory / row[:2] / f"{row}.topk"


def _parsed(body: bytes, tokens: int, k: int) -> TopK:
    at = _HEADER.size
    parts = []
    for kind, count in (("<i4", tokens * k), ("<f2", tokens * k), ("<f4", tokens)):
        part = np.frombuffer(body, kind, count, at)
        # Not in float16, which autocast on a CPU does not put together.
        wide = np.int32 if kind == "<i4" else np.float32
        parts.append(torch.from_numpy(part.astype(wide)))
        at += part.nbytes
    return TopK(parts[0].view(tokens, k), parts[1].view(tokens, k), parts[2])


def _put(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    descriptor = open_no_link(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            lock(descriptor)  # it is no leftover
            file.write(content)
            file.flush()
            partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
