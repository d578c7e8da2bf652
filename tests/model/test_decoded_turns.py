"""The call through all layers and the modules may take turns, and whatever changes counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.decoded import counted
from tests.model.small import in_pieces, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.model.call_arguments import cache_of
from wuneng.ops import native

pytestmark = pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")
WIRED: dict[str, tuple[str, dict[str, Any]]] = {
    "no-middle": ("no-middle", {}),
    "mha-shift": ("mha-shift", {}),
    "gqa": ("gqa", {}),
    "pure-state": ("pure-state", {"state_head_dim": 16}),
    "rwkv7": (
        "pre-shift-own",
        {"num_attention_heads": 0, "state_head_dim": 16, "num_hidden_layers": 3},
    ),
    "shifted": (
        "pre-shift-own",
        {"attention_token_shift": True, "state_layers": [1, 2], "num_hidden_layers": 3},
    ),
    "sliding-shifted": ("sliding", {"attention_token_shift": True, "cross_head": "none"}),
    "interleaved": (
        "no-middle",
        {"layers": ["state", "attention", "hybrid"], "num_hidden_layers": 3},
    ),
}


def _wired(name: str) -> Any:
    variant, fields = WIRED[name]
    return small_model(variant, hidden_size=64, **fields)


def _ids(batch: int, tokens: int) -> Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(1))


def _decoded(model: Any) -> Tensor:
    return in_pieces(model, _ids(3, 9), [4, *[1] * 5])


def _check(model: Any, served: bool) -> None:
    with counted() as taken:
        found = _decoded(model)
    assert taken == [False, *[served] * 5]
    assert_as_exact(found, *plainly(model, _decoded), floor=CHUNKED_FLOOR)


@contextmanager
def _modules(model: Any) -> Iterator[None]:
    """Whoever watches a module has all of them called."""
    watcher = model.model.norm.register_forward_hook(lambda *_: None)
    yield
    watcher.remove()


def _left_behind(cache: Any) -> dict[str, Tensor]:
    """Every tensor that a cache holds, and the tokens that it has seen."""
    found = {"seen": torch.tensor([float(cache.get_seq_length())])}
    for number, layer in enumerate(cache.layers):
        found |= {f"{number} {name}": x for name, x in layer.states.items()}
        if isinstance(layer.keys, Tensor):
            found |= {f"{number} keys": layer.keys, f"{number} values": layer.values}
    return found


@pytest.mark.parametrize("turns", [(1, 1, 1, 1, 1), (1, 0, 1, 0, 1), (0, 1, 1, 0, 0)])
@pytest.mark.parametrize("name", WIRED)
def test_modules_go_on_where_the_call_left_off(name: str, turns: tuple[int, ...]) -> None:
    """Left-padded rows, token by token, some through the call and the others module by module."""
    model, ids = _wired(name), _ids(3, 13)
    mask = (torch.arange(13) >= torch.tensor([[0], [5], [2]])).long()

    def run(m: Any) -> dict[str, Tensor]:
        logits = []
        with torch.no_grad():
            out = m(ids[:, :8], attention_mask=mask[:, :8], use_cache=True)
            for end, turn in enumerate(turns, 9):
                given = {"attention_mask": mask[:, :end], "past_key_values": cache_of(out)}
                if turn:
                    out = m(ids[:, end - 1 : end], **given)
                else:
                    with _modules(m):
                        out = m(ids[:, end - 1 : end], **given)
                logits.append(out.logits)
        return {"logits": torch.cat(logits, 1)} | _left_behind(cache_of(out))

    with counted() as taken:
        found = run(model)
    assert taken == [False, *map(bool, turns)]
    reference, exact = plainly(model, run)
    exact["seen"] = exact["seen"].double()
    assert found["seen"] == 13
    assert_as_exact(found, reference, exact, floor=CHUNKED_FLOOR)


@pytest.mark.parametrize("name", WIRED)
def test_equal_bits_beside_others_and_for_any_number_of_threads(name: str) -> None:
    model, ids, threads = _wired(name), _ids(8, 6), torch.get_num_threads()
    with torch.no_grad():
        cache = cache_of(model(ids[:, :4], use_cache=True))

    def run(rows: list[int]) -> Tensor:
        own = copy.deepcopy(cache)
        own.batch_select_indices(torch.tensor(rows))
        with counted() as taken, torch.no_grad():
            for token in ids[rows, 4:].split(1, 1):
                out = model.model(token, past_key_values=own, use_cache=True)
        assert taken == [True, True]
        return out.last_hidden_state

    alone = torch.cat([run([row]) for row in range(8)])
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert torch.equal(run(list(range(8))), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("field", ["attention_token_shift", "qk_norm"])
def test_what_layers_ask_the_configuration_at_every_call(field: str) -> None:
    model = small_model("mha-shift", hidden_size=64, qk_norm=True)
    before = _decoded(model)
    setattr(model.config, field, False)
    assert not torch.allclose(_decoded(model), before, atol=1e-5)
    _check(model, True)


def _shorter(layer: Any) -> None:
    layer.tokens_seen -= 1


def _fewer_rows(layer: Any) -> None:
    layer.put("shift", layer.get("shift")[:2])


def _wider(layer: Any) -> None:
    layer.put("wkv", layer.get("wkv").double())


@pytest.mark.parametrize("change", [_shorter, _fewer_rows, _wider])
def test_what_does_not_fit_in_a_cache_is_the_modules_affair(change: Callable[[Any], None]) -> None:
    model, ids = _wired("pure-state"), _ids(3, 5)
    with torch.no_grad():
        cache = cache_of(model(ids[:, :4], use_cache=True))
    change(cache.layers[1])
    refused = nullcontext() if change is _shorter else pytest.raises((RuntimeError, ValueError))
    with counted() as taken, torch.no_grad(), refused:
        model(ids[:, 4:], past_key_values=cache, use_cache=True)
    assert taken == [False]


class _Louder(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("no-middle", "cross_head.branch_proj"),
        ("rwkv7", "state_heads.k_proj"),
        ("rwkv7", "state_heads.v_proj"),
        ("mha-shift", "self_attn.k_proj"),
    ],
)
def test_a_replaced_projection_runs(name: str, path: str) -> None:
    model = _wired(name)
    block = model.model.layers[1]
    own = block.get_submodule(path)
    louder = _Louder(own.in_features, own.out_features, bias=False)
    louder.weight = own.weight
    block.set_submodule(path, louder)
    _check(model, False)


def test_changed_mixtures_gates_and_shifts_count_at_once() -> None:
    for name, part, weights in (
        ("rwkv7", "state_heads", ("x_w", "g1", "g2", "v0", "v1", "k_a")),
        ("mha-shift", "self_attn", ("shift_k", "shift_v")),
        ("no-middle", "cross_head", ("scale",)),
    ):
        model = _wired(name)
        for weight in weights:
            before = _decoded(model)
            with torch.no_grad():
                getattr(getattr(model.model.layers[1], part), weight).mul_(1.5)
            assert not torch.allclose(_decoded(model), before, atol=1e-6), (name, weight)
        _check(model, True)
