"""Tokens for the state heads' one-token update, its float64 oracle, and what is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.precision import FLOOR, assert_as_exact
from wuneng.ops.head_arguments import HeadInputs, HeadOptions, HeadOutputs, HeadWeights
from wuneng.ops.state_head.step import state_head_step_reference


@dataclass
class StepCase:
    """One layer's weights and a run of tokens ``[T, B, S, N]``.

    Attributes:
        letters: which of r, k, v are shifted, in the carry's order.
        own_source: the removal key has its own source.
        started: state and carry are not None at the first token.
        repeats: tokens are identical from the second on.
        decay: added to the logit: +-20 are the two ends.
        layout: "flat" ``[B, 1, S * N]``, "heads" ``[B, 1, S, N]``, "rows": slices of one wide row,
            "more": k and v hold two heads more than are used.
    """

    batch: int = 2
    heads: int = 2
    size: int = 16
    tokens: int = 4
    letters: str = "rkv"
    norm: bool = True
    bonus: bool = True
    gate: bool = True
    own_source: bool = False
    started: bool = True
    repeats: bool = False
    a_max: float = 1.0
    decay: float = 0.0
    scale: float = 1.0
    dtype: torch.dtype = torch.float32
    state_dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.float32
    layout: str = "flat"
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        shape = self.batch, self.heads, self.size
        names = ["r", "w", "k", "v", "a"] + ["b"] * self.own_source + ["gate"] * self.gate
        self.inputs = {
            name: self.normal(self.tokens, *shape) * (self.scale if name in "rkv" else 1.0)
            for name in names
        }
        self.inputs["w"] += self.decay
        if self.repeats:
            for x in self.inputs.values():
                x[1:] = x[1]
        self.inputs = {name: x.to(self.dtype).double() for name, x in self.inputs.items()}
        self.state = self.normal(*shape, self.size).float().double() if self.started else None
        self.carry = None
        if self.letters and self.started:
            width = len(self.letters) * self.heads * self.size
            self.carry = self.normal(self.batch, width).to(self.dtype).double()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    @property
    def options(self) -> HeadOptions:
        return HeadOptions(self.heads, self.size, True, self.a_max, 64e-5, self.letters)

    def weights(self, exact: bool = False) -> HeadWeights:
        """``[S * N]`` and ``[S, N]`` by turns; float64 of the same values if ``exact``."""
        self.generator.manual_seed(1)
        names = [f"mu_{letter}" for letter in self.letters] + ["k_k", "k_a"]
        names += ["bonus"] * self.bonus + ["norm_weight", "norm_bias"] * self.norm
        drawn = {name: self.normal(self.heads, self.size) for name in HeadWeights._fields}
        for name in ("mu_r", "mu_k", "mu_v"):
            drawn[name] = drawn[name].flatten().sigmoid()
        drawn["k_k"] = drawn["k_k"].flatten()
        drawn = {name: drawn[name].to(self.weight_dtype).double() for name in names}
        if not exact:
            drawn = {n: x.to(self.device, self.weight_dtype) for n, x in drawn.items()}
        return HeadWeights(**drawn)

    def token(self, t: int, exact: bool = False) -> HeadInputs:
        """The inputs of one token in ``layout``."""
        device, dtype = ("cpu", torch.float64) if exact else (self.device, self.dtype)
        now = {name: x[t].unsqueeze(1).to(device, dtype) for name, x in self.inputs.items()}
        width, layout = self.heads * self.size, "flat" if exact else self.layout
        if layout != "heads":
            now = {name: x.flatten(2) for name, x in now.items()}
        if layout == "rows":
            row = torch.cat([*now.values(), torch.full_like(now["r"], float("nan"))], dim=-1)
            now = dict(zip(now, row.split(width, dim=-1), strict=False))
        elif layout == "more":
            other = torch.full_like(now["r"][..., :1], float("nan")).expand(-1, -1, 2 * self.size)
            now |= {name: torch.cat([now[name], other], dim=-1) for name in "kv"}
        return HeadInputs(**now)

    def memory(self) -> tuple[Tensor | None, Tensor | None]:
        """State and carry before the first token, fresh ones at each call."""
        return (
            None if self.state is None else self.state.to(self.device, self.state_dtype, copy=True),
            None if self.carry is None else self.carry.to(self.device, self.dtype, copy=True),
        )

    def arguments(
        self,
    ) -> tuple[HeadInputs, HeadWeights, HeadOptions, Tensor | None, Tensor | None]:
        """Of the first token."""
        return self.token(0), self.weights(), self.options, *self.memory()

    def run(self, operator: Callable[..., HeadOutputs], **how: bool) -> list[Tensor]:
        """R of every token ``[T, B, S, N]``, the final state and the final carry."""
        weights, (state, carry) = self.weights(), self.memory()
        outputs = []
        for t in range(self.tokens):
            given = state, carry
            out, state, carry, _ = operator(
                self.token(t), weights, self.options, state, carry, **how
            )
            if how.get("in_place"):
                assert all(x is None or x is y for x, y in zip(given, (state, carry), strict=True))
            outputs.append(out[:, 0])
        assert state is not None
        assert (carry is None) == (not self.letters)
        return [torch.stack(outputs), state, *([] if carry is None else [carry])]

    def plainly(self, dtype: torch.dtype) -> list[Tensor]:
        """The same by the equations in float32 or float64, on a CPU."""
        state, carry = (None if x is None else x.to(dtype) for x in (self.state, self.carry))
        weights = HeadWeights(*(None if x is None else x.to(dtype) for x in self.weights(True)))
        outputs = []
        for t in range(self.tokens):
            now = HeadInputs(*(None if x is None else x.to(dtype) for x in self.token(t, True)))
            out, state, carry, _ = state_head_step_reference(
                now, weights, self.options, state, carry
            )
            outputs.append(out[:, 0])
        assert state is not None
        return [torch.stack(outputs), state, *([] if carry is None else [carry])]

    def assert_close(
        self, operator: Callable[..., HeadOutputs], floor: float = FLOOR, **how: bool
    ) -> None:
        """R, state and carry lose no more than the equations in float32, rounded to R's dtype."""
        found = self.run(operator, **how)
        assert found[0].dtype == self.dtype
        assert found[1].dtype == self.state_dtype
        assert all(x.dtype == self.dtype for x in found[2:])
        names = ("R", "state", "carry")[: len(found)]
        sides = (found, self.plainly(torch.float32), self.plainly(torch.float64))
        assert_as_exact(*(dict(zip(names, x, strict=True)) for x in sides), what=self, floor=floor)


