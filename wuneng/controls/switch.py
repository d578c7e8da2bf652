"""One control, switched on for a block of code; afterwards the model is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.controls.names import Control, Head
from wuneng.controls.recurrences import (
    Borrowed,
    Donor,
    Edited,
    LayerCall,
    Tape,
    company,
    freeze,
    reset,
    rolled,
)
from wuneng.errors import ModelError
from wuneng.layers.state.base import StateHeads
from wuneng.model.block import WuNengBlock
from wuneng.model.modeling import WuNengModel
from wuneng.ops import Recurrence, wkv7

__all__ = ["blocks_of", "controlled", "heads_of", "why_not"]


def blocks_of(model: nn.Module) -> list[Any]:
    """The layers of a WuNeng model; none of another."""
    return [module for module in model.modules() if isinstance(module, WuNengBlock)]


def heads_of(model: nn.Module) -> list[Head]:
    """Every attention, state and middle head that there is."""
    found = []
    for block in blocks_of(model):
        counts = {
            "attention": block.self_attn and block.self_attn.config.num_attention_heads,
            "state": block.state_heads and block.state_heads.heads,
            "middle": _mixes(block) and block.cross_head.heads,
        }
        for part, count in counts.items():
            found += [Head(part, block.layer_idx, n) for n in range(count or 0)]  # type: ignore[arg-type]
    return found


def why_not(model: nn.Module, control: Control) -> str | None:
    """Why a model cannot be put under a control; None where it can."""
    blocks = blocks_of(model)
    layers = sum(block.state_heads is not None for block in blocks)
    if control.of_state and not layers:
        return f"the model has no state heads, so there is no state to {control.kind}"
    if control.kind == "layers" and layers < 2:
        return "only one layer has state heads, so there is no other layer's state"
    if control.kind == "attention" and all(block.self_attn is None for block in blocks):
        return "the model has no attention heads of this package's kind"
    if control.head is not None and control.head not in heads_of(model):
        return f"the model has no {control}"
    return None


@contextmanager
def controlled(model: nn.Module, control: Control) -> Iterator[None]:
    """Put a model under a control while the block runs.

    Args:
        model: a WuNeng model. With "permute" and "donor", every forward call needs two sequences
            or more; with "layers", a cache that holds something already is refused.
        control: see :mod:`wuneng.controls.names`; "keep" changes nothing.

    Raises:
        ModelError: the model has not what the control changes, or its kind of state heads does not
            run its state through ``StateHeads.recurrence``.
        ValueError: a batch of one sequence, or a cache, where that cannot be.
    """
    if control.kind != "keep" and (reason := why_not(model, control)):
        raise ModelError(f"{control}: {reason}.")
    with ExitStack() as stack:
        _switch_on(model, control, stack)
        yield


def _switch_on(model: nn.Module, control: Control, stack: ExitStack) -> None:
    blocks = blocks_of(model)
    layers = [block.state_heads for block in blocks if block.state_heads is not None]
    if control.kind == "attention":
        for block in blocks:
            if block.self_attn is not None:
                _hook(stack, block.self_attn.register_forward_hook(_silence_attention))
    elif control.kind == "head":
        assert control.head is not None
        block = next(block for block in blocks if block.layer_idx == control.head.layer)
        _silence_head(stack, block, control.head)
    elif control.kind == "layers":
        _exchange_layers(stack, model, layers, control)
    elif control.kind != "keep":
        for layer in layers:
            _control_state(stack, layer, control)


def _control_state(stack: ExitStack, layer: Any, control: Control) -> None:
    if control.kind == "zero":
        _hook(stack, layer.readout.register_forward_hook(lambda module, inputs, y: y * 0))
        return
    call = LayerCall()
    _hook(stack, layer.register_forward_pre_hook(call.remember, with_kwargs=True))
    if control.kind == "permute":
        _hook(stack, layer.readout.register_forward_hook(partial(_permuted, call)))
    elif control.kind == "donor":
        _run(stack, layer, lambda inner: Donor(inner, call), control)
    else:
        assert control.tokens is not None
        edit, tokens = (freeze if control.kind == "frozen" else reset), control.tokens
        _run(stack, layer, lambda inner: Edited(inner, call, edit, tokens), control)


def _permuted(call: LayerCall, module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    """The readout half a batch away. Rows are sorted by length where they come from the harness:
    the other answers to one question are neighbours, and half a batch away is another question."""
    return rolled(call.layout, y, company(call.layout) // 2)


def _run(stack: ExitStack, layer: StateHeads, make: Any, control: Control) -> None:
    """What ``make`` makes of the layer's recurrence becomes it; that it runs is seen to."""
    before, ran = layer.recurrence, []
    changed: Recurrence = make(before or wkv7)

    def recurrence(*inputs: Tensor, **options: Any) -> Any:
        ran.append(True)
        return changed(*inputs, **options)

    def check(module: nn.Module, inputs: Any, output: Any) -> None:
        if not ran:
            raise ModelError(
                f"{control}: state heads of kind {layer.config.state_kind} do not run their state "
                "through StateHeads.recurrence, so it cannot be changed there."
            )
        ran.clear()

    stack.callback(setattr, layer, "recurrence", before)
    layer.recurrence = recurrence
    _hook(stack, layer.register_forward_hook(check))


