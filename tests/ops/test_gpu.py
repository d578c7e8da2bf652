"""The same checks on a real GPU, and what only a GPU can show: `pytest -m gpu`.

Needs CUDA and Triton, and TRITON_INTERPRET unset: `-m gpu` keeps the suite from setting it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("run as `pytest -m gpu`: the interpreter is on", allow_module_level=True)

from tests.ops import cross_head_cases
from tests.ops import test_state_readout as readout_checks
from tests.ops.from_projections_checks import ProjectionCase
from tests.ops.from_projections_checks import assert_close as assert_projections_close
from tests.ops.head_step_cases import SITUATIONS, StepCase
from tests.ops.test_token_shift import sides as shift_sides
from tests.ops.triton_checks import INPUTS, Case, assert_close, sides
from tests.precision import assert_as_exact, relative_error
from wuneng.errors import BackendError
from wuneng.ops import state_head, using
from wuneng.ops.cross_head import cross_head
from wuneng.ops.head_arguments import HeadOutputs
from wuneng.ops.readout import state_readout
from wuneng.ops.state_head.step import state_head_step
from wuneng.ops.token_shift import token_shift
from wuneng.ops.wkv7 import triton_passes
from wuneng.ops.wkv7.reference import wkv7_reference
from wuneng.ops.wkv7.triton_autograd import wkv7_triton
from wuneng.ops.wkv7.triton_from_projections import wkv7_from_projections_triton
from wuneng.ops.wkv7.triton_launch import CANDIDATES
from wuneng.ops.wkv7.triton_step import wkv7_triton_step

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    """What is judged here is not taken unasked before it has been."""
    with using("triton"):
        yield


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: Units in the last place of float32 (2e-5): a product of float32 is a sum of three in tf32.
GPU_FLOOR = 168.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("tokens", [1, 16, 17, 200])
def test_lengths_and_head_sizes(dtype: torch.dtype, size: int, tokens: int) -> None:
    case = Case(batch=2, tokens=tokens, heads=3, size=size, dtype=dtype, device="cuda")
    assert_close(case, GPU_FLOOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [16, 32, 64])
def test_value_splits(dtype: torch.dtype, values: int) -> None:
    case = Case(tokens=100, heads=2, size=64, dtype=dtype, device="cuda", values=values)
    if dtype == torch.float32 and values == 64:
        with pytest.raises(BackendError, match="values must be at most 32 for float32"):
            assert_close(case)
        return
    assert_close(case, GPU_FLOOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("repeats", [1, 7, 16, 40, 200])
def test_runs_of_identical_tokens(dtype: torch.dtype, repeats: int) -> None:
    """b's gradient is a small difference of large terms here, in the reference too."""
    case = Case(tokens=repeats + 21, heads=2, size=64, repeats=repeats, dtype=dtype, device="cuda")
    assert_close(case, GPU_FLOOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=120, heads=2, size=64, lengths=(1, 0, 16, 66, 37)),
        Case(tokens=120, heads=2, size=64, decay="both", rate=2.0),
        Case(tokens=120, heads=2, size=64, count=2, every=32),
        Case(tokens=120, heads=2, size=64, count=2, lengths=(1, 50, 69), seen=(15, 64, 3)),
        Case(tokens=1100, heads=2, size=64, count=2, every=64),
        Case(tokens=300, heads=2, size=64, lengths=(1, 200, 99), segments=5),
        Case(tokens=300, heads=2, size=64, repeats=200, segments=6, count=1),
        Case(tokens=40, size=64, scale=30.0),
        Case(tokens=40, size=64, scale=0.0),
    ],
    ids=[
        *("packed", "decays", "snapshots", "continued"),
        *("segments-chosen", "segments-packed", "segments-repeated", "large", "zero"),
    ],
)
def test_situations(case: Case, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and case.scale > 1:
        pytest.skip("y and gradients leave float16's range")
    case.dtype, case.device = dtype, "cuda"
    case.generator.manual_seed(1)
    assert_close(case, GPU_FLOOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        ProjectionCase(batch=2, tokens=200, heads=3, size=64, a_max=2.0),
        ProjectionCase(
            tokens=120, heads=2, size=64, lengths=(1, 0, 16, 66, 37), options={"values": 16}
        ),
        ProjectionCase(tokens=100, size=128),
        ProjectionCase(tokens=61, size=64, repeats=40),
    ],
    ids=["batch", "packed-split", "N128", "repeats"],
)
def test_raw_projections(case: ProjectionCase, shared: bool, dtype: torch.dtype) -> None:
    case.dtype, case.shared, case.device = dtype, shared, "cuda"
    case.generator.manual_seed(0)
    assert_projections_close(case, wkv7_from_projections_triton, GPU_FLOOR)


