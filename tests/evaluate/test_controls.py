"""The controls of the state against a loop over tokens that says what each of them means."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.small import in_pieces, small_model
from wuneng import WuNengForCausalLM
from wuneng.controls.names import Control
from wuneng.controls.switch import controlled, heads_of, why_not
from wuneng.layers.state.base import StateHeads
from wuneng.ops import wkv7

MODELS: dict[str, dict[str, Any]] = {
    "rwkv7": {},
    "snapshots": {"snapshots": 2},
    "paper": {"variant": "paper"},
    "pure": {"variant": "pure-rwkv7"},
    "gated_delta": {"state_kind": "gated_delta", "token_shift": "none", "state_output_gate": None},
    "kda": {"state_kind": "kda", "token_shift": "none", "snapshots": 1, "state_output_gate": None},
    "interleaved": {
        "num_hidden_layers": 4,
        "state_layers": [0, 1, 3],
        "attention_layers": [2, 3],
        "state_key_source": "own",
        "state_value_source": "own",
    },
}
TOKENS = 37
LATER = [Control("frozen", 5), Control("reset", 7), Control("reset", 1), Control("donor")]


def model_of(name: str) -> WuNengForCausalLM:
    settings = dict(MODELS[name])
    return small_model(settings.pop("variant", "default"), **settings).double()


def ids(rows: int, tokens: int = TOKENS) -> Tensor:
    return torch.randint(0, 61, (rows, tokens), generator=torch.Generator().manual_seed(rows))


def layers_of(model: nn.Module) -> list[StateHeads]:
    return [module for module in model.modules() if isinstance(module, StateHeads)]


@torch.no_grad()
def logits(model: Any, tokens: Tensor, **arguments: Any) -> Tensor:
    found: Tensor = model(tokens, use_cache=False, **arguments).logits
    return found


def watched(model: Any, control: Control, tokens: Tensor, **arguments: Any) -> list[Any]:
    """For each read of a controlled call: its inputs as the heads made them, options, and y."""
    seen: list[Any] = []
    with controlled(model, control):
        for layer in layers_of(model):

            def watch(
                *inputs: Tensor, inner: Any = layer.recurrence or wkv7, **options: Any
            ) -> Any:
                out = inner(*inputs, **options)
                seen.append((inputs, options, out[0]))
                return out

            layer.recurrence = watch
        try:
            logits(model, tokens, **arguments)
        finally:
            for layer in layers_of(model):
                layer.recurrence = None
    return seen[-reads_of(model) :]


def reads_of(model: Any) -> int:
    """How often a call reads a state."""
    return len(layers_of(model)) * int(model.config.state_reads)


def states(inputs: tuple[Tensor, ...], control: Control) -> list[Tensor]:
    """S of one sequence, before the first token and after each: inputs ``[T, S, N]``."""
    _, w, k, v, a, b = inputs
    found = [torch.zeros(*v.shape[1:], v.shape[-1], dtype=torch.float64)]
    for t in range(len(v)):
        S = found[-1]
        if control.kind == "frozen" and control.tokens is not None and t >= control.tokens:
            found.append(S)
            continue
        if control.kind == "reset" and control.tokens is not None and t % control.tokens == 0:
            S = torch.zeros_like(S)
        removed = torch.einsum("svk,sk->sv", S, a[t])
        S = S * w[t].exp()[:, None, :] + removed[..., None] * b[t][:, None, :]
        found.append(S + v[t][..., None] * k[t][:, None, :])
    return found


def read(r: Tensor, S: list[Tensor], snapshots: Any, weights: Any, control: Control) -> Tensor:
    """y ``[T, S, N]`` of one sequence that reads ``S`` with its own r."""
    ys = []
    for t in range(len(r)):
        seen = S[t + 1] if snapshots is None else S[t + 1] * weights[t, :, 0, None, None]
        for j in range(0 if snapshots is None else snapshots.count):
            tokens = (t // snapshots.every - j) * snapshots.every
            start = t - t % control.tokens if control.kind == "reset" and control.tokens else 0
            if tokens > start:  # an older one is from before the reset, or from before the text
                seen = seen + S[tokens] * weights[t, :, 1 + j, None, None]
        ys.append(torch.einsum("svk,sk->sv", seen, r[t]))
    return torch.stack(ys)


@pytest.mark.parametrize("control", LATER, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_reads_what_the_loop_says(name: str, control: Control) -> None:
    model = model_of(name)
    seen = watched(model, control, ids(4))
    assert len(seen) == reads_of(model)
    for inputs, options, y in seen:
        snapshots = options.get("snapshots")
        for row in range(4):
            lender = (row - 2) % 4 if control.kind == "donor" else row
            S = states(tuple(x[lender] for x in inputs), control)
            weights = None if snapshots is None else snapshots.weights[row]
            expected = read(inputs[0][row], S, snapshots, weights, control)
            torch.testing.assert_close(y[row], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "snapshots"])
def test_layers_read_the_next_layers_state(name: str) -> None:
    model = model_of(name)
    own = watched(model, Control("keep"), ids(2))
    exchanged = watched(model, Control("layers"), ids(2))
    for place, (inputs, options, y) in enumerate(exchanged):
        lent = own[(place + model.config.state_reads) % len(own)][0]
        snapshots = options.get("snapshots")
        for row in range(2):
            S = states(tuple(x[row] for x in lent), Control("keep"))
            weights = None if snapshots is None else snapshots.weights[row]
            expected = read(inputs[0][row], S, snapshots, weights, Control("keep"))
            torch.testing.assert_close(y[row], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("control", [*LATER[:2], Control("layers"), Control("zero")], ids=str)
@pytest.mark.parametrize("name", ["snapshots", "gated_delta"])
def test_pads_and_documents_are_sequences_of_their_own(name: str, control: Control) -> None:
    model, tokens = model_of(name), ids(2)
    mask = torch.ones_like(tokens)
    mask[0, :9] = 0
    documents = (torch.arange(TOKENS) >= 20).long().expand(2, -1)
    with controlled(model, control):
        padded = logits(model, tokens, attention_mask=mask)
        packed = logits(model, tokens, document_ids=documents)
        # RoPE's angles are float32: a text further right differs by that
        near: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(padded[0, 9:], logits(model, tokens[:1, 9:])[0], **near)
        torch.testing.assert_close(packed[:, :20], logits(model, tokens[:, :20]), **near)
        torch.testing.assert_close(packed[:, 20:], logits(model, tokens[:, 20:]), **near)


@pytest.mark.parametrize("control", [*LATER, Control("permute"), Control("attention")], ids=str)
@pytest.mark.parametrize("name", ["snapshots", "kda", "paper"])
def test_token_by_token_is_as_at_once(name: str, control: Control) -> None:
    model, tokens = model_of(name), ids(4)
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    with controlled(model, control), torch.no_grad():
        whole = logits(model, tokens, attention_mask=mask)
        found = in_pieces(model, tokens, [18, 1, 1, TOKENS - 20], mask)
    torch.testing.assert_close(found[mask.bool()], whole[mask.bool()], rtol=1e-9, atol=1e-10)


def test_a_cache_from_outside_is_refused() -> None:
    model, tokens = model_of("rwkv7"), ids(2)
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values
        with controlled(model, LATER[0]), pytest.raises(ValueError, match="without this control"):
            model(tokens, past_key_values=cache)
        with (
            controlled(model, Control("layers")),
            pytest.raises(ValueError, match="goes on from a cache"),
        ):
            model(tokens, past_key_values=cache)


@pytest.mark.parametrize("name", MODELS)
def test_what_changes_nothing_is_the_model_itself(name: str) -> None:
    model, tokens = model_of(name), ids(1).repeat(4, 1)
    exact = logits(model, tokens)
    for control in (
        Control("reset", TOKENS),
        Control("reset", 10 * TOKENS),
        Control("frozen", TOKENS),
        Control("donor"),
        Control("permute"),
    ):
        with controlled(model, control):
            torch.testing.assert_close(logits(model, tokens), exact, rtol=1e-9, atol=1e-10)
    for control in (Control("reset", TOKENS - 1), Control("frozen", TOKENS - 1)):
        with controlled(model, control):
            found = logits(model, tokens)
        torch.testing.assert_close(found[:, :-1], exact[:, :-1], rtol=1e-9, atol=1e-10)
        assert not torch.allclose(found[:, -1], exact[:, -1], atol=1e-6), control


@pytest.mark.parametrize("name", MODELS)
def test_nothing_stays_switched_on(name: str) -> None:
    model, tokens = model_of(name), ids(2)
    exact = logits(model, tokens)
    controls = [
        *LATER,
        Control("zero"),
        Control("permute"),
        Control("layers"),
        Control("attention"),
    ]
    last = {head.part: head for head in heads_of(model)}
    controls += [Control("head", head=head) for head in last.values()]
    for control in controls:
        if why_not(model, control):
            assert name == "pure"
            continue
        with controlled(model, control):
            changed = logits(model, tokens)
        assert not torch.allclose(changed, exact, atol=1e-6), control
        with pytest.raises(KeyError), controlled(model, control):
            raise KeyError
        with pytest.raises(IndexError), controlled(model, control):
            logits(model, torch.full((2, 4), 61))  # no such token: fails within the model
        assert torch.equal(logits(model, tokens), exact), control
    assert all(layer.recurrence is None for layer in layers_of(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["rwkv7", "gated_delta", "interleaved"])
def test_a_silenced_head_is_one_whose_output_is_zero(name: str) -> None:
    """The plain way: its columns of the projections that read it are zero."""
    model, tokens = model_of(name), ids(2)
    last = {(head.part, head.layer % 3): head for head in heads_of(model)}
    for head in last.values():
        block: Any = model.model.layers[head.layer]
        if head.part == "attention" and block.cross_head is not None:
            continue  # its group's mean needs it as well: the silent attention below
        twin = model_of(name)
        silent: Any = twin.model.layers[head.layer]
        with torch.no_grad():
            if head.part == "attention":
                size = silent.self_attn.head_dim
                silent.self_attn.o_proj.weight[:, head.number * size :][:, :size] = 0
            elif head.part == "middle":
                size = silent.cross_head.head_dim
                first = (silent.cross_head.heads + head.number) * size
                silent.cross_head.branch_proj.weight[:, first : first + size] = 0
            else:

                def quiet(_m: Any, _i: Any, out: Any, number: int = head.number) -> Any:
                    mask = torch.ones(out[0].shape[-2], 1, dtype=out[0].dtype)
                    mask[number] = 0
                    return out[0] * mask, out[1]

                silent.state_heads.register_forward_hook(quiet)
        with controlled(model, Control("head", head=head)):
            torch.testing.assert_close(logits(model, tokens), logits(twin, tokens))


def test_all_attention_heads_silenced_are_silent_attention() -> None:
    model, tokens = model_of("rwkv7"), ids(2)
    with controlled(model, Control("attention")):
        together = logits(model, tokens)
    twin = model_of("rwkv7")
    with ExitStack() as stack:
        for head in heads_of(twin):
            if head.part == "attention":
                stack.enter_context(controlled(twin, Control("head", head=head)))
        torch.testing.assert_close(logits(twin, tokens), together)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.v_proj.weight.zero_()  # shared with the state heads: not the same
    assert not torch.allclose(logits(model, tokens), together, atol=1e-6)
