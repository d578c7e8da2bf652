"""What a model's call takes: the cache under either name, ours alone, and nothing unread."""

import logging

import pytest
import torch
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from tests.model.small import VARIANTS, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengCache
from wuneng.model.call_arguments import CACHE_NAME, cache_of


@pytest.fixture
def transformers_log(caplog):
    """What transformers would have shown a user."""
    logger = logging.getLogger("transformers")
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    transformers_logging.set_verbosity(before)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_taken_under_both_names(name, transformers_log, recwarn):
    model = small_model()
    ids = torch.randint(0, 61, (1, 9))
    with torch.no_grad():
        cache = cache_of(model(ids[:, :8], use_cache=True))
        got = model(ids[:, 8:], use_cache=True, **{name: cache}).logits
        whole = plainly(model, lambda m: m(ids, use_cache=False).logits[:, 8:])
    assert_as_exact(got, *whole, floor=CHUNKED_FLOOR)
    assert not transformers_log.records
    assert not [w for w in recwarn if "cache" in str(w.message)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_generate_writes_what_the_full_forward_says(variant, transformers_log, recwarn):
    model = small_model(variant)
    ids = torch.randint(1, 61, (2, 7))
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=9,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        read = out.sequences[:, :-1]
        whole = plainly(model, lambda m: m(read, use_cache=False).logits[:, 6:])
    got = torch.stack(out.logits, dim=1)
    assert_as_exact(got, *whole, floor=CHUNKED_FLOOR)
    assert torch.equal(got.argmax(-1), out.sequences[:, 7:])
    assert not transformers_log.records
    assert not list(recwarn)


def test_generate_goes_on_from_a_cache_under_the_releases_own_name():
    model = small_model()
    ids = torch.randint(1, 61, (1, 12))
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    with torch.no_grad():
        cache = cache_of(model(ids[:, :-1], use_cache=True))
    given = {CACHE_NAME: cache}
    got = model.generate(ids, attention_mask=torch.ones_like(ids), **given, **settings)
    assert torch.equal(got, expected)


def test_two_caches_are_refused():
    model = small_model()
    one, other = WuNengCache(model.config), WuNengCache(model.config)
    with pytest.raises(ValueError, match="Give the cache once"):
        model(torch.tensor([[1]]), cache=one, past_key_values=other)


@pytest.mark.parametrize("call", ["model", "base", "generate"])
@pytest.mark.parametrize("variant", ["default", "mha", "pure-state"])
def test_another_kind_of_cache_is_refused_by_name(variant, call):
    model = small_model(variant)
    ids = torch.tensor([[1, 2, 3]])
    calls = {
        "model": lambda **given: model(ids, **given),
        "base": lambda **given: model.model(ids, **given),
        "generate": lambda **given: model.generate(ids, max_new_tokens=2, **given),
    }
    with pytest.raises(TypeError, match=r"DynamicCache cannot hold.*WuNengCache"):
        calls[call](**{CACHE_NAME: DynamicCache()})


def test_continuous_batching_is_refused():
    model = small_model()
    with pytest.raises(NotImplementedError, match=r"generate_batch.*paged cache.*generate\(\)"):
        model.generate_batch(inputs=[[1, 2, 3]])
    with pytest.raises(NotImplementedError, match="paged cache"):
        model.init_continuous_batching()


def test_prefix_tuning_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(small_model("mha"), config)
    with pytest.raises(TypeError, match="cannot hold what a WuNeng model caches"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [("atention_mask", "attention_mask"), ("kache", "cache"), ("document_id", "document_ids")],
)
def test_an_unknown_argument_is_refused(argument, nearest):
    model = small_model()
    ids = torch.tensor([[1, 2, 3]])
    for call in (model, model.model):
        with pytest.raises(TypeError, match=rf"'{argument}'.*did you mean {nearest}\?"):
            call(ids, **{argument: torch.ones_like(ids)})


def test_arguments_that_say_nothing_pass():
    model = small_model()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(model(ids, token_type_ids=None, return_dict=True).logits, expected)
        out = model(ids, labels=ids, num_items_in_batch=torch.tensor(2), output_hidden_states=True)
    assert len(out.hidden_states) == 3


@pytest.mark.parametrize("value", [False, 0])
def test_a_model_with_state_is_causal(value):
    with pytest.raises(ValueError, match="is_causal=False"):
        small_model()(torch.tensor([[1, 2, 3]]), is_causal=value)


def test_a_switch_and_a_number_of_positions_are_what_they_should_be():
    model, ids = small_model(), torch.randint(0, 61, (1, 9))
    with torch.no_grad(), pytest.raises(ValueError, match=r"use_cache: .*got 'no'"):
        model(ids, use_cache="no")
    with torch.no_grad(), pytest.raises(ValueError, match=r"logits_to_keep: .*got -1"):
        model(ids, logits_to_keep=-1)
    with torch.no_grad():
        whole = model(ids).logits
        for kept, expected in ((0, whole), (2, whole[:, -2:])):
            torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, expected)
        some = torch.tensor([0, 4])
        torch.testing.assert_close(model(ids, logits_to_keep=some).logits, whole[:, some])


