"""The cross-head kernels through Triton's interpreter, and as torch operators."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.cross_head_cases import KINDS, RATIOS, Case, assert_close
from tests.precision import assert_as_exact, operand
from wuneng.ops.cross_head import cross_head, cross_head_reference
from wuneng.ops.cross_head import triton_autograd as operators
from wuneng.ops.wkv7 import triton_launch

fused = partial(cross_head, backend="triton")


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("heads", RATIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_every_gradient(kind: str, heads: tuple[int, int]) -> None:
    assert_close(Case(kind, 3, 11, heads), fused)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    with faithful():
        for heads in ((4, 2), (2, 4)):
            assert_close(Case(kind, 1, 1, heads, dtype=dtype), fused)
        assert_close(Case(kind, 1, 33, (2, 1), dtype=dtype), fused)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_head_sizes(kind: str, size: int) -> None:
    with faithful():
        assert_close(Case(kind, 1, 17, (2, 1), size, dtype=torch.bfloat16), fused)


@pytest.mark.parametrize("heads", [(4, 2), (2, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_programs_that_take_several_tiles(
    kind: str, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blocks for seven tiles, the last of one token."""
    monkeypatch.setattr(operators, "processors", lambda device: 3 * heads[1] // 2)
    assert_close(Case(kind, 1, 6 * 16 + 1, heads, scales=1, seed=1), fused)


@pytest.mark.parametrize("kind", KINDS)
def test_repeated_zero_and_large_tokens(kind: str) -> None:
    assert_close(Case(kind, 1, 20, (2, 1), repeats=True), fused)
    for magnitude in (0.0, 1e6):
        assert_close(Case(kind, magnitude=magnitude), fused)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_weights_and_readout_in_float32(kind: str) -> None:
    """A half, R and the weights float32: products in bfloat16, gradients in each one's dtype."""
    leaves = Case(kind).tested_leaves()
    leaves["A"] = leaves["A"].detach().bfloat16().requires_grad_()
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    # Autocast rounds every operand of a product.
    rough = {
        name: operand(x.detach(), torch.bfloat16).requires_grad_() for name, x in exact.items()
    }
    results = []
    for run, xs in ((fused, leaves), (cross_head_reference, rough), (cross_head_reference, exact)):
        with faithful(), torch.autocast("cpu", torch.bfloat16, enabled=xs is leaves):
            outputs = run(*Case(kind).arguments(xs), eps=0.3)
        seeds = [x.detach().to(torch.bfloat16).to(x) for x in outputs]
        seeds = [x.to(y) for x, y in zip(results[0] if results else seeds, outputs, strict=False)]
        with faithful():
            results.append([*outputs, *torch.autograd.grad(outputs, list(xs.values()), seeds)])
    expected = cross_head(*Case(kind).arguments(leaves), eps=0.3, backend="reference")
    assert [x.dtype for x in results[0][2:]] == [x.dtype for x in leaves.values()]
    assert results[0][0].dtype == expected[0].dtype
    assert_as_exact(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_operators_are_registered_properly(kind: str) -> None:
    leaves = Case(kind).tested_leaves()
    arguments = [*Case(kind).arguments(leaves), 0.3, torch.float32]
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(torch.ops.wuneng.cross_head_triton_forward.default, tuple(arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_a_graph_break(kind: str) -> None:
    case = Case(kind)
    leaves = case.tested_leaves()

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        outputs = fused(kind, *arguments, eps=case.eps)
        return outputs[0].square().sum() + outputs[1].square().sum()

    _, *arguments = case.arguments(leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = [
        torch.autograd.grad(run(*arguments), list(leaves.values())) for run in (loss, compiled)
    ]
    for eager, traced in zip(*gradients, strict=True):
        assert torch.equal(eager, traced)


def test_the_same_inputs_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "processors", lambda device: 2)
    case = Case(batch=1, tokens=33, heads=(2, 1))
    runs = []
    for _ in range(2):
        leaves = case.tested_leaves()
        outputs = fused(*case.arguments(leaves), eps=case.eps)
        total = outputs[0].square().sum() + outputs[1].square().sum()
        runs.append([*outputs, *torch.autograd.grad(total, list(leaves.values()))])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_and_strided_inputs(kind: str) -> None:
    def turned(name: str, A: torch.Tensor, *others: torch.Tensor, eps: float) -> object:
        return fused(name, A.transpose(1, 2).contiguous().transpose(1, 2), *others, eps=eps)

    assert_close(Case(kind), turned)
    assert_close(Case(kind, tokens=0), fused)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(dtype=torch.float64), r"A must be float32, bfloat16 or float16.*float64.*'chunked'"),
        (Case(size=15), "head sizes 16, 32, 64, 128, got 15.*reference"),
        (Case(size=128), "gated's matrix in float32 up to head size 64, got 128.*autocast"),
    ],
)
def test_what_the_kernels_cannot_take_is_named(case: Case, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fused(*case.arguments(case.tested_leaves()), eps=case.eps)


def test_cpu_tensors_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "INTERPRETING", False)
    with pytest.raises(ValueError, match=r"needs CUDA tensors, A is on cpu.*'chunked'"):
        fused(*Case().arguments(Case().tested_leaves()), eps=0.3)
