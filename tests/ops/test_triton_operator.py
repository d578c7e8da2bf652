"""WKV-7's Triton operators in torch: registration, compile, determinism, errors, one-token step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.triton_checks import INPUTS, Case
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.errors import BackendError
from wuneng.ops import Snapshots, wkv7
from wuneng.ops.wkv7 import triton_autograd, triton_launch
from wuneng.ops.wkv7.reference import wkv7_reference
from wuneng.ops.wkv7.step import step
from wuneng.ops.wkv7.triton_autograd import wkv7_triton
from wuneng.ops.wkv7.triton_step import wkv7_triton_step


def tensors(case: Case) -> dict[str, Tensor]:
    return case.tested_leaves(case.leaves())


def six(leaves: dict[str, Tensor]) -> list[Tensor]:
    return [leaves[name] for name in INPUTS]


@pytest.mark.parametrize("packed", [False, True])
def test_forward_operator_is_registered_properly(packed: bool) -> None:
    case = Case(tokens=20, lengths=(7, 13) if packed else ())
    leaves = tensors(case)
    bounds = torch.tensor([0, 7, 20]) if packed else None
    arguments = (*six(leaves), leaves["initial_state"], bounds, None, 16, 0, True, 0)
    torch.library.opcheck(torch.ops.wuneng.wkv7_triton_forward.default, arguments)


def test_step_operators_are_registered_properly() -> None:
    leaves = {name: x.detach() for name, x in tensors(Case(tokens=1)).items()}
    arguments = (*(x[:, 0] for x in six(leaves)), leaves["initial_state"])
    torch.library.opcheck(torch.ops.wuneng.wkv7_triton_step.default, arguments)
    torch.library.opcheck(torch.ops.wuneng.wkv7_triton_step_.default, arguments)


@pytest.mark.parametrize("kind", ["fresh", "packed", "snapshots"])
def test_compiles_without_a_graph_break(kind: str) -> None:
    case = Case(tokens=20, lengths=(7, 13) if kind == "packed" else ())
    case.count = 2 if kind == "snapshots" else 0
    leaves = tensors(case)

    def loss(leaves: dict[str, Tensor]) -> Tensor:
        outputs = case.run(leaves, wkv7_triton)
        return sum((x.square().sum() for x in outputs), torch.zeros(()))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = [
        torch.autograd.grad(run(leaves), list(leaves.values())) for run in (loss, compiled)
    ]
    for eager, traced in zip(*gradients, strict=True):
        assert torch.equal(eager, traced)


def test_the_same_inputs_give_the_same_bits() -> None:
    case = Case(tokens=40, heads=2, size=32, count=2, values=16)
    runs = []
    for _ in range(2):
        case.generator.manual_seed(0)
        leaves = tensors(case)
        outputs = case.run(leaves, wkv7_triton, values=16)
        total = sum((x.square().sum() for x in outputs), torch.zeros(()))
        runs.append([*outputs, *torch.autograd.grad(total, list(leaves.values()))])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_a_sequence_fed_in_pieces_gives_the_same_result() -> None:
    case = Case(tokens=50, count=2)
    exact = case.leaves()
    leaves = {name: x.detach() for name, x in case.tested_leaves(exact).items()}
    state, ring, pieces = leaves["initial_state"], None, []
    for begin, end in ((0, 11), (11, 12), (12, 48), (48, 50)):
        piece = [x[:, begin:end] for x in six(leaves)]
        position = None if ring is None else torch.tensor([begin])
        snapshots = Snapshots(16, leaves["weights"][:, begin:end], ring, position)
        y, state, ring = wkv7_triton(*piece, initial_state=state, snapshots=snapshots)
        pieces.append(y)
    loops = [case.run(x, wkv7_reference) for x in (leaves, exact)]
    assert_as_exact([torch.cat(pieces, 1), state, ring], *loops, floor=CHUNKED_FLOOR)


def test_gradient_of_y_alone_and_of_the_state_alone() -> None:
    case = Case(tokens=20)
    exact = {name: x.requires_grad_() for name, x in case.leaves().items()}
    rough = case.tested_leaves(exact)
    for wanted in (lambda y, state: y, lambda y, state: state, lambda y, state: [y, state]):
        gradients = []
        for leaves, operator in (
            (rough, wkv7_triton),
            (rough, wkv7_reference),
            (exact, wkv7_reference),
        ):
            y, state, *_ = case.run(leaves, operator)
            outputs = wanted(y, state)
            found = torch.autograd.grad(
                outputs, list(leaves.values()), outputs, materialize_grads=True, allow_unused=True
            )
            gradients.append(dict(zip(leaves, found, strict=True)))
        assert_as_exact(*gradients, floor=CHUNKED_FLOOR)


def test_states_are_kept_only_for_a_backward_pass() -> None:
    leaves = tensors(Case(tokens=20))
    arguments = (*six(leaves), None, None, None, 16, 0)
    with torch.no_grad():
        *_, kept = torch.ops.wuneng.wkv7_triton_forward(*arguments, False, 0)
    assert kept.shape[0] == 0
    with pytest.raises(RuntimeError, match="keeps_states"):
        torch.ops.wuneng.wkv7_triton_forward(*arguments, False, 0)


def test_strided_inputs() -> None:
    leaves = {name: x.detach() for name, x in tensors(Case(tokens=20, heads=2)).items()}
    expected, _, _ = wkv7_triton(*six(leaves))
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in six(leaves)]
    assert not turned[0].is_contiguous()
    assert torch.equal(wkv7_triton(*turned)[0], expected)


def test_inputs_of_mixed_types_follow_v() -> None:
    leaves = tensors(Case(tokens=20, dtype=torch.bfloat16))
    mixed = [x if name in ("r", "k", "v") else x.float() for name, x in leaves.items()][:6]
    with faithful():
        y, state, _ = wkv7_triton(*mixed)
        assert y.dtype == torch.bfloat16
        assert state.dtype == torch.float32
        gradients = torch.autograd.grad(y.float().sum(), [leaves["w"], leaves["k"]])
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.bfloat16]
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.double(), "float32, bfloat16 or float16.*float64.*chunked"),
        (lambda x: x[..., :15], "head sizes 16, 32, 64, 128, got 15.*chunked"),
    ],
)
def test_what_the_kernels_cannot_take_is_named(
    change: Callable[[Tensor], Tensor], words: str
) -> None:
    inputs = [change(x.detach()) for x in six(tensors(Case(tokens=4)))]
    with pytest.raises(ValueError, match=words):
        wkv7_triton(*inputs)


def test_cpu_tensors_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "INTERPRETING", False)
    with pytest.raises(ValueError, match=r"needs CUDA tensors, v is on cpu.*chunked"):
        wkv7_triton(*six(tensors(Case(tokens=4))))


@pytest.mark.parametrize("bounds", [[0, 5, 3, 20], [0, 21], [1, 20]])
def test_impossible_sequence_boundaries(bounds: list[int]) -> None:
    with pytest.raises(RuntimeError, match="non-decreasing from 0 to T = 20"):
        wkv7_triton(*six(tensors(Case(tokens=20))), cu_seqlens=torch.tensor(bounds))


def test_the_interface_reaches_the_kernels() -> None:
    leaves = {name: x.detach() for name, x in tensors(Case(tokens=20)).items()}
    y, state = wkv7(*six(leaves), backend="triton")
    expected = wkv7_triton(*six(leaves))
    assert torch.equal(y, expected[0])
    assert torch.equal(state, expected[1])


def test_the_interface_decodes_with_the_step_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Case(batch=2, tokens=1).leaves()
    leaves = {name: x.float() for name, x in wide.items()}
    calls = []

    def counted(*inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(inputs)
        return wkv7_triton_step(*inputs, state=state)

    monkeypatch.setattr(triton_autograd, "wkv7_triton_step", counted)
    state = leaves["initial_state"]
    tested = wkv7(*six(leaves), initial_state=state, backend="triton")
    reference, exact = (
        wkv7(*six(x), initial_state=x["initial_state"], backend="reference") for x in (leaves, wide)
    )
    assert len(calls) == 1
    assert_as_exact(tested, reference, exact)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_state", [True, False])
def test_step(size: int, dtype: torch.dtype, has_state: bool) -> None:
    leaves = Case(batch=2, tokens=1, heads=2, size=size, dtype=dtype).leaves()
    exact = [leaves[name][:, 0] for name in INPUTS]
    state = leaves["initial_state"] if has_state else None
    with faithful():
        y, new = wkv7_triton_step(
            *(x.to(dtype) for x in exact), state=None if state is None else state.float()
        )
    rough = step(*(x.float() for x in exact), state=None if state is None else state.float())
    assert y.dtype == dtype
    assert new.dtype == torch.float32
    assert_as_exact((y, new), rough, step(*exact, state=state))


def test_step_in_place() -> None:
    leaves = {name: x.detach() for name, x in tensors(Case(batch=2, tokens=1)).items()}
    token, state = [x[:, 0] for x in six(leaves)], leaves["initial_state"]
    y, new = wkv7_triton_step(*token, state=state)
    own = state.clone()
    y_in_place, same = wkv7_triton_step(*token, state=own, in_place=True)
    assert same is own
    assert torch.equal(own, new)
    assert torch.equal(y_in_place, y)
    with pytest.raises(ValueError, match="contiguous state"):
        wkv7_triton_step(*token, state=own.transpose(-1, -2), in_place=True)


@pytest.mark.parametrize("count", [0, 2])
def test_one_token_without_gradients_takes_the_step(count: int) -> None:
    case = Case(batch=2, tokens=1, heads=2, count=count)
    if count:
        case.seen = (15, 32)
    exact = case.leaves()
    leaves = case.tested_leaves(exact)
    loops = [case.run(x, wkv7_reference) for x in (leaves, exact)]
    scanned = case.run(leaves, wkv7_triton)
    with torch.no_grad():
        stepped = case.run(leaves, wkv7_triton)
    for found in (stepped, scanned):
        assert_as_exact(found, *loops, floor=CHUNKED_FLOOR)


def test_launch_splits_values_when_heads_are_few() -> None:
    arguments = (torch.bfloat16, 64, 16)
    assert triton_launch.forward_launch(*arguments, heads=256, processors=132).values == 64
    assert triton_launch.forward_launch(*arguments, heads=66, processors=132).values == 32
    assert triton_launch.forward_launch(*arguments, heads=4, processors=132).values == 16
    # A program for every chunk is always enough.
    assert triton_launch.backward_launch(*arguments).values == 64
    assert triton_launch.backward_launch(torch.bfloat16, 16, 16).values == 16


@pytest.mark.parametrize("values", [16, 32, 64])
def test_no_launch_has_more_warps_than_rows_for_them(values: int) -> None:
    """Eight warps over 64 rows read outside of their shared memory on a GPU (Triton 3.6)."""
    for dtype in (torch.bfloat16, torch.float16):
        assert triton_launch.forward_launch(dtype, 64, 16, 256, 132, values).warps <= values // 16
    assert triton_launch.backward_launch(torch.bfloat16, 64, 16, 64).warps == 2 <= 64 // 16
    if values == 64:
        with pytest.raises(BackendError, match="at most 32 for float32 tensors, got 64"):
            triton_launch.forward_launch(torch.float32, 64, 16, 256, 132, values)


def test_candidates_are_few_and_valid() -> None:
    for launches in triton_launch.CANDIDATES.values():
        assert 1 <= len(launches) <= 4
        assert len(set(launches)) == len(launches)
        assert all(x.chunk in (16, 32, 64) and 64 % x.values == 0 for x in launches)
