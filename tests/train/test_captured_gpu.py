"""Real CUDA graphs: `pytest -m gpu`. The same bits as launched kernel by kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("pydantic", reason="training's settings need pydantic")

from tests.model.small import small_model
from wuneng.data.batch import Batch
from wuneng.errors import RunError
from wuneng.recipe import Training
from wuneng.train.optimizer import build_optimizer
from wuneng.train.step import Numerics, prepare_model, take_step

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
ROWS, TOKENS = 4, 128


def batch(seed: int, documents: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(61, (2, ROWS, TOKENS), generator=generator)
    labels[0, : seed % 5] = -100
    packed = torch.randint(documents or 1, (ROWS, TOKENS), generator=generator).sort(1).values
    return Batch(ids, labels, packed if documents else None, "random", TOKENS)


def trained(batches: list[Batch], *, capturing: bool, **changes: Any) -> Any:
    """Losses, and weights at the end."""
    torch.manual_seed(0)
    training = Training(steps=9, sequence_length=TOKENS, batch_size=ROWS, **changes)
    # Of a head size that has kernels: others are laid out by the host, document by document.
    model = small_model(hidden_size=64, num_attention_heads=4).to(CUDA).train()
    numerics = Numerics.pick(CUDA, torch.bfloat16)
    if capturing:
        numerics = numerics.capturing()
    called = prepare_model(model, training, numerics)
    optimizer = build_optimizer(model, training)
    losses = [
        take_step(called, optimizer, one, training, numerics, step=n, arm="arm").loss
        for n, one in enumerate(batches, 1)
    ]
    if capturing:
        assert numerics.captured is not None
        assert numerics.captured._passes
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("error:.*AccumulateGrad")
@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("documents", [0, 9])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_same_bits(micro: int | None, documents: int, compiled: bool) -> None:
    batches = [batch(seed, documents) for seed in range(6)]
    changes = {"micro_batch_size": micro, "compile": compiled}
    losses, weights = trained(batches, capturing=False, **changes)
    found, others = trained(batches, capturing=True, **changes)
    if compiled or documents:
        # Compiled for shapes that change, or for more sequences, sums have another order.
        assert found == pytest.approx(losses, rel=2e-3)
        return
    assert found == losses
    for name, weight in weights.items():
        assert torch.equal(others[name], weight), name


def _waits(*_: Any) -> None:
    torch.ones((), device=CUDA).item()


def test_what_waits_for_the_device_is_refused() -> None:
    numerics = Numerics.pick(CUDA, torch.bfloat16).capturing()
    model = small_model("default").to(CUDA).train()
    model.model.layers[0].register_forward_hook(_waits)
    one = batch(0, 0)
    assert numerics.captured is not None
    with pytest.raises(RunError, match=r"training\.cuda_graph.*to false"):
        numerics.captured.backward(model, [(one.input_ids, one.labels, None)], 100)
    # The device goes on working.
    assert float(torch.ones(3, device=CUDA).sum()) == 3.0
