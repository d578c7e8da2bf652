"""A training call never waits for the device: the host launches ahead of it, or a GPU idles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.small import small_model
from wuneng.layers.layout import documents_at_most
from wuneng.model import masks
from wuneng.ops import using

IDS = torch.arange(48).view(2, 24) % 61
#: What reads a value from the device, or a shape that only the device knows.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique")


class Waiting(TorchDispatchMode):
    """Counts the operations that a host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in WAITS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "variant", ["default", "mha", "mha-shift", "no-middle", "sliding", "paper", "kda"]
)
def test_a_training_call_does_not_wait(variant: str) -> None:
    model = small_model(variant).train()
    with using("reference"), Waiting() as waiting:
        model(IDS, use_cache=False).logits.sum().backward()
    assert waiting.found == []


def test_waits_are_seen() -> None:
    model = small_model("default").train()
    with using("reference"), Waiting() as waiting:
        model(IDS, use_cache=False, position_ids=torch.arange(24)[None])
    assert waiting.found  # where documents may begin has to be looked up


@pytest.mark.parametrize("variant", ["default", "mha", "mha-shift", "sliding", "paper"])
def test_nor_does_one_of_packed_documents_whose_number_is_bounded(variant: str) -> None:
    model = small_model(variant).train().double()
    packed = torch.arange(24).div(7, rounding_mode="floor").expand(2, 24)
    results = []
    for waits in (True, False):
        with using("reference"), Waiting() as waiting:
            if waits:
                logits = model(IDS, use_cache=False, document_ids=packed).logits
            else:
                with documents_at_most(16):
                    logits = model(IDS, use_cache=False, document_ids=packed).logits
            logits.sum().backward()
        results.append(logits)
        if not waits:
            assert waiting.found == []
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_a_captured_or_traced_call_reads_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(**_: Any) -> None:
        raise AssertionError("transformers makes a mask of all pairs where it is traced")

    monkeypatch.setattr(masks, "create_causal_mask", asked)
    monkeypatch.setattr(masks, "create_sliding_window_causal_mask", asked)
    model = small_model("sliding").train()
    window = model.config.sliding_window
    assert window is not None
    model(IDS[:, :window], use_cache=False)
    with pytest.raises(AssertionError, match="all pairs"):
        model(IDS[:, : window + 1], use_cache=False)