def _exchange_layers(
    stack: ExitStack, model: nn.Module, layers: list[StateHeads], control: Control
) -> None:
    """Every forward call of the model is made twice: untouched, on tape, and then exchanged."""
    tape = Tape()
    places = [int(layer.layer_idx) for layer in layers]
    for layer, lender in zip(layers, places[1:] + places[:1], strict=True):
        place = int(layer.layer_idx)
        _run(stack, layer, partial(_borrowed, tape=tape, layer=place, lender=lender), control)
    [base] = [module for module in model.modules() if isinstance(module, WuNengModel)]

    def record(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        for name in ("past_key_values", "cache"):
            if (past := named.get(name)) is not None and past.get_seq_length():
                raise ValueError(
                    "another layer's state is known over whole texts only, and this call goes on "
                    "from a cache"
                )
        named = {**named, "past_key_values": None, "cache": None, "use_cache": False}
        tape.inputs.clear()
        tape.records = True
        try:
            module.forward(*arguments, **named)
        finally:
            tape.records = False

    def forget(module: Any, arguments: Any, output: Any) -> None:
        tape.inputs.clear()

    _hook(stack, base.register_forward_pre_hook(record, with_kwargs=True))
    _hook(stack, base.register_forward_hook(forget))


def _borrowed(inner: Recurrence, *, tape: Tape, layer: int, lender: int) -> Borrowed:
    return Borrowed(inner, tape, layer, lender)


def _silence_attention(module: nn.Module, inputs: Any, output: Any) -> Any:
    heads, weights = output
    return replace(heads, output=torch.zeros_like(heads.output)), weights


def _silence_head(stack: ExitStack, block: Any, head: Head) -> None:
    if head.part == "attention":
        span = _span(head.number, block.self_attn.head_dim)

        def attention(module: nn.Module, inputs: Any, output: Any) -> Any:
            heads, weights = output
            return replace(heads, output=_without(heads.output, span)), weights

        _hook(stack, block.self_attn.register_forward_hook(attention))
    elif head.part == "state":

        def state(module: nn.Module, inputs: Any, output: Any) -> Any:
            R, first_value = output  # [B, T, S, N]
            kept = R.clone()
            kept[..., head.number, :] = 0
            return kept, first_value

        _hook(stack, block.state_heads.register_forward_hook(state))
    else:
        mixing = block.cross_head  # its projection reads [lambda * R; Mid], S heads each
        span = _span(mixing.heads + head.number, mixing.head_dim)
        _hook(
            stack,
            mixing.branch_proj.register_forward_pre_hook(
                lambda module, inputs: (_without(inputs[0], span), *inputs[1:])
            ),
        )


def _mixes(block: Any) -> bool:
    return block.self_attn is not None and block.cross_head is not None and block.cross_head.mixes


def _span(head: int, size: int) -> slice:
    return slice(head * size, (head + 1) * size)


def _without(x: Tensor, span: slice) -> Tensor:
    kept = x.clone()
    kept[..., span] = 0
    return kept


def _hook(stack: ExitStack, handle: Any) -> None:
    stack.callback(handle.remove)