@pytest.mark.parametrize("variant", ["default", "mha", "sliding", "pure-state"])
def test_a_mask_is_as_wide_as_what_is_attended_to(variant):
    model = small_model(variant)
    ids = torch.randint(1, 61, (2, 14))
    with torch.no_grad():
        for shape in ([2, 10], [2, 17], [1, 14], [2, 1], [14]):
            with pytest.raises(ValueError, match=r"attention_mask: expected shape \[2, 14\], got"):
                model(ids, attention_mask=torch.ones(shape).long())
        cache = cache_of(model(ids, use_cache=True))
        for width in (3, 14, 16, 18):
            with pytest.raises(ValueError, match=r"shape \[2, 17\]: 14 tokens of the cache and 3"):
                model(ids[:, :3], cache=cache, attention_mask=torch.ones(2, width).long())
        whole = plainly(
            model, lambda m: m(torch.cat([ids, ids[:, :3]], 1), use_cache=False).logits[:, 14:]
        )
        got = model(ids[:, :3], cache=cache, attention_mask=torch.ones(2, 17).long()).logits
    assert_as_exact(got, *whole, floor=CHUNKED_FLOOR)


def test_a_mask_of_pairs_is_as_wide_too():
    ids = torch.tensor([[1, 2, 3]])
    for shape in ([1, 1, 3, 1], [1, 1, 1, 3], [2, 1, 3, 3], [1, 3, 3]):
        with pytest.raises(ValueError, match=r"attention_mask: expected shape \[1, 3\], got"):
            small_model("mha")(ids, attention_mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("variant", ["default", "mha", "pure-state"])
def test_positions_are_as_wide_as_the_tokens(variant):
    model = small_model(variant)
    ids = torch.randint(1, 61, (2, 14))
    for shape in ([2, 1], [1, 1], [3, 14], [2, 15], [14], [3, 2, 14]):
        with pytest.raises(ValueError, match=r"position_ids: expected shape \[2, 14\].* got \["):
            model(ids, position_ids=torch.zeros(shape).long())
    with pytest.raises(ValueError, match=r"position_ids: expected integers, got torch\.float32"):
        model(ids, position_ids=torch.arange(14.0)[None])


def test_labels_that_are_shifted_already():
    model = small_model()
    ids = torch.randint(1, 61, (2, 14))
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        expected = model(ids, labels=ids).loss
        assert torch.equal(model(ids, shift_labels=shifted).loss, expected)
        with pytest.raises(ValueError, match="head_loss makes the loss"):
            model(ids, shift_labels=shifted, head_loss=lambda hidden, head: None)
        with pytest.raises(ValueError, match="ignore_index is read with labels only"):
            model(ids, ignore_index=3)
        assert model(ids, num_items_in_batch=2).loss is None
    for name in ("shift_labels", "ignore_index", "num_items_in_batch"):
        with pytest.raises(TypeError, match=rf"no argument '{name}'"):
            model.model(ids, **{name: shifted})


def test_a_mask_of_pairs_is_refused_where_state_cannot_follow_it():
    ids = torch.tensor([[1, 2, 3]])
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    for variant in ("default", "mha-shift", "rwkv-ffn"):
        with pytest.raises(ValueError, match=r"attention_mask: expected \[batch, tokens\]"):
            small_model(variant)(ids, attention_mask=mask)
    model = small_model("mha")
    with torch.no_grad():
        whole = plainly(model, lambda m: m(ids).logits)
        assert_as_exact(model(ids, attention_mask=mask).logits, *whole)


def test_checkpointed_activations_and_a_cache_are_refused():
    model = small_model().train()
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="advance the cache twice"):
        model(torch.tensor([[1, 2, 3]]), cache=WuNengCache(model.config))
