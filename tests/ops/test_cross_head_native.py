"""The cross-head operator's C kernels of many tokens against the equations in float64."""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from tests.ops.cross_head_cases import KINDS, RATIOS, Case, assert_close
from tests.ops.fast_paths import PoisonedError, poisoned
from tests.precision import FLOOR, assert_as_exact, rounded_operands, worst
from wuneng.ops import native, using
from wuneng.ops.cross_head import cross_head, cross_head_reference, native_pass

pytestmark = pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")

in_c = partial(cross_head, backend="native")


def fresh(**settings: Any) -> Case:
    """Other numbers at every run; a failure tells the seed."""
    return Case(seed=secrets.randbelow(2**31), **settings)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("heads", RATIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_every_gradient(kind: str, heads: tuple[int, int]) -> None:
    """One token, a tile and a token, several programs of which the last is short."""
    for batch, tokens, size in ((1, 1, 16), (1, 25, 128), (3, 131, 32), (1, 67, 64)):
        case = fresh(kind=kind, heads=heads, batch=batch, tokens=tokens, size=size)
        # Sums of so many products of standard normal numbers that end in one, which may cancel;
        # for one head alone the norm undoes its mix.
        scales = dict.fromkeys(("d scale", "d group_mix"), (batch * tokens * size) ** 0.5)
        # Products of 2 N summed in order: their roundings add up as the square root of how many.
        assert_close(case, in_c, floor=FLOOR * max(1, size / 64) ** 0.5, scales=scales)


def test_gates_of_large_logits_are_as_exact_as_small_ones() -> None:
    """Gates each by itself, of logits also so large that e^-x is below the smallest normal number:
    an e^x that stops at e^-88 gives slopes 10^260 times too large."""
    size, heads = 16, 32
    sides = torch.cat([torch.rand(200) * 20, 80 + torch.rand(200) * 30, torch.rand(112) * 1e4])
    logits = sides.where(torch.rand(len(sides)) < 0.5, -sides).view(heads, size)
    found = []
    for run, dtype in ((in_c, torch.float32), (cross_head_reference, torch.float64)):
        bias = logits.to(dtype).requires_grad_()
        ones = [torch.ones(*shape, dtype=dtype) for shape in ((heads,), (heads, 1), (heads, size))]
        A, R = torch.ones(1, 1, heads, size, dtype=dtype), bias.new_zeros(1, 1, heads, size)
        weight = bias.new_zeros(heads, 2 * size, size)
        _, branch = run("gated", A, R, *ones, weight, bias, eps=1e-6)
        middle = branch[..., heads * size :]
        found.append([middle.detach().double(), *torch.autograd.grad(middle.sum(), bias)])
    smallest, unit = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).eps
    for ours, exact in zip(*found, strict=True):
        ours, exact = ours.double().flatten(), exact.flatten()
        assert (ours <= exact * (1 + 1e-5) + 1e-44)[exact < smallest].all()
        # 1 - sigma is all that the plain formula keeps of a gate near 1.
        assert ((ours - exact).abs() <= 1e-5 * exact + unit).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        {"scales": 1},
        {"scales": 1, "heads": (2, 4)},
        {"repeats": True, "tokens": 41},
        {"magnitude": 1e6},
        {"magnitude": 1e-6},
        {"eps": 1e-6},
        {"heads": (16, 2), "batch": 5},
    ],
    ids=str,
)
def test_situations(kind: str, change: dict[str, Any]) -> None:
    assert_close(replace(fresh(kind=kind), **change), in_c)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(kind: str, used: int) -> None:
    case = fresh(kind=kind, tokens=53)
    gradients = []
    exact = case.leaves()
    for run, leaves in (
        (in_c, case.tested_leaves()),
        *((cross_head_reference, rough) for rough in rounded_operands(exact, case.dtype)),
        (cross_head_reference, exact),
    ):
        graded = [x.requires_grad_() for x in leaves.values()]
        output = run(*case.arguments(leaves), eps=case.eps)[used]
        options = {"materialize_grads": True, "allow_unused": True}
        gradients.append(torch.autograd.grad(output.square().sum(), graded, **options))
    found, *rough, wide = gradients
    assert_as_exact(found, worst(rough, wide), wide, what=case)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_company_change_no_bit(kind: str) -> None:
    """A token's outputs do not depend on the tokens beside it, nothing on the number of threads."""
    case = fresh(kind=kind, batch=1, tokens=300, size=64)
    leaves = case.tested_leaves()
    assert leaves["R"].numel() > native_pass._LEAST_WORK
    runs, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            outputs = in_c(*case.arguments(leaves), eps=case.eps)
            total = sum(x.square().sum() for x in outputs)
            runs.append([*outputs, *torch.autograd.grad(total, list(leaves.values()))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
    some = leaves | {name: leaves[name][:, 131:160] for name in ("A", "R")}
    outputs = in_c(*case.arguments(some), eps=case.eps)
    assert all(torch.equal(x[:, 131:160], y) for x, y in zip(runs[0], outputs, strict=False))


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs_and_zeros(kind: str) -> None:
    def turned(*arguments: Any, **settings: Any) -> Any:
        _, A, R, *others = arguments
        A = A.transpose(1, 2).contiguous().transpose(1, 2)
        R = R.transpose(0, 1).contiguous().transpose(0, 1)
        return in_c(kind, A, R, *others, **settings)

    assert_close(fresh(kind=kind, tokens=29), turned)
    for magnitude in (0.0, 1e15):
        case = fresh(kind=kind, magnitude=magnitude, eps=1e-6)
        leaves = case.tested_leaves()
        outputs = in_c(*case.arguments(leaves), eps=case.eps)
        gradients = torch.autograd.grad(
            outputs, list(leaves.values()), [*map(torch.ones_like, outputs)]
        )
        assert all(torch.isfinite(x).all() for x in (*outputs, *gradients))


def test_a_nan_stays_one() -> None:
    for kind in KINDS:
        leaves = fresh(kind=kind, tokens=30).tested_leaves()
        leaves["R"].data[1, 7, 0, 3] = float("nan")
        _, branch = in_c(*Case(kind).arguments(leaves), eps=1e-6)
        assert branch[1, 7].isnan().any()
        assert branch[0].isfinite().all()


def test_no_tokens() -> None:
    for kind in KINDS:
        case = Case(kind, tokens=0)
        leaves = case.tested_leaves()
        outputs = in_c(*case.arguments(leaves), eps=case.eps)
        assert [x.shape for x in outputs] == [(2, 0, 64), (2, 0, 64)]
        total = sum(x.sum() for x in outputs)
        assert not any(x.any() for x in torch.autograd.grad(total, list(leaves.values())))


class _Wrapped(torch.Tensor):
    """A subclass, whose memory is not read past it."""


@pytest.mark.parametrize("unknown", ["float64", "bfloat16", "subclass", "autocast", "size"])
def test_what_it_does_not_know_goes_the_plain_way(unknown: str) -> None:
    case = Case(tokens=300, size=24 if unknown == "size" else 16)
    leaves = {name: x.detach() for name, x in case.tested_leaves().items()}
    taken = partial(in_c, *case.arguments(leaves), eps=case.eps)
    if unknown in ("float64", "bfloat16"):
        leaves = {name: x.to(getattr(torch, unknown)) for name, x in leaves.items()}
    elif unknown == "subclass":
        leaves["group_norm"] = leaves["group_norm"].as_subclass(_Wrapped)
    paths = ("cross_head.native_pass:_forward", "cross_head.native:cross_head")
    with poisoned(*paths), torch.autocast("cpu", torch.bfloat16, enabled=unknown == "autocast"):
        out = in_c(*case.arguments(leaves), eps=case.eps)
    assert all(x.isfinite().all() for x in out)
    if unknown != "size":
        with poisoned(*paths), pytest.raises(PoisonedError):
            taken()


def test_torch_compile_sees_the_equations() -> None:
    case = Case(tokens=300)
    arguments = case.arguments(case.tested_leaves())
    run = torch.compile(partial(cross_head, eps=case.eps), fullgraph=True, backend="aot_eager")
    with poisoned("cross_head.native_pass:_forward"), using("native"):
        run(*arguments)
