"""A decoded token in one call with short convolutions, delta-rule heads and attention's gate.

Wirings are drawn, so that what was not thought of together is met together.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.decoded import counted
from tests.model.small import in_pieces, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengForCausalLM
from wuneng.layers.norms import HeadRMSNorm
from wuneng.layers.short_conv import ShortConv
from wuneng.layers.state.kda import KDA
from wuneng.ops import native, using

pytestmark = pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")
KINDS = {"kda": {}, "gated_delta": {}, "rwkv7": {}}


def drawn(kind: str, seed: int) -> tuple[dict[str, Any], int]:
    """A wiring of this kind of state heads, and how many sequences."""
    pick = random.Random(f"{kind} {seed}")
    own = pick.random() < 0.5
    hybrid = pick.random() < 0.8
    source = "own" if own or not hybrid else "attention"
    conv = pick.choice([0, 2, 3, 4])
    fields: dict[str, Any] = {
        "hidden_size": pick.choice([36, 64]),
        "head_dim": 16,
        "state_head_dim": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4 if hybrid else 0,
        "num_key_value_heads": pick.choice([1, 2, 4]) if hybrid else 0,
        "num_state_heads": pick.choice([2, 4]),
        "state_kind": kind,
        "state_key_source": source,
        "state_value_source": source,
        "state_short_conv": conv,
        "token_shift": pick.choice(["post", "none"]),
        "token_shift_on": pick.choice(["rkv", "vr", "k"]),
        "state_norm": pick.choice(["group", "group", "none"]),
        "state_a_max": pick.choice([1.0, 2.0]),
        "state_output_gate": pick.random() < 0.7,
        "cross_head": pick.choice(["none", "gated", "additive", "concat"]) if hybrid else "none",
        "attention_short_conv": pick.choice([0, 2, 4]) if hybrid else 0,
        "attention_token_shift": hybrid and pick.random() < 0.5,
        "attention_output_gate": hybrid and pick.random() < 0.5,
        "qk_norm": hybrid and pick.random() < 0.3,
        "sliding_window": pick.choice([None, None, 4]) if hybrid else None,
        "layers": pick.choice([None, ["state", "attention", "hybrid"]]) if hybrid else None,
        "decay_rank": 8,
        "gate_rank": 12,
    }
    if kind == "rwkv7":
        fields["state_gate_sigmoid"] = pick.choice(["hidden", "output"])
    return fields, pick.choice([1, 2, 3, 8])


def _ids(batch: int, tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_wirings_give_what_the_modules_give(kind: str, seed: int) -> None:
    fields, batch = drawn(kind, seed)
    model = small_model(**fields)
    lengths = [4, *[1] * 6, 3, 1, 1]

    def run(model: Any) -> Tensor:
        return in_pieces(model, _ids(batch, sum(lengths), seed), lengths)

    _check(model, run, [n == 1 for n in lengths])


def _check(model: WuNengForCausalLM, run: Callable[[Any], Tensor], wanted: list[bool]) -> None:
    """What ``run`` makes of a model, and which of its calls went through all layers at once."""
    with counted() as taken:
        found = run(model)
    assert taken == wanted
    assert_as_exact(found, *plainly(model, run), floor=CHUNKED_FLOOR)


def model_of(kind: str) -> WuNengForCausalLM:
    return small_model(
        hidden_size=64,
        state_kind=kind,
        state_output_gate=True,
        state_short_conv=4,
        attention_short_conv=3,
        attention_output_gate=True,
        decay_rank=8,
        gate_rank=8,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_prompts_begin_from_zero(kind: str) -> None:
    """The first token goes through the modules, the second finds convolutions with one token."""
    model, lengths = model_of(kind), [1] * 7

    def run(model: Any) -> Tensor:
        return in_pieces(model, _ids(2, 7), lengths)

    _check(model, run, [False, *[True] * 6])


@pytest.mark.parametrize("kind", KINDS)
def test_pads_at_the_left(kind: str) -> None:
    model, lengths = model_of(kind), [5, *[1] * 5]
    mask = torch.ones(3, 10, dtype=torch.long)
    mask[0, :3], mask[2, :1] = 0, 0

    def run(model: Any) -> Tensor:
        logits = in_pieces(model, _ids(3, 10), lengths, mask)
        return logits[mask.bool()]

    _check(model, run, [False, *[True] * 5])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_bits_however_many_threads(kind: str) -> None:
    model, lengths = model_of(kind), [4, *[1] * 5]
    ids, threads = _ids(5, 9), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = in_pieces(model, ids[:1], lengths)[:, 4:]
        together = in_pieces(model, ids, lengths)[:, 4:]
        torch.set_num_threads(2)
        in_two = in_pieces(model, ids, lengths)[:, 4:]
    finally:
        torch.set_num_threads(threads)
    # The prompt goes through torch, whose products of several rows have another order of sums.
    torch.testing.assert_close(one, together[:1], rtol=1e-4, atol=1e-4)
    assert torch.equal(in_two, together)


def _watched(model: Any) -> None:
    model.model.layers[1].state_heads.b_proj.register_forward_hook(lambda *_: None)


def _replaced(model: Any) -> None:
    heads = model.model.layers[0].state_heads
    heads.o_norm = type("Mine", (HeadRMSNorm,), {})(heads.heads, heads.head_dim, 1e-5)


def _convolution(model: Any) -> None:
    model.model.layers[0].state_heads.k_conv.register_forward_pre_hook(lambda *_: None)


def _attention_convolution(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    attention.q_conv = type("Mine", (ShortConv,), {})(64, 3)
    nn.init.ones_(attention.q_conv.weight)


def _gate(model: Any) -> None:
    model.model.layers[0].self_attn.g_proj = nn.Linear(64, 64, bias=True)


def _odd_rank(model: Any) -> None:
    heads = model.model.layers[0].state_heads
    heads.f_down, heads.f_up = (nn.Linear(*shape, bias=False) for shape in ((64, 3), (3, 32)))


CHANGES = (_watched, _replaced, _convolution, _attention_convolution, _gate, _odd_rank)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_watched_or_replaced_runs_as_modules(change: Any) -> None:
    model, lengths = model_of("kda"), [4, *[1] * 3]
    in_pieces(model, _ids(1, 7), lengths)
    change(model)
    with counted() as taken:
        found = in_pieces(model, _ids(1, 7), lengths)
    assert not any(taken)
    whole = in_pieces(model, _ids(1, 7), [7])
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3)


def test_heads_of_a_users_own_class_run_as_modules() -> None:
    class Slower(KDA):
        def log_decay(self, x: Tensor) -> Tensor:
            return super().log_decay(x) / 2

    model, lengths = model_of("kda"), [4, *[1] * 3]
    before = in_pieces(model, _ids(1, 7), lengths)
    for layer in model.model.layers:
        layer.state_heads.__class__ = Slower
    with counted() as taken:
        found = in_pieces(model, _ids(1, 7), lengths)
    assert not any(taken)
    assert (found - before).abs().max() > 1e-3
    torch.testing.assert_close(found, in_pieces(model, _ids(1, 7), [7]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "path",
    ["state_heads.r_proj", "state_heads.k_proj", "state_heads.v_proj", "cross_head.branch_proj"],
)
@pytest.mark.parametrize("conv", [0, 4])
def test_a_bias_that_somebody_put_in_is_added(kind: str, path: str, conv: int) -> None:
    """It was dropped without a word, by the one call and, of r, by every forward call."""
    own = {"state_key_source": "own", "state_value_source": "own", "cross_head": "none"}
    model = small_model(hidden_size=64, state_kind=kind, state_short_conv=conv, **own)
    exact = copy.deepcopy(model).double()
    lengths = [4, *[1] * 3]
    plain = in_pieces(model, _ids(1, 7), lengths)
    for one in (model, exact):
        part, name = path.split(".")
        heads = getattr(one.model.layers[0], part)
        old = getattr(heads, name)
        new = nn.Linear(old.in_features, old.out_features).to(old.weight.dtype)
        with torch.no_grad():
            new.weight.copy_(old.weight)
            new.bias.fill_(0.5)
        setattr(heads, name, new)
    with using("reference"):
        wanted = in_pieces(exact, _ids(1, 7), [7])
    assert (wanted - plain).abs().max() > 1e-3
    for pieces in (lengths, [7]):
        with counted() as taken:
            found = in_pieces(model, _ids(1, 7), pieces)
        assert not any(taken)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("field", ["state_a_max", "attention_output_gate"])
def test_a_setting_that_changes_meanwhile_is_seen(field: str) -> None:
    model, lengths = model_of("kda"), [4, *[1] * 3]
    before = in_pieces(model, _ids(1, 7), lengths)
    setattr(model.config, field, {"state_a_max": 2.0, "attention_output_gate": False}[field])
    with counted() as taken:
        found = in_pieces(model, _ids(1, 7), lengths)
    assert taken == [False, True, True, True]
    torch.testing.assert_close(found, in_pieces(model, _ids(1, 7), [7]), rtol=1e-3, atol=1e-3)
    assert (found - before).abs().max() > 1e-2


def test_weights_changed_in_place_are_read_anew() -> None:
    model, lengths = model_of("gated_delta"), [4, *[1] * 3]
    in_pieces(model, _ids(1, 7), lengths)
    with torch.no_grad():
        model.model.layers[0].state_heads.v_conv.weight.mul_(3)
        model.model.layers[1].state_heads.A_log.add_(1)
    found = in_pieces(model, _ids(1, 7), lengths)
    torch.testing.assert_close(found, in_pieces(model, _ids(1, 7), [7]), rtol=1e-3, atol=1e-3)