SITUATIONS = {
    "all": StepCase(),
    "one-row": StepCase(batch=1),
    "large": StepCase(batch=3, heads=5, size=64, tokens=2),
    "first-token": StepCase(started=False),
    "other-order": StepCase(letters="vr"),
    "no-shift": StepCase(letters=""),
    "own-removal-key": StepCase(own_source=True, letters="v"),
    "no-norm": StepCase(norm=False, gate=False),
    "bare": StepCase(norm=False, bonus=False, gate=False, letters="k"),
    "bare-first-token": StepCase(norm=False, bonus=False, gate=False, letters="", started=False),
    "rate-two": StepCase(a_max=2.0, tokens=8),
    "keeps-all": StepCase(decay=-20.0, tokens=8),
    "keeps-least": StepCase(decay=20.0, tokens=8),
    "identical": StepCase(repeats=True, tokens=30, a_max=2.0),
    "zero": StepCase(scale=0.0),
    "huge": StepCase(scale=1e4),
    "by-heads": StepCase(layout="heads", own_source=True),
    "wide-rows": StepCase(batch=3, layout="rows", own_source=True),
    "more-key-heads": StepCase(batch=3, layout="more", letters="kv"),
    "half-precision-weights": StepCase(weight_dtype=torch.bfloat16),
}


def assert_overwrites_when_asked(operator: Callable[..., HeadOutputs], case: StepCase) -> None:
    """State and carry in place and nothing else; otherwise nothing at all. NaN counts as equal."""
    inputs, weights, options, state, carry = case.arguments()
    assert state is not None
    assert carry is not None
    tensors = [x for x in (*inputs, *weights, state, carry) if x is not None]
    kept = [x.clone() for x in tensors]
    out = operator(inputs, weights, options, state, carry)
    for x, y in zip(tensors, kept, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    again = operator(inputs, weights, options, state, carry, in_place=True)
    assert again.state is state
    assert again.carry is carry
    for x, y in zip(again[:3], out[:3], strict=True):
        assert torch.equal(x, y)
    for x, y in zip(tensors[:-2], kept[:-2], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