def test_one_tf32_pass() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        case = Case(tokens=100, size=64, repeats=40, device="cuda", rounding="tf32")
        assert_close(case, GPU_FLOOR)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("kernel", list(CANDIDATES))
def test_every_candidate_of_the_launch_table(kernel: str) -> None:
    for launch in CANDIDATES[kernel]:
        case = Case(tokens=100, size=64, dtype=torch.bfloat16, device="cuda")
        case.chunk, case.values = launch.chunk, launch.values
        with patch.object(triton_passes, f"{kernel}_launch", lambda *_, x=launch: x):
            assert_close(case, GPU_FLOOR)


def test_the_same_inputs_give_the_same_bits() -> None:
    case = Case(batch=4, tokens=500, heads=4, size=64, dtype=torch.bfloat16, device="cuda")
    leaves = case.tested_leaves(case.leaves())
    runs = []
    for _ in range(3):
        y, state, _ = wkv7_triton(*(leaves[name] for name in INPUTS))
        total = y.float().square().sum() + state.square().sum()
        gradients = torch.autograd.grad(total, [leaves[name] for name in INPUTS])
        runs.append([y, state, *gradients])
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))


def test_torch_compile_matches_eager() -> None:
    case = Case(tokens=100, heads=2, size=64, dtype=torch.bfloat16, device="cuda")
    leaves = case.tested_leaves(case.leaves())

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        y, state, _ = wkv7_triton(*inputs)
        return y.float().square().sum() + state.square().sum()

    inputs = [leaves[name] for name in INPUTS]
    eager = torch.autograd.grad(loss(*inputs), inputs)
    traced = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*inputs), inputs)
    # Squares are rounded elsewhere in the fused graph: one unit of bfloat16.
    for x, y in zip(traced, eager, strict=True):
        assert relative_error(x, y.cpu().double()) < torch.finfo(torch.bfloat16).eps


def test_step_is_captured_in_a_cuda_graph() -> None:
    case = Case(batch=2, tokens=8, heads=2, size=64, device="cuda")
    leaves = {name: x.detach() for name, x in case.tested_leaves(case.leaves()).items()}
    exact = {name: x.cpu().double() for name, x in leaves.items()}
    loops = [case.run(x, wkv7_reference) for x in ({n: x.cpu() for n, x in leaves.items()}, exact)]
    token = [leaves[name][:, 0].clone() for name in INPUTS]
    state = leaves["initial_state"].clone()
    wkv7_triton_step(*token, state=state.clone(), in_place=True)  # compile before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = wkv7_triton_step(*token, state=state, in_place=True)
    state.copy_(leaves["initial_state"])
    ys = []
    for t in range(8):
        for slot, name in zip(token, INPUTS, strict=True):
            slot.copy_(leaves[name][:, t])
        graph.replay()
        ys.append(y.clone())
    assert_as_exact([torch.stack(ys, 1), state], *loops, floor=GPU_FLOOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [readout_checks.PARTS, ("norm", "bonus"), ("bonus", "gate"), ()])
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 301, 3, 64), (4, 1000, 5, 128)])
def test_readout(shape: tuple[int, ...], parts: tuple[str, ...], dtype: torch.dtype) -> None:
    exact = readout_checks.drawn(shape, dtype, parts)
    tested = {n: x.detach().to("cuda", dtype).requires_grad_() for n, x in exact.items()}
    readout_checks.assert_close(state_readout, exact, tested, GPU_FLOOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 17, 130), (2, 3000, 192)])
