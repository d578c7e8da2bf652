"""Keys and values with room: appended in place, and never in another cache's memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from tests.model.small import in_pieces, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.model.cache import HybridLayer
from wuneng.model.call_arguments import cache_of


def _tokens(count: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3, count, 8), torch.randn(rows, 3, count, 8)


def _fill(*counts: int) -> tuple[HybridLayer, DynamicLayer]:
    """The same updates through our layer and through transformers'."""
    ours, theirs = HybridLayer(), DynamicLayer()
    for count in counts:
        _add(ours, theirs, count)
    return ours, theirs


def _add(ours: HybridLayer, theirs: DynamicLayer, count: int, rows: int = 2) -> None:
    keys, values = _tokens(count, rows)
    found, expected = ours.update(keys, values), theirs.update(keys, values)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_as_concatenated_and_hardly_ever_copied() -> None:
    ours, theirs = _fill(5)
    places = set()
    for _ in range(300):
        _add(ours, theirs, 1)
        places.add(ours.keys.data_ptr())
    assert ours.get_seq_length() == 305
    assert len(places) <= 6


@pytest.mark.parametrize("change", ["reorder", "repeat", "select", "reset"])
def test_a_changed_cache_starts_its_own_memory(change: str) -> None:
    ours, theirs = _fill(4, 1, 1)
    for layer in (ours, theirs):
        if change == "reorder":
            layer.reorder_cache(torch.tensor([1, 1]))
        elif change == "repeat":
            layer.batch_repeat_interleave(2)
        elif change == "select":
            layer.batch_select_indices(torch.tensor([1]))
        else:
            layer.reset()
    if change == "reset":  # not every transformers release drops what it has reset
        theirs = DynamicLayer()
    rows = {"repeat": 4, "select": 1}.get(change, 2)
    for _ in range(3):
        _add(ours, theirs, 1, rows)


def test_two_copies_of_a_cache_do_not_write_over_each_other() -> None:
    ours, theirs = _fill(4, 1)
    twin, their_twin = copy.copy(ours), copy.copy(theirs)
    _add(ours, theirs, 1)
    _add(twin, their_twin, 1)
    _add(ours, theirs, 2)
    _add(twin, their_twin, 1)
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(twin.values, their_twin.values)
    deep, their_deep = copy.deepcopy(ours), copy.deepcopy(theirs)
    _add(deep, their_deep, 1)
    _add(ours, theirs, 1)
    assert torch.equal(deep.keys, their_deep.keys)


def test_a_cache_that_is_decoded_from_again_and_again_is_not_copied() -> None:
    ours, _ = _fill(6, 1)
    place = ours.keys.data_ptr()
    for _ in range(3):
        twin = copy.copy(ours)
        twin.reclaim()
        keys, _ = twin.update(*_tokens(1))
        assert keys.data_ptr() == place
        assert keys.shape[-2] == 8
    assert ours.get_seq_length() == 7


def test_inside_and_outside_inference_mode() -> None:
    ours, theirs = _fill(3, 1)
    with torch.inference_mode():
        _add(ours, theirs, 1)
    _add(ours, theirs, 1)


def test_gradients_reach_earlier_keys() -> None:
    layer = HybridLayer()
    keys, values = (x.requires_grad_() for x in _tokens(2))
    layer.update(keys, values)
    more = [x.requires_grad_() for x in _tokens(1)]
    all_keys, _ = layer.update(*more)
    all_keys.sum().backward()
    assert keys.grad is not None
    assert more[0].grad is not None


def test_a_model_decodes_as_it_reads() -> None:
    model = small_model()
    ids = torch.randint(0, model.config.vocab_size, (2, 90))
    with torch.no_grad():
        whole = plainly(model, lambda m: m(ids).logits)
        cache, parts = None, []
        for span in (ids[:, :10], *ids[:, 10:].split(1, dim=1)):
            out = model(span, past_key_values=cache, use_cache=True)
            cache = cache_of(out)
            parts.append(out.logits)
    assert_as_exact(torch.cat(parts, dim=1), *whole, floor=CHUNKED_FLOOR)


@torch.no_grad()
def test_room_for_a_token_is_that_of_an_update() -> None:
    """Behind what was there, once for each asker, and only where the memory is the layer's own."""
    layers = [HybridLayer(), HybridLayer()]
    old, one = torch.randn(2, 1, 5, 16), torch.randn(2, 1, 1, 16)
    for layer in layers:
        assert layer.extended() is None
        layer.update(old, old)
        assert layer.extended() is None
        layer.update(one, one)
    layer, updated = layers
    updated.update(one, one)
    shallow = copy.copy(layer)
    found = layer.extended()
    assert found is not None
    for keys in found:
        keys[:, :, -1:] = one
    torch.testing.assert_close(layer.keys, updated.keys)
    torch.testing.assert_close(layer.values, updated.values)
    assert found[0] is layer.keys
    assert shallow.extended() is None  # that memory is taken
    layer.keys = layer.keys.clone()  # as reordering beams does
    assert layer.extended() is None
    while updated.extended() is not None:  # until the room is used up
        pass
    assert updated.keys.shape[2] == updated._rooms[0].memory.shape[2]


def test_who_replaces_update_has_it_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(hidden_size=64)
    calls = []
    right = HybridLayer.update

    def noted(self: Any, *given: Any, **named: Any) -> Any:
        calls.append(given[0].shape)
        return right(self, *given, **named)

    monkeypatch.setattr(HybridLayer, "update", noted)
    in_pieces(model, torch.randint(61, (1, 8)), [4, 1, 1, 1, 1])
    assert len(calls) == 5 * 2
