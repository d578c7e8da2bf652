"""Without state heads the model is a Llama: same names, same logits."""

import copy

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.model.ropes import SCALED
from tests.precision import assert_as_exact
from wuneng import WuNengConfig, WuNengForCausalLM

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _source(kind, rope=None):
    rope = rope or ROPE
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope)), {}
    if kind == "llama-bias":
        config = LlamaConfig(**SHAPE, rope_parameters=rope, attention_bias=True, mlp_bias=True)
        return LlamaForCausalLM(config), {
            "attention_bias": True,
            "attention_output_bias": True,
            "mlp_bias": True,
        }
    if kind == "qwen2":
        config = Qwen2Config(**SHAPE, rope_parameters=rope)
        return Qwen2ForCausalLM(config), {"attention_bias": True}
    if kind == "qwen3":
        config = Qwen3Config(**SHAPE, rope_parameters=rope, head_dim=20)
        return Qwen3ForCausalLM(config), {"qk_norm": True, "head_dim": 20}
    config = MistralConfig(**SHAPE, rope_parameters=rope, sliding_window=7, head_dim=10)
    return MistralForCausalLM(config), {"sliding_window": 7, "head_dim": 10}


def _copy(kind, rope=None):
    torch.manual_seed(1)
    source, extra = _source(kind, rope)
    for parameter in source.parameters():
        parameter.data.normal_(std=0.2)
    config = WuNengConfig(**SHAPE, **extra, num_state_heads=0, rope_parameters=rope or ROPE)
    ours = WuNengForCausalLM(config)
    ours.load_state_dict(source.state_dict())
    return source.eval(), ours.eval()


def assert_equally_exact(ours, theirs, exact):
    """float64 is our model's (theirs rounds between blocks): were it wrong, theirs would be off."""
    assert_as_exact(ours, theirs, exact)
    assert_as_exact(theirs, ours, exact)


@pytest.mark.parametrize("kind", ["llama", "llama-bias", "qwen2", "qwen3", "mistral"])
def test_same_logits_and_gradients(kind):
    source, ours = _copy(kind)
    ids = torch.randint(0, 97, (3, 29))
    expected = source(ids, labels=ids)
    got = ours(ids, labels=ids)
    assert torch.equal(expected.logits, got.logits)
    expected.loss.backward()
    got.loss.backward()
    wide = copy.deepcopy(ours).double()
    wide.zero_grad()
    wide(ids, labels=ids).loss.backward()
    gradients = [dict(m.named_parameters()) for m in (ours, source, wide)]
    assert_equally_exact(*({n: x[n].grad for n in gradients[0]} for x in gradients))


@pytest.mark.parametrize("rope", SCALED.values(), ids=list(SCALED))
def test_rope_scaling_kinds(rope):
    source, ours = _copy("llama", rope)
    ids = torch.randint(0, 97, (2, 80))  # beyond max_position_embeddings, where dynamic acts
    assert torch.equal(source(ids).logits, ours(ids).logits)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_greedy_generation_and_left_padding_agree(kind):
    source, ours = _copy(kind)
    ids = torch.randint(1, 97, (2, 11))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = source.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(expected, ours.generate(ids, attention_mask=mask, **settings))


def test_packed_documents_agree_with_transformers():
    source, ours = _copy("llama")
    ids = torch.randint(0, 97, (1, 20))
    positions = torch.cat([torch.arange(7), torch.arange(13)]).unsqueeze(0)
    models = (ours, source, copy.deepcopy(ours).double())
    assert_equally_exact(*(m(ids, position_ids=positions, use_cache=False).logits for m in models))
