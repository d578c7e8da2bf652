"""A decoded token through all layers in one call gives what the modules give, or is not taken."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import nullcontext
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.decoded import counted
from tests.model.small import in_pieces, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengForCausalLM
from wuneng.convert.families import OWN_WIRING, WIRING
from wuneng.layers.attention import Attention
from wuneng.layers.feed_forward import SwiGLU
from wuneng.layers.norms import HeadGroupNorm, HeadRMSNorm, RMSNorm
from wuneng.layers.state.rwkv7 import RWKV7
from wuneng.model.block import WuNengBlock
from wuneng.model.call_arguments import cache_of
from wuneng.ops import native, using

pytestmark = pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")
SERVED = ["default", "concat", "additive", "gqa-qk-norm-bias", "own-key-value", "own-key"]
SERVED += ["no-shift", "shift-on-k", "no-bonus-no-norm-scalar", "sliding-second-layer"]
SERVED += ["state-in-second-layer", "mlp-bias", "mha", "a-max-2", "no-middle", "gqa", "mha-shift"]
SERVED += ["pure-state", "pre-shift", "pre-shift-own", "gate-of-two-matrices", "mha-gate"]
SERVED += ["kda", "gated-delta", "short-conv"]
LEFT = ["rwkv-ffn", "mlp-layernorm-untied", "paper", "own-removal-key", "value-from-output"]
LEFT += ["gate-and-value-residual", "own-key-other-size", "snapshots"]
LEFT += ["pure-rwkv7", "post-norm-multipliers", "four-norms-soft-caps"]
#: transformers' usual way of running experts has no float64, with which is compared here.
EXPERTS: dict[str, Any] = {
    "num_experts": 3,
    "moe_intermediate_size": 16,
    "experts_implementation": "eager",
}
#: Every field that sets the layers of a family of checkpoints apart, with what makes it matter, and
#: whether the one call has to leave it to the modules.
WIRINGS: dict[str, tuple[dict[str, Any], bool]] = {
    "norm": ({"norm": "rmsnorm_plus_one"}, False),
    "norm_placement": ({"norm_placement": "post"}, False),
    "qk_norm_over": ({"qk_norm": True, "qk_norm_over": "width"}, False),
    "scaled_embedding": ({"scaled_embedding": True}, True),
    "embedding_multiplier": ({"embedding_multiplier": 3.0}, True),
    "attention_multiplier": ({"attention_multiplier": 0.7}, True),
    "attention_softcap": ({"attention_softcap": 0.5}, False),
    "residual_multiplier": ({"residual_multiplier": 0.5}, False),
    "logits_scaling": ({"logits_scaling": 0.5}, True),
    "logit_softcap": ({"logit_softcap": 0.5}, True),
    "rope_float32": ({"rope_float32": True}, False),
    "rope_layers": ({"rope_layers": [1]}, False),
    "sliding_rope_parameters": (
        {
            "sliding_window": 4,
            "sliding_window_layers": [1],
            "sliding_rope_parameters": {"rope_type": "default", "rope_theta": 3.0},
        },
        False,
    ),
    "longrope_recompute": ({"longrope_recompute": True}, True),
    "num_experts": (EXPERTS, False),
    "num_experts_per_tok": (EXPERTS | {"num_experts_per_tok": 2}, False),
    "moe_intermediate_size": ({"moe_intermediate_size": 16}, True),
    "norm_topk_prob": ({"norm_topk_prob": True}, True),
    "moe_layers": (EXPERTS | {"moe_layers": [0]}, False),
}
#: An odd number of keys on both sides of the pieces of 256 that they are attended to in.
LENGTHS = [253, *[1] * 5]


def _model(variant: str = "default", **fields: Any) -> WuNengForCausalLM:
    if variant.startswith("pure-"):
        fields = {"state_head_dim": 16} | fields
    return small_model(variant, hidden_size=64, **fields)


def _ids(batch: int, tokens: int) -> Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(1))


def _decoded(model: Any, ids: Tensor | None = None, lengths: list[int] | None = None) -> Tensor:
    """Logits of tokens one by one behind a prompt."""
    return in_pieces(model, _ids(3, 9) if ids is None else ids, lengths or [4, *[1] * 5])


def _assert_right(found: Tensor, model: Any, run: Callable[[Any], Tensor] = _decoded) -> None:
    assert_as_exact(found, *plainly(model, run), floor=CHUNKED_FLOOR)


@pytest.mark.parametrize("variant", SERVED + LEFT)
def test_it_gives_what_the_modules_give(variant: str) -> None:
    model = _model(variant)
    with counted() as taken:
        found = _decoded(model)
    assert taken == [False, *[variant in SERVED] * 5]
    _assert_right(found, model)


@pytest.mark.parametrize("field", [*WIRING, *OWN_WIRING])
def test_every_wiring_of_a_family_is_computed_or_left(field: str) -> None:
    """A field that is not in the table is one that nobody asked this about."""
    changes, is_served = WIRINGS[field]
    model = _model("mha", **changes)
    with counted() as taken:
        found = _decoded(model)
    assert taken == [False, *[is_served] * 5]
    _assert_right(found, model)


@pytest.mark.parametrize("variant", ["default", "mha"])
def test_odd_widths_heads_and_lengths(variant: str) -> None:
    """Widths that are no multiple of a vector, grouped keys, long contexts, a window."""
    fields = {"hidden_size": 44, "head_dim": 16, "intermediate_size": 52, "num_key_value_heads": 2}
    fields |= {"sliding_window": 40, "sliding_window_layers": [1], "max_position_embeddings": 999}
    model = small_model(variant, **fields)
    ids = _ids(2, sum(LENGTHS))
    with counted() as taken:
        found = _decoded(model, ids, LENGTHS)
    assert taken == [False, *[True] * 5]
    _assert_right(found, model, lambda m: _decoded(m, ids, LENGTHS))


def _generated(model: Any, pads: Tensor, beams: int) -> dict[str, Tensor]:
    """What ``generate`` writes behind left-padded prompts, and every logit it chose by."""
    ids = _ids(len(pads), int(pads.max()) + 7)
    mask = (torch.arange(ids.shape[1]) >= pads[:, None]).long()
    logits: list[Tensor] = []
    watcher = model.register_forward_hook(lambda m, given, out: logits.append(out.logits[:, -1]))
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "num_beams": beams}
    written = model.generate(ids, attention_mask=mask, **settings)
    watcher.remove()
    return {"ids": written.double(), "logits": torch.stack(logits)}


PADS = torch.tensor([0, 261, 3])  # a whole piece of keys that one row does not see


@pytest.mark.parametrize(
    "variant",
    ["additive", "mha", "sliding", "no-middle", "mha-shift", "pure-state", "pre-shift-own"],
)
@pytest.mark.parametrize("beams", [1, 3])
def test_generating_from_unequal_prompts(variant: str, beams: int) -> None:
    model = _model(variant)
    pads = PADS if beams == 1 else PADS[1:]

    def run(m: Any) -> dict[str, Tensor]:
        return _generated(m, pads, beams)

    with counted() as taken:
        found = run(model)
    assert taken == [False, *[True] * 5]
    assert_as_exact(found, *plainly(model, run), floor=CHUNKED_FLOOR)


def test_a_pad_at_the_end_and_large_batches_take_the_modules() -> None:
    model, ids = _model(), _ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, 5] = 0
    with counted() as taken:
        in_pieces(model, ids, [4, 1, 1], mask)
        _decoded(model, _ids(9, 6), [5, 1])
    assert taken == [False, True, False, False, False]


@pytest.mark.parametrize("variant", ["gqa-qk-norm-bias", "no-middle", "mha-shift", "pre-shift-own"])
def test_a_hook_anywhere_is_called(variant: str) -> None:
    model, ids = _model(variant), _ids(1, 3)
    not_read = (model.model, model.model.layers, model.model.rotary_emb)
    for number, module in enumerate(m for m in model.model.modules() if m not in not_read):
        calls: list[int] = []
        kind = ("register_forward_hook", "register_forward_pre_hook")[number % 2]
        handle = getattr(module, kind)(lambda *_, calls=calls: calls.append(1))
        _decoded(model, ids, [2, 1])
        handle.remove()
        assert len(calls) == 2, module
    with counted() as taken:
        _decoded(model, ids, [2, 1])
    assert taken == [False, True]


class _Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _double(model: Any) -> None:
    own = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = other = _Doubled(64, 48, bias=False)
    other.weight = own.weight


CHANGES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "in place": (lambda m: m.model.layers[0].mlp.gate_proj.weight.data.mul_(2), True),
    "parameter": (
        lambda m: setattr(m.model.norm, "weight", nn.Parameter(m.model.norm.weight * 2)),
        True,
    ),
    "transposed": (
        lambda m: setattr(
            m.model.layers[0].self_attn.o_proj.weight,
            "data",
            m.model.layers[0].self_attn.o_proj.weight.data.t(),
        ),
        False,
    ),
    "eps": (lambda m: setattr(m.model.layers[1].input_layernorm, "eps", 0.5), True),
    "scaling": (lambda m: setattr(m.model.layers[1].self_attn, "scaling", 0.5), True),
    "forward": (
        lambda m: setattr(m.model.layers[0].self_attn.q_proj, "forward", lambda x: x * 0.1),
        False,
    ),
    "module": (_double, False),
    "activation": (lambda m: setattr(m.model.layers[0].mlp, "act", nn.GELU()), False),
    "fewer layers": (lambda m: m.model.layers.__delitem__(1), False),
    "loaded": (
        lambda m: m.load_state_dict({k: v * 0.9 for k, v in m.state_dict().items()}, assign=True),
        True,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_counts_at_once(name: str) -> None:
    change, served = CHANGES[name]
    model = _model("mha")
    before = _decoded(model)
    with torch.no_grad():
        change(model)
    with counted() as taken:
        found = _decoded(model)
    assert taken == [False, *[served] * 5]
    assert not torch.allclose(found, before, atol=1e-5)
    _assert_right(found, model)


CLASSES = [nn.Linear, RMSNorm, SwiGLU, HeadGroupNorm, HeadRMSNorm, RWKV7, Attention, WuNengBlock]


@pytest.mark.parametrize("before", [True, False], ids=["before the first call", "after"])
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_forward_replaced_in_the_class_counts_at_once(
    monkeypatch: pytest.MonkeyPatch, kind: Any, before: bool
) -> None:
    """As kernels and patches for a whole library are put in; also where its name is copied."""
    model, old, calls = _model("default"), kind.forward, []
    assert any(type(module) is kind for module in model.modules())

    @functools.wraps(old)
    def halved(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        out = old(*args, **kwargs)
        return out * 0.5 if isinstance(out, torch.Tensor) else out

    if not before:
        _decoded(model)
    monkeypatch.setattr(kind, "forward", halved)
    with counted() as taken:
        found = _decoded(model)
    assert taken == [False] * 6
    called = len(calls)
    assert called > 5
    _assert_right(found, model)
    monkeypatch.undo()
    with counted() as taken:
        _decoded(model)
    assert any(taken)


class _Function(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["mha", "default"])
@pytest.mark.parametrize("mode", [_Function, _Dispatch])
def test_a_mode_sees_every_operation(mode: Any, variant: str) -> None:
    model = _model(variant)
    expected = _decoded(model)
    with mode(), counted() as taken:
        found = _decoded(model)
    assert taken == [False] * 6
    assert torch.allclose(found, expected, atol=1e-5)
    with torch.device("cpu"), counted() as taken:  # a mode as well, which chooses devices only
        _decoded(model)
    assert taken == [False, *[True] * 5]


@pytest.mark.parametrize("who", ["chunked", "autocast", "gradient", "hidden states", "float64"])
def test_whoever_asks_for_more_gets_the_modules(who: str) -> None:
    model, ids = _model(), _ids(1, 6)
    if who == "float64":
        model = model.double()
    with torch.no_grad():
        cache = cache_of(model(ids[:, :5], use_cache=True))
    gradients = torch.enable_grad() if who == "gradient" else torch.no_grad()
    asked = {"output_hidden_states": True} if who == "hidden states" else {}
    ways = [using("chunked")] if who == "chunked" else [nullcontext()]
    with counted() as taken, gradients, ways[0], torch.autocast("cpu", enabled=who == "autocast"):
        out = model(ids[:, 5:], past_key_values=cache, **asked)
    assert taken == [False]
    assert who != "hidden states" or len(out.hidden_states) == 3


def test_the_cache_that_was_given_is_not_written_to() -> None:
    model, ids = _model(), _ids(1, 7)
    with torch.no_grad():
        cache = cache_of(model(ids[:, :6], use_cache=True))
        kept = [(dict(x.states), x.keys, x.values) for x in cache.layers]
        copies = copy.deepcopy(kept)
        model(ids[:, 6:], past_key_values=cache, use_cache=True)
    for (states, *pair), (was, *old) in zip(kept, copies, strict=True):
        assert all(torch.equal(states[n], x) for n, x in was.items())
        assert all(map(torch.equal, pair, old))
    assert cache.get_seq_length() == 7


def test_equal_bits_for_any_number_of_threads_and_callers() -> None:
    model, ids, threads = _model(), _ids(2, 300), torch.get_num_threads()
    with torch.no_grad():
        cache = cache_of(model(ids[:, :296], use_cache=True))
    found: list[Tensor] = []

    def run(own: Any) -> None:
        with torch.no_grad():
            for token in ids[:, 296:].split(1, 1):
                hidden = model.model(token, past_key_values=own, use_cache=True).last_hidden_state
            found.append(hidden)

    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            run(copy.deepcopy(cache))
    finally:
        torch.set_num_threads(threads)
    callers = [Thread(target=run, args=(copy.deepcopy(cache),)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 6
    assert all(torch.equal(own, found[0]) for own in found)