def test_token_shift(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    u, mu = (x.to("cuda", dtype) for x in (torch.randn(shape), torch.rand(shape[-1])))
    assert_as_exact(*shift_sides(token_shift, u, mu), floor=GPU_FLOOR)


@pytest.mark.parametrize("name", list(SITUATIONS))
@pytest.mark.parametrize("in_place", [True, False])
def test_state_head_step(name: str, in_place: bool) -> None:
    case = dataclasses.replace(SITUATIONS[name], device="cuda")
    case.assert_close(state_head_step, GPU_FLOOR, in_place=in_place)


@pytest.mark.parametrize("keeps_carry", [True, False])
def test_one_token_compiles_into_the_step(keeps_carry: bool) -> None:
    case = StepCase(batch=3, size=64, dtype=torch.bfloat16, layout="rows", device="cuda")
    inputs, weights, options, state, carry = case.arguments()

    def step(state: torch.Tensor | None, carry: torch.Tensor | None) -> HeadOutputs:
        return state_head(
            inputs, weights, options, state=state, carry=carry, keeps_carry=keeps_carry
        )

    for given in ((state, carry), (None, None)):
        expected = step(*given)
        found = torch.compile(step, fullgraph=True)(*given)
        assert all(x is y or torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_state_head_step_in_a_cuda_graph(size: int, dtype: torch.dtype) -> None:
    """State and carry advance in the memory that was captured."""
    case = StepCase(batch=3, size=size, tokens=8, dtype=dtype, device="cuda")
    expected = case.run(state_head_step)
    token, weights, options, state, carry = case.arguments()
    assert state is not None
    assert carry is not None
    state_head_step(*case.arguments(), in_place=True)  # compile first
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = state_head_step(token, weights, options, state, carry, in_place=True).readout
    state.copy_(case.state)
    carry.copy_(case.carry)
    for t in range(case.tokens):
        for slot, x in zip(token, case.token(t), strict=True):
            if slot is not None:
                slot.copy_(x)
        graph.replay()
        assert torch.equal(out[:, 0], expected[0][t])
    assert torch.equal(state, expected[1])
    assert torch.equal(carry, expected[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 64, 128])
@pytest.mark.parametrize("heads", cross_head_cases.RATIOS)
@pytest.mark.parametrize("kind", cross_head_cases.KINDS)
def test_cross_head(kind: str, heads: tuple[int, int], size: int, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and size == 128 and kind != "additive":
        pytest.skip("refused: the matrices leave no room in shared memory")
    case = cross_head_cases.Case(kind, 2, 1025, heads, size, dtype=dtype, device="cuda")
    cross_head_cases.assert_close(case, partial(cross_head, backend="triton"), GPU_FLOOR)


def test_half_precision_error_is_of_rounding_size() -> None:
    found, reference, exact = sides(Case(tokens=1000, size=64, dtype=torch.bfloat16, device="cuda"))
    names = ("y", "final_state")
    assert_as_exact(*({name: x[name] for name in names} for x in (found, reference, exact)))


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str, repository: Path) -> None:
    program = (
        "import torch; from tests.ops.triton_checks import Case, compare; "
        "case = Case(tokens=37, size=64, lengths=(1, 19, 17), dtype=torch.bfloat16); "
        "case.device = 'cuda'; compare(case)"
    )
    done = subprocess.run(
        [
            "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            "-c",
            program,
        ],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:]
