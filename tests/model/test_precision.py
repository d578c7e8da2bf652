"""Mixed precision, compilation and long runs of one token, at the level of the model."""

import pytest
import torch

from tests.model.small import plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact, rounded_again
from wuneng.layers import norms


@pytest.mark.parametrize("norm", [norms.RMSNorm, norms.HeadRMSNorm, norms.HeadGroupNorm])
def test_norms_of_float64_are_float64(norm):
    """Else a model in float64, the oracle of every other one, would be rounded between blocks."""
    x = torch.randn(3, 5, 2, 16, dtype=torch.float64)
    module = (norm(16, 1e-6) if norm is norms.RMSNorm else norm(2, 16, 1e-6)).double()
    if norm is norms.HeadGroupNorm:
        expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, False, keepdim=True) + 1e-6).sqrt()
    else:
        expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert (module(x) - expected).abs().max() < 1e-12


def test_snapshot_weights_of_float64_are_float64():
    model = small_model("snapshots").double()
    ids = torch.randint(0, 61, (1, 40))
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        for block in model.model.layers:
            block.state_heads.snapshot_proj.weight.mul_(1 + 1e-10)
        after = model(ids, use_cache=False).logits
    assert 0 < (before - after).abs().max() < 1e-8


@pytest.mark.parametrize("variant", ["default", "snapshots", "pure-rwkv7", "concat", "mha-shift"])
def test_bf16_autocast_is_close_and_trains(variant):
    model = small_model(variant).train()
    ids = torch.randint(0, 61, (2, 40))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(ids, labels=ids, use_cache=False)
    rounded = small_model(variant)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(rounded_again(parameter, torch.bfloat16))
        reference, _ = plainly(rounded, lambda m: m(ids, use_cache=False).logits)
        _, exact = plainly(model, lambda m: m(ids, use_cache=False).logits)
    assert_as_exact(rough.logits, reference, exact)
    rough.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("variant", ["default", "snapshots"])
def test_compiles_without_a_graph_break(variant):
    """Through ``aot_eager``: the graph and its gradients, without a C++ compiler's minutes."""
    ids = torch.randint(0, 61, (2, 33))
    model = small_model(variant).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)

    def run(model, call=None):
        model.zero_grad()
        logits = (model if call is None else call)(ids, use_cache=False).logits
        logits.square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        return {"logits": logits.detach(), **gradients}

    sides = plainly(model, run)
    for found in (run(model), run(model, compiled)):
        assert_as_exact(found, *sides, floor=CHUNKED_FLOOR)


def test_a_long_run_of_one_token_keeps_finite_gradients():
    """Identical tokens make the removal keys parallel: where chunked inverses go wrong."""
    model = small_model("a-max-2").train()
    ids = torch.full((1, 300), 7)
    out = model(ids, labels=ids, use_cache=False)
    out.loss.backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
