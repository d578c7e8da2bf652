"""Builds the C kernels with the machine's own compiler, once, and loads them.

A shared object per head size is kept (``library_cache.py`` says where, and when a kept one may be
loaded), named by a hash of sources, flags, compiler and processor, so that a home directory shared
by different machines holds one for each. Without a compiler, or with one that is broken or hangs,
there are no native kernels and callers fall back to torch.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from wuneng.ops.native.compiler_process import reason, run_compiler
from wuneng.ops.native.library_cache import is_intact, keep, own_directory
from wuneng.records.leftovers import KERNEL_BUILD
from wuneng.records.scratch import remove_unused, scratch_directory

HEAD_SIZES = (16, 32, 64, 128)
#: Below ``wuneng/ops``.
_SOURCES = (
    "state_head/state_head.c",
    "state_head/state_head_backward.c",
    "low_rank/low_rank.c",
    "cross_head/cross_head.c",
    "cross_head/cross_head_forward.c",
    "cross_head/cross_head_backward.c",
    "rms_norm/rms_norm.c",
    "native/hybrid_token.c",
    "native/attend_token.c",
    "native/model_token.c",
    "native/project_token.c",
    "native/state_token.c",
    "native/delta_token.c",
)
_HEADERS = (
    "state_head/state_head.h",
    "state_head/state_head_inputs.h",
    "state_head/state_head_reverse.h",
    "state_head/state_head_token.h",
    "low_rank/low_rank.h",
    "cross_head/cross_head.h",
    "cross_head/cross_head_pass.h",
    "cross_head/cross_head_tile.h",
    "rms_norm/rms_norm.h",
    "native/hybrid_token.h",
    "native/attend_token.h",
    "native/model_token.h",
    "native/layer_token.h",
    "native/products.h",
    "native/tile_product.h",
    "native/exponentials.h",
    "native/vectors.h",
)
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
_OPS = Path(__file__).parents[1]
_log = logging.getLogger(__name__)


#: Compilers that have failed or hung in this process.
_given_up: set[tuple[str, ...]] = set()


@lru_cache
def library(size: int) -> ctypes.CDLL | None:
    """The kernels for heads of ``size`` channels; None where they cannot be had."""
    if size not in HEAD_SIZES:
        return None
    if not (_OPS / _SOURCES[0]).exists():  # an exported model's code travels without them
        return None
    command = _compiler()
    if command is None:
        _log.info("no C compiler found: the CPU's state heads run in torch")
        return None
    return _load_or_build(tuple(command), size)


def _compiler() -> list[str] | None:
    chosen = os.environ.get("CC")
    for candidate in [chosen] if chosen else ["cc", "gcc", "clang"]:
        try:
            words = shlex.split(candidate)
        except ValueError:  # an open quotation mark
            continue
        if words and shutil.which(words[0]):
            return words
    return None


def _load_or_build(command: tuple[str, ...], size: int) -> ctypes.CDLL | None:
    name = f"state_head_{size}_{_fingerprint(command)}.so"
    directory = own_directory()
    kept = None if directory is None else directory / name
    if kept is not None and is_intact(kept):
        remove_unused(KERNEL_BUILD, kept.parent)  # as every build does before it begins
        with suppress(OSError):  # of a machine that only looked the same
            return ctypes.CDLL(str(kept))
    if command in _given_up:
        return None
    try:
        with _workplace(directory) as (folder, lasting):
            kernels, built = _build_one_that_loads(command, size, folder)
            if kept is not None and lasting:
                with suppress(OSError):  # a full disk: built again next time
                    keep(built, kept)
        return kernels
    except (OSError, subprocess.SubprocessError) as error:
        _given_up.add(command)  # it would do no better for another head size
        _log.warning("the C kernels did not build, torch runs in their place: %s", reason(error))
        return None


@contextmanager
def _workplace(directory: Path | None) -> Iterator[tuple[Path, bool]]:
    """An empty directory to build in, and whether it lies in the cache ``directory``.

    Where there is no cache that can be written, it is a private one for this process alone.
    """
    with ExitStack() as stack:
        lasting = directory is not None
        try:
            if directory is not None:
                folder = stack.enter_context(scratch_directory(KERNEL_BUILD, directory))
        except OSError:
            lasting = False
        if not lasting:
            folder = stack.enter_context(scratch_directory(".wuneng-kernels-"))
        yield folder, lasting


def _build_one_that_loads(
    command: tuple[str, ...], size: int, folder: Path
) -> tuple[ctypes.CDLL, Path]:
    failure: Exception = OSError("nothing to build")
    for number, (compile_flags, link_flags) in enumerate(_VARIANTS):
        # A name for each: the loader gives an old library back for an old name.
        built = folder / f"variant{number}.so"
        try:
            _build(command, size, built, compile_flags, link_flags)
            return ctypes.CDLL(str(built)), built
        except (OSError, subprocess.CalledProcessError) as error:
            failure = error
    raise failure


def _build(
    command: tuple[str, ...],
    size: int,
    built: Path,
    compile_flags: tuple[str, ...],
    link_flags: tuple[str, ...],
) -> None:
    objects = [str(built.with_suffix(f".{Path(source).name}.o")) for source in _SOURCES]
    steps = [
        [*_FLAGS, *compile_flags, f"-DN={size}", "-c", str(_OPS / source), "-o", compiled]
        for source, compiled in zip(_SOURCES, objects, strict=True)
    ]
    for arguments in (*steps, ["-shared", *link_flags, *objects, "-o", str(built), "-lm"]):
        run_compiler([*command, *arguments])


def _fingerprint(command: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in (*_SOURCES, *_HEADERS):
        digest.update((_OPS / name).read_bytes())
    executable = shutil.which(command[0])
    assert executable is not None
    status = os.stat(executable)
    digest.update(
        repr((list(command), _FLAGS, _VARIANTS, status.st_size, status.st_mtime_ns)).encode()
    )
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
