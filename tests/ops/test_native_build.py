"""The C kernels are built once, kept whole, and done without where they cannot be had."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from tests.ops.state_head_cases import Case, arguments, make, oracle, results
from tests.ops.state_head_cases import operator as state_head_operator
from tests.precision import FLOOR, assert_as_exact
from wuneng.ops import state_head, wkv7
from wuneng.ops.native import compiler
from wuneng.ops.state_head import native as operator

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _forget()
    yield tmp_path / "wuneng"
    _forget()


def test_every_source_is_built_packed_and_in_its_kernels_name(repository: Path) -> None:
    """Sources lie beside their operators; one that is not listed would be missing elsewhere."""
    packed = tomllib.loads((repository / "pyproject.toml").read_text())
    patterns = packed["tool"]["setuptools"]["package-data"]["wuneng"]
    package, operators = repository / "wuneng", repository / "wuneng" / "ops"
    for ending, listed in {"c": compiler._SOURCES, "h": compiler._HEADERS}.items():
        files = set(package.rglob(f"*.{ending}"))
        assert files == {operators / name for name in listed}
        assert files <= {file for pattern in patterns for file in package.glob(pattern)}
    for name in (*compiler._SOURCES, *compiler._HEADERS):
        included = re.findall(r'#include "(.*)"', (operators / name).read_text())
        known = {operators / header for header in compiler._HEADERS}
        assert {((operators / name).parent / x).resolve() for x in included} <= known, name


def _forget() -> None:
    """As if the process were new."""
    compiler.library.cache_clear()
    compiler._given_up.clear()


def _kept(directory: Path) -> Path:
    return directory / f"state_head_16_{compiler._fingerprint(tuple(compiler._compiler()))}.so"


def _ones() -> list[torch.Tensor]:
    x = torch.randn(1, 5, 1, 16)
    return [x, -x.abs(), x, x, x * 0.1, x * 0.1]


def test_one_library_is_kept_and_loaded_again(fresh: Path) -> None:
    assert isinstance(compiler.library(16), ctypes.CDLL)
    kept, checksum = sorted(fresh.iterdir())
    assert (kept, checksum.name) == (_kept(fresh), f"{kept.name}.sha256")
    written = kept.stat().st_mtime_ns, checksum.stat().st_mtime_ns
    _forget()
    assert compiler.library(16) is not None
    assert tuple(path.stat().st_mtime_ns for path in sorted(fresh.iterdir())) == written


@pytest.mark.parametrize(
    ("name", "value"),
    [("CC", "no-such-compiler"), ("CC", "false"), ("CC", "cc '-O")],
)
def test_without_a_compiler_torch_runs(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert compiler.library(16) is None
    x = _ones()
    y, _ = wkv7(*x)
    assert torch.equal(y, wkv7(*x, backend="chunked")[0])
    operator._kernels.cache_clear()
    with pytest.raises(RuntimeError, match="no C kernels for head size 16"):
        wkv7(*x, backend="native")


def test_other_head_sizes_are_left_to_torch() -> None:
    assert compiler.library(48) is None
    x = torch.randn(1, 4, 1, 48)
    assert wkv7(x, -x.abs(), x, x, x, x)[0].shape == x.shape


def test_an_unwritable_cache_is_no_obstacle(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    occupied = tmp_path / "a-file"
    occupied.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    assert compiler.library(16) is not None


def test_serial_code_where_openmp_cannot_be_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    serial = [variant for variant in compiler._VARIANTS if "-fopenmp" not in variant[0]]
    monkeypatch.setattr(compiler, "_VARIANTS", serial)
    assert compiler.library(16) is not None


@pytest.mark.parametrize("unknown", ["-fopenmp", "-march=native"])
def test_a_compiler_that_refuses_a_flag(
    unknown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Apple's clang refuses OpenMP, and some on ARM the first name of the machine."""
    picky = tmp_path / "picky-cc"
    picky.write_text(
        f'#!/bin/sh\nfor x in "$@"; do [ "$x" = "{unknown}" ] && exit 1; done\nexec cc "$@"\n'
    )
    picky.chmod(0o755)
    monkeypatch.setenv("CC", str(picky))
    assert compiler.library(16) is not None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names vectors of x86-64")
@pytest.mark.parametrize(
    ("size", "without"),
    [(64, "-mno-avx512f"), (32, "-mno-fma -mno-avx2 -mno-avx512f"), (16, "-mno-avx")],
)
def test_machines_with_shorter_vectors_compute_the_same(
    size: int, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight and four lanes have code of their own, which this machine's flags would leave out."""
    monkeypatch.setenv("CC", f"cc {without}")
    operator._kernels.cache_clear()
    assert isinstance(compiler.library(size), ctypes.CDLL)
    case = Case(tokens=41, batch=1, heads=3, size=size, scale=3.0)
    exact = make(case)
    rough = {name: x.float() for name, x in exact.items()}
    shapes = [x.shape for x in oracle(case, rough)[:2]]
    seeds = (torch.randn(shapes[0]), torch.randn(shapes[1]))
    monkeypatch.setenv("WUNENG_BACKEND", "native")
    found = results(case, rough, state_head_operator, seeds)
    formula = (results(case, tensors, oracle, seeds) for tensors in (rough, exact))
    assert_as_exact(found, *formula, what=case, floor=FLOOR)
    worst = torch.tensor([float("nan"), float("inf"), -float("inf"), 200.0, -200.0, 0.0])
    logits = worst.repeat(size)[: 3 * size].expand(1, 41, 3 * size)
    for name in ("w", "a"):
        out = state_head(**arguments(case, rough | {name: logits.contiguous()})).readout
        assert out.isnan().any(), "what is no number was hidden"
        finite = torch.nan_to_num(logits, nan=0.0, posinf=300.0, neginf=-300.0).contiguous()
        out = state_head(**arguments(case, rough | {name: finite})).readout
        assert out.isfinite().all()
    operator._kernels.cache_clear()
