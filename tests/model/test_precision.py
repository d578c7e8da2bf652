"""Mixed precision, compilation and long runs of one token, at the level of the model."""

import pytest
import torch

from tests.model.small import small_model


@pytest.mark.parametrize("variant", ["default", "snapshots", "pure-rwkv7", "concat", "mha-shift"])
def test_bf16_autocast_is_close_and_trains(variant):
    model = small_model(variant).train()
    ids = torch.randint(0, 61, (2, 40))
    exact = model(ids, labels=ids, use_cache=False)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(ids, labels=ids, use_cache=False)
    assert (rough.logits.float() - exact.logits).norm() < 0.05 * exact.logits.norm()
    rough.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("variant", ["default", "snapshots"])
def test_compiles_without_a_graph_break(variant):
    """Through ``aot_eager``: the graph and its gradients, without a C++ compiler's minutes."""
    ids = torch.randint(0, 61, (2, 33))
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = small_model(variant).train()
        call = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        logits = call(ids, use_cache=False).logits
        logits.square().mean().backward()
        results.append((logits.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    for plain, traced in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(plain, traced, rtol=1e-3, atol=1e-5)


def test_a_long_run_of_one_token_keeps_finite_gradients():
    """Identical tokens make the removal keys parallel: where chunked inverses go wrong."""
    model = small_model("a-max-2").train()
    ids = torch.full((1, 300), 7)
    out = model(ids, labels=ids, use_cache=False)
    out.loss.backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
