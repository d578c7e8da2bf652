"""The hybrid cache: stepwise equals whole, pads contribute nothing, beams move states along."""

import pytest
import torch

from tests.model.small import VARIANTS, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.model import WuNengCache
from wuneng.model.call_arguments import cache_of


def assert_logits(found, model, ids, rows=slice(None), tokens=slice(None)):
    """As exact as the plain formulas over the whole of ``ids`` at once, without a cache."""
    whole = plainly(model, lambda m: m(ids, use_cache=False).logits[rows, tokens])
    assert_as_exact(found, *whole, floor=CHUNKED_FLOOR)


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_then_steps_equal_the_full_forward(variant):
    model = small_model(variant)
    ids = torch.randint(0, 61, (2, 45))
    with torch.no_grad():
        assert_logits(model(ids, use_cache=False).logits, model, ids)
        out = model(ids[:, :19], use_cache=True)
        pieces = [out.logits]
        for start, stop in [*((t, t + 1) for t in range(19, 38)), (38, 45)]:
            out = model(ids[:, start:stop], past_key_values=cache_of(out), use_cache=True)
            pieces.append(out.logits)
        assert_logits(torch.cat(pieces, 1), model, ids)


@pytest.mark.parametrize("variant", VARIANTS)
def test_left_and_right_pads_contribute_nothing(variant):
    model = small_model(variant)
    ids = torch.randint(0, 61, (3, 30))
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    mask[2, :29] = 0
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
        for row, start in ((0, 13), (1, 0), (2, 29)):
            assert_logits(out.logits[row : row + 1, start:], model, ids[row : row + 1, start:])
        # and the state that decoding goes on from is the unpadded one
        step = torch.randint(0, 61, (3, 1))
        mask = torch.cat([mask, torch.ones_like(step)], 1)
        positions = mask.cumsum(1)[:, -1:] - 1
        after = model(
            step,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache_of(out),
            use_cache=True,
        ).logits
        for row, start in ((0, 13), (1, 0), (2, 29)):
            whole = torch.cat([ids[row : row + 1, start:], step[row : row + 1]], 1)
            assert_logits(after[row : row + 1], model, whole, tokens=slice(-1, None))
        right = torch.ones_like(ids)
        right[1, 17:] = 0
        padded = model(ids, attention_mask=right, use_cache=False).logits[1:2, :17]
        assert_logits(padded, model, ids[1:2, :17])


@pytest.mark.parametrize("variant", ["default", "snapshots", "pure-rwkv7", "mha-shift", "sliding"])
def test_generate_left_padded_batch_equals_single_prompts(variant):
    model = small_model(variant)
    prompts = [torch.randint(1, 61, (n,)) for n in (5, 12, 19)]
    width = max(len(p) for p in prompts)
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0)) for p in prompts])
    mask = torch.stack([(torch.arange(width) >= width - len(p)).long() for p in prompts])
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together = model.generate(ids, attention_mask=mask, **settings)[:, width:]
    for row, prompt in enumerate(prompts):
        alone = model.generate(prompt[None], attention_mask=torch.ones(1, len(prompt)), **settings)
        assert torch.equal(alone[0, len(prompt) :], together[row])


@pytest.mark.parametrize("variant", ["default", "snapshots", "pure-rwkv7"])
def test_generate_with_cache_equals_without(variant):
    model = small_model(variant)
    ids = torch.randint(1, 61, (2, 9))
    for kind in (
        {"num_beams": 3},
        {"do_sample": True},
        {"num_beams": 2, "num_return_sequences": 2},
    ):
        settings = {"max_new_tokens": 14, "pad_token_id": 0, "eos_token_id": None} | kind
        results = []
        for use_cache in (True, False):
            torch.manual_seed(5)
            results.append(model.generate(ids, use_cache=use_cache, **settings))
        assert torch.equal(*results), kind


def test_reorder_repeat_and_select_move_every_tensor():
    model = small_model("snapshots")
    ids = torch.randint(0, 61, (3, 20))
    step = torch.randint(0, 61, (3, 1))
    with torch.no_grad():
        whole = torch.cat([ids, step], 1)
        for method, argument, rows in (
            ("reorder_cache", torch.tensor([2, 0, 1]), [2, 0, 1]),
            ("batch_repeat_interleave", 2, [0, 0, 1, 1, 2, 2]),
            ("batch_select_indices", torch.tensor([1, 2]), [1, 2]),
        ):
            cache = cache_of(model(ids, use_cache=True))
            getattr(cache, method)(argument)
            got = model(step[rows], past_key_values=cache, use_cache=True).logits[:, -1]
            assert_logits(got, model, whole, rows, -1)


def test_cache_holds_what_it_says():
    model = small_model("snapshots")
    cache = cache_of(model(torch.randint(0, 61, (2, 50)), use_cache=True))
    assert isinstance(cache, WuNengCache)
    assert cache.get_seq_length() == 50
    heads, dim, layers, batch = 2, 8, 2, 2
    assert cache.key_value_bytes() == layers * batch * 2 * 4 * 50 * dim * 4
    states = layers * batch * heads * dim * dim * 4 * (1 + 2)
    shifts = layers * batch * 3 * heads * dim * 4
    positions = layers * batch * 8
    assert cache.state_bytes() == states + shifts + positions
    assert cache.layers[0].get("wkv").dtype == torch.float32
    cache.reset()
    assert cache.get_seq_length() == 0
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)


def test_unsuitable_caches_are_refused():
    model = small_model()
    ids = torch.randint(0, 61, (1, 4))
    with pytest.raises(ValueError, match="cannot hold a recurrent state"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="cannot be combined with a cache"):
        model(ids, document_ids=torch.zeros_like(ids), past_key_values=WuNengCache(model.config))


def test_state_stays_float32_in_half_precision():
    model = small_model().to(torch.bfloat16)
    out = model(torch.randint(0, 61, (1, 20)), use_cache=True)
    assert out.logits.dtype == torch.bfloat16
    assert cache_of(out).layers[0].get("wkv").dtype == torch.float32
