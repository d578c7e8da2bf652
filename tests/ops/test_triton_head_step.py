"""One token of a whole state head, the Triton kernel in the interpreter, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.head_step_cases import SITUATIONS, StepCase, assert_overwrites_when_asked
from wuneng.ops.state_head.triton_step import state_head_step_triton

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("case", SITUATIONS.values(), ids=list(SITUATIONS))
def test_tokens(case: StepCase) -> None:
    case.assert_close(state_head_step_triton)


@pytest.mark.parametrize("name", ["all", "large", "other-order", "no-shift", "wide-rows"])
def test_tokens_in_place(name: str) -> None:
    SITUATIONS[name].assert_close(state_head_step_triton, in_place=True)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_head_sizes_in_half_precision(size: int, dtype: torch.dtype) -> None:
    """The state is not rounded, the carry is copied."""
    case = StepCase(batch=1, size=size, tokens=2, dtype=dtype, weight_dtype=dtype, layout="rows")
    with faithful():
        case.assert_close(state_head_step_triton)
        carries = (case.run(state_head_step_triton)[2], case.plainly(torch.float64)[2])
    assert torch.equal(carries[0].double(), carries[1])


@pytest.mark.parametrize("layout", ["flat", "rows", "more"])
def test_in_place_and_not(layout: str) -> None:
    assert_overwrites_when_asked(
        state_head_step_triton, StepCase(own_source=True, letters="vk", layout=layout)
    )


@pytest.mark.parametrize("missing", ["state", "carry"])
@pytest.mark.parametrize("in_place", [True, False])
def test_one_of_state_and_carry(missing: str, in_place: bool) -> None:
    """None is zero; in place what is given is advanced, and what is not is made."""
    inputs, weights, options, state, carry = StepCase().arguments()
    assert state is not None
    assert carry is not None
    (state if missing == "state" else carry).zero_()
    expected = state_head_step_triton(inputs, weights, options, state, carry)
    given = (None, carry) if missing == "state" else (state, None)
    out = state_head_step_triton(inputs, weights, options, *given, in_place=in_place)
    for x, y in zip(out[:3], expected[:3], strict=True):
        assert torch.equal(x, y)
    for x, y in zip(given, out[1:3], strict=True):
        assert x is None or (x is y) == in_place


def test_views_of_state_and_carry() -> None:
    """Not side by side in memory, nor projections side by side, they give what copies give."""
    case = StepCase(layout="heads")
    inputs, weights, options, state, carry = case.arguments()
    assert state is not None
    assert carry is not None
    expected = state_head_step_triton(inputs, weights, options, state, carry)
    state, carry = (x.repeat_interleave(2, dim=-1)[..., ::2] for x in (state, carry))
    turned = inputs.r.transpose(2, 3).contiguous().transpose(2, 3)
    inputs = inputs._replace(r=turned, v=inputs.v.repeat_interleave(2, dim=-1)[..., ::2])
    out = state_head_step_triton(inputs, weights, options, state, carry)
    for x, y in zip(out[:3], expected[:3], strict=True):
        assert torch.equal(x, y)


def test_the_carry_holds_every_letter() -> None:
    """In the dtype that torch.cat would choose, as the composition of operators does."""
    inputs, *others, state, _ = StepCase(letters="rv").arguments()
    inputs = inputs._replace(r=inputs.r.half(), gate=None)
    carry = state_head_step_triton(inputs, *others, state, None).carry
    assert carry is not None
    assert torch.equal(carry, torch.cat([inputs.r[:, 0], inputs.v[:, 0]], dim=1))


def test_no_sequences() -> None:
    out = state_head_step_triton(*StepCase(batch=0).arguments())
    assert out.readout.shape == (0, 1, 2, 16)
    assert out.state.shape == (0, 2, 16, 16)


@pytest.mark.parametrize(
    "case",
    [
        StepCase(own_source=True, layout="rows"),
        StepCase(letters="", norm=False, gate=False, started=False),
    ],
    ids=["all", "bare"],
)
def test_registration(case: StepCase) -> None:
    inputs, weights, options, state, carry = case.arguments()
    settings = options.heads, options.size, options.a_max, options.norm_eps, options.letters
    arguments = list(inputs), list(weights), state, carry, *settings
    torch.library.opcheck(torch.ops.wuneng.state_head_step.default, arguments)
    if state is not None:
        torch.library.opcheck(torch.ops.wuneng.state_head_step_.default, arguments)
