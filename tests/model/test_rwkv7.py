"""Without attention heads the model is RWKV-7: a trained checkpoint gives its expected logits."""

import numpy as np
import pytest
import torch

from tests.model.small import plainly
from tests.precision import assert_as_exact
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.convert.rwkv7 import RWKV7_WIRING
from wuneng.model.call_arguments import cache_of

RENAMED = {
    "emb.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "blocks.0.ln0.weight": "model.embed_norm.weight",
    "blocks.0.ln0.bias": "model.embed_norm.bias",
}
IN_BLOCK = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "att.receptance": "state_heads.r_proj",
    "att.key": "state_heads.k_proj",
    "att.value": "state_heads.v_proj",
    "att.output": "cross_head.branch_proj",
    "att.ln_x": "state_heads.g_norm",
    "ffn.x_k": "mlp.x_k",
    "ffn.key": "mlp.key",
    "ffn.value": "mlp.value",
    "att.": "state_heads.",
}


def pure_rwkv7(layers, width, heads, ffn, vocab, ranks):
    return WuNengConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=ffn,
        num_state_heads=heads,
        state_head_dim=width // heads,
        head_dim=width // heads,
        embedding_norm=True,
        tie_word_embeddings=False,
        decay_rank=ranks,
        rate_rank=ranks,
        value_rank=ranks,
        gate_rank=ranks,
        **RWKV7_WIRING,
    )


def load_tensors(model, tensors):
    wanted = model.state_dict()
    renamed = {}
    for name, tensor in tensors.items():
        if name in RENAMED:
            target = RENAMED[name]
        else:
            _, layer, rest = name.split(".", 2)
            for old, new in IN_BLOCK.items():
                if rest.startswith(old):
                    rest = rest.replace(old, new, 1)
                    break
            target = f"model.layers.{layer}.{rest}"
        renamed[target] = tensor.reshape(wanted[target].shape)
    for name, tensor in wanted.items():
        if name.endswith("cross_head.scale"):
            renamed[name] = torch.ones_like(tensor)
    model.load_state_dict(renamed)


@pytest.fixture
def trained(shared_data):
    folder = shared_data / "models" / "rwkv7_tiny_834k"
    tensors = torch.load(folder / "rwkv7-tiny-834k.pth", weights_only=True)
    model = WuNengForCausalLM(pure_rwkv7(12, 64, 1, 256, 256, 32)).eval()
    load_tensors(model, tensors)
    expected = np.fromfile(folder / "expected-logits-7v0-834K.bin", dtype="<f4")
    return model, torch.from_numpy(expected)


def assert_expected(found, expected, model):
    """Ours and the published logits, which another program computed in float32, are equally far
    from float64: each is the other's reference."""
    with torch.no_grad():
        _, exact = plainly(model, lambda m: m(torch.tensor([list(b'"in')])).logits[0, -1])
    assert_as_exact(found, expected, exact)
    assert_as_exact(expected, found, exact)


def test_expected_logits(trained):
    model, expected = trained
    ids = torch.tensor([list(b'"in')])
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    assert_expected(logits, expected, model)


def test_expected_logits_token_by_token(trained):
    model, expected = trained
    cache = None
    with torch.no_grad():
        for byte in b'"in':
            out = model(torch.tensor([[byte]]), past_key_values=cache, use_cache=True)
            cache = cache_of(out)
    assert_expected(out.logits[0, -1], expected, model)
