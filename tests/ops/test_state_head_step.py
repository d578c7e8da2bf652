"""One token of a whole state head, the torch path, against the references in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.head_step_cases import SITUATIONS, StepCase, assert_overwrites_when_asked
from tests.ops.state_head_cases import needs_compiler
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.ops import state_head
from wuneng.ops.head_arguments import HeadOutputs
from wuneng.ops.state_head.step import state_head_step


@pytest.mark.parametrize("case", SITUATIONS.values(), ids=list(SITUATIONS))
@pytest.mark.parametrize("in_place", [True, False])
def test_tokens(case: StepCase, in_place: bool) -> None:
    case.assert_close(state_head_step, in_place=in_place)


def test_float64() -> None:
    case = StepCase(tokens=6, dtype=torch.float64, state_dtype=torch.float64)
    case.assert_close(state_head_step)


@pytest.mark.parametrize("size", [5, 64])
def test_half_precision_activations(size: int) -> None:
    """R is rounded once, the state not at all."""
    case = StepCase(size=size, own_source=True, dtype=torch.bfloat16)
    case.assert_close(state_head_step)


@pytest.mark.parametrize("letters", ["rkv", "v", ""])
def test_equals_the_operators_of_whole_sequences(
    letters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T tokens at once by the layer's operators, and token by token here."""
    monkeypatch.setenv("WUNENG_BACKEND", "chunked")
    case = StepCase(tokens=20, letters=letters, layout="more")
    stepped, state, *carries = case.run(state_head_step)
    inputs, weights, options, *memory = case.arguments()
    tokens = [case.token(t) for t in range(case.tokens)]
    inputs = type(inputs)(
        *(None if x[0] is None else torch.cat(x, dim=1) for x in zip(*tokens, strict=True))
    )
    state_before, carry = memory
    out = state_head(
        inputs, weights, options, state=state_before, carry=carry, keeps_carry=bool(letters)
    )
    reference, exact = (case.plainly(dtype)[:2] for dtype in (torch.float32, torch.float64))
    assert_as_exact([stepped, state], reference, exact)
    whole = [out.readout.transpose(0, 1), out.state]
    assert_as_exact(whole, reference, exact, floor=CHUNKED_FLOOR)
    for x in carries:
        assert torch.equal(x, out.carry)


@pytest.mark.parametrize("layout", ["flat", "rows"])
def test_what_is_overwritten_and_what_is_not(layout: str) -> None:
    assert_overwrites_when_asked(
        state_head_step, StepCase(own_source=True, letters="k", layout=layout)
    )


def test_a_weight_that_changes_is_seen() -> None:
    """Also through ``.data``, which no version counter notices."""
    case = StepCase()
    arguments = case.arguments()
    weights = arguments[1]
    before = state_head_step(*arguments).readout
    for x in weights:
        assert x is not None
        x.data.view(-1)[::2] *= 0.5
        after = state_head_step(*arguments).readout
        assert not torch.equal(after, before)
        before = after


def test_autocast_and_gradients_do_not_reach_it() -> None:
    case = StepCase(size=64)
    expected = state_head_step(*case.arguments())
    inputs, weights, options, state, carry = case.arguments()
    for x in (*inputs, *weights, state, carry):
        if x is not None:
            x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = state_head_step(inputs, weights, options, state, carry)
    for x, y in zip(found[:3], expected[:3], strict=True):
        assert not x.requires_grad
        assert torch.equal(x, y)


def test_no_sequences() -> None:
    out = state_head_step(*StepCase(batch=0).arguments())
    assert out.readout.shape == (0, 1, 2, 16)
    assert out.state.shape == (0, 2, 16, 16)


@pytest.mark.parametrize("in_place", [True, False])
def test_compiles_without_a_graph_break(in_place: bool) -> None:
    case = StepCase(gate=False, letters="kv", tokens=1)
    *given, state, carry = case.arguments()
    assert state is not None
    assert carry is not None

    def step(state: Tensor, carry: Tensor) -> HeadOutputs:
        return state_head_step(*given, state, carry, in_place=in_place)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = step(state.clone(), carry.clone())
    found = compiled(state, carry)
    sides = (dict(zip(("R", "state"), x, strict=False)) for x in (found, expected))
    exact = dict(zip(("R", "state"), case.plainly(torch.float64), strict=False))
    exact["R"] = exact["R"][0].unsqueeze(1)
    assert_as_exact(*sides, exact)
    assert torch.equal(found.carry, expected.carry)
    if in_place:
        assert torch.equal(state, expected.state)
        assert torch.equal(carry, expected.carry)


class Counting(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_operations_of_one_token() -> None:
    """In torch their number is the time: more than this is a regression to look into."""
    arguments = StepCase(batch=1, size=64, gate=False).arguments()
    with torch.no_grad(), Counting() as counting:
        state_head_step(*arguments)
    assert counting.count <= 47


def changed(case: StepCase, **changes: Any) -> tuple[Any, ...]:
    """The first token's arguments with fields of inputs or weights, state or carry replaced."""
    inputs, weights, options, state, carry = case.arguments()
    inputs = inputs._replace(**{n: x for n, x in changes.items() if n in inputs._fields})
    weights = weights._replace(**{n: x for n, x in changes.items() if n in weights._fields})
    return inputs, weights, options, changes.get("state", state), changes.get("carry", carry)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": torch.ones(2, 2, 32)}, r"r must be \[2, 1, 32\] or \[2, 1, 2, 16\], got shape"),
        ({"k": torch.ones(2, 1, 31)}, r"k must be \[2, 1, 32\]"),
        ({"a": torch.ones(2, 1, 3, 16)}, r"a must be \[2, 1, 32\]"),
        ({"k_k": None}, "k_k is missing"),
        ({"mu_v": torch.ones(16)}, r"mu_v must hold S \* N = 32 values"),
        ({"norm_bias": None}, "norm_bias is missing"),
        ({"state": torch.ones(2, 2, 16, 8)}, r"state must have shape \[2, 2, 16, 16\]"),
        ({"state": torch.ones(2, 2, 16, 16).double()}, "state must be torch.float32, got"),
        ({"carry": torch.ones(2, 64)}, r"carry must have shape \[2, 96\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        state_head_step(*changed(StepCase(), **changes))


@needs_compiler
@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [("state", (2, 2, 16, 8), r"\[2, 2, 16, 16\]"), ("carry", (1, 96), r"\[2, 96\]")],
)
def test_c_reads_no_further_than_there_is(name: str, shape: tuple[int, ...], wanted: str) -> None:
    inputs, weights, options, state, carry = changed(StepCase(), **{name: torch.ones(shape)})
    with pytest.raises(ValueError, match=f"{name} must have shape {wanted}"):
        state_head(inputs, weights, options, state=state, carry=carry)


@pytest.mark.parametrize("name", ["state", "carry"])
def test_in_place_needs_contiguous_memory(name: str) -> None:
    *_, state, carry = StepCase().arguments()
    wrong = {"state": state, "carry": carry}[name]
    assert wrong is not None
    arguments = changed(StepCase(), **{name: wrong.repeat_interleave(2, dim=-1)[..., ::2]})
    state_head_step(*arguments)
    with pytest.raises(ValueError, match=f"contiguous {name}"):
        state_head_step(*arguments, in_place=True)
