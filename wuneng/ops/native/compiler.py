"""Builds the C kernels with the machine's own compiler, once, and loads them.

A shared object per head size goes to ``$XDG_CACHE_HOME/wuneng`` (``~/.cache/wuneng``), named by a
hash of sources, flags, compiler and processor, so that a home directory shared by different
machines holds one for each. Without a compiler there are no native kernels and callers fall back to
torch; ``WUNENG_NATIVE=0`` asks for that.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

HEAD_SIZES = (16, 32, 64, 128)
_SOURCES = ("state_head.c", "state_head_backward.c", "few_tokens.c", "hybrid_token.c")
_HEADERS = (*("state_head.h", "state_head_token.h", "few_tokens.h", "hybrid_token.h", "vectors.h"),)
_FLAGS = (
    *("-O3", "-std=gnu11", "-fPIC"),
    # Not -ffast-math: NaN must stay NaN, and sums keep their order.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
# Threads come from the OpenMP that torch has loaded: a second runtime's pool would fight with its.
# Hence compiled for OpenMP but not linked to it; then linked; then serial.
_THREADS = ((("-fopenmp",), ()), (("-fopenmp",), ("-fopenmp",)), ((), ()))
# Clang on ARM knows the machine by the second name. The first variant that builds and loads is it.
_MACHINES = ("-march=native", "-mcpu=native")
_VARIANTS = tuple(
    ((machine, *compiled), linked) for machine in _MACHINES for compiled, linked in _THREADS
)
_HERE = Path(__file__).parent
_log = logging.getLogger(__name__)


_paused = False


@contextmanager
def torch_instead() -> Iterator[None]:
    """Compute in torch meanwhile: for comparing bits with code that has no C kernels."""
    global _paused
    before, _paused = _paused, True
    try:
        yield
    finally:
        _paused = before


def library(size: int) -> ctypes.CDLL | None:
    """The kernels for heads of ``size`` channels; None where they cannot be had."""
    return None if _paused else _library(size)


@lru_cache
def _library(size: int) -> ctypes.CDLL | None:
    if size not in HEAD_SIZES or os.environ.get("WUNENG_NATIVE") == "0":
        return None
    if not (_HERE / _SOURCES[0]).exists():  # an exported model's code travels without them
        return None
    command = _compiler()
    if command is None:
        _log.info("no C compiler found: the CPU's state heads run in torch")
        return None
    try:
        return _load_or_build(command, size)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or error
        _log.warning("the C kernels did not build, torch runs in their place: %s", output)
        return None


def _compiler() -> list[str] | None:
    chosen = os.environ.get("CC")
    for candidate in [chosen] if chosen else ["cc", "gcc", "clang"]:
        words = shlex.split(candidate)
        if words and shutil.which(words[0]):
            return words
    return None


def _load_or_build(command: list[str], size: int) -> ctypes.CDLL:
    path = _cache_directory() / f"state_head_{size}_{_fingerprint(command)}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # cut short, or of a machine that only looked the same
            path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as folder:
        failure: Exception = OSError("nothing to build")
        for number, (compile_flags, link_flags) in enumerate(_VARIANTS):
            # A name for each: the loader gives an old library back for an old name.
            built = Path(folder) / f"variant{number}.so"
            try:
                _build(command, size, built, compile_flags, link_flags)
                kernels = ctypes.CDLL(str(built))
            except (OSError, subprocess.CalledProcessError) as error:
                failure = error
                continue
            os.replace(built, path)  # whole or not at all, whoever else is building
            return kernels
    raise failure


def _build(
    command: list[str],
    size: int,
    built: Path,
    compile_flags: tuple[str, ...],
    link_flags: tuple[str, ...],
) -> None:
    objects = [str(built.with_suffix(f".{source}.o")) for source in _SOURCES]
    steps = [
        [*_FLAGS, *compile_flags, f"-DN={size}", "-c", str(_HERE / source), "-o", compiled]
        for source, compiled in zip(_SOURCES, objects, strict=True)
    ]
    for arguments in (*steps, ["-shared", *link_flags, *objects, "-o", str(built), "-lm"]):
        subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True, timeout=120
        )


def _cache_directory() -> Path:
    """Where libraries are kept: the user's cache, else a directory of this process alone."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(root) / "wuneng"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="wuneng-"))


def _fingerprint(command: list[str]) -> str:
    digest = hashlib.sha256()
    for name in (*_SOURCES, *_HEADERS):
        digest.update((_HERE / name).read_bytes())
    executable = shutil.which(command[0])
    assert executable is not None
    status = os.stat(executable)
    digest.update(repr((command, _FLAGS, _VARIANTS, status.st_size, status.st_mtime_ns)).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What -march=native depends on."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            kinds = {line for line in file if line.startswith(("flags", "Features", "model name"))}
        return "".join(sorted(kinds))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
