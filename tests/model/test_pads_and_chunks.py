"""Pads wherever they are contribute nothing; a prompt in pieces is the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.exactness import assert_as_near, exact
from tests.model.small import small_model

VARIANTS = ["default", "snapshots", "pure-rwkv7", "mha", "mha-shift", "pre-shift", "sliding"]
LENGTH = 40
#: Where the pads are: at the start, the end, inside, and at every place at once.
PADS = {
    "left": [*range(9)],
    "right": [*range(31, LENGTH)],
    "interior": [7, 8, 15, 16, 17, 18, 30],
    "everywhere": [0, 1, 5, 11, 12, 13, 22, 33, 38, 39],
}
GREEDY: dict[str, Any] = {
    "max_new_tokens": 12,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
    "output_logits": True,
    "return_dict_in_generate": True,
}


def padded(pads: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [2, T] whose second row has pads, its mask, and the second row without them."""
    torch.manual_seed(3)
    ids = torch.randint(1, 61, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, pads] = 0
    return ids, mask, ids[1:][:, mask[1].bool()]


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(
    ("variant", "where"),
    # A window counts places, and pads inside take some up.
    [(v, w) for v in VARIANTS for w in PADS if v != "sliding" or w in ("left", "right")],
)
def test_pads_contribute_nothing(variant: str, where: str, use_cache: bool) -> None:
    model = small_model(variant)
    ids, mask, alone = padded(PADS[where])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=use_cache)
        plain = model(alone, use_cache=False).logits[0]
    assert_as_near(out.logits[1, mask[1].bool()], plain, exact(model, alone)[0])


@pytest.mark.parametrize("where", ["left", "interior"])
@pytest.mark.parametrize("variant", ["default", "snapshots", "pure-rwkv7", "mha-shift"])
def test_decoding_goes_on_as_if_there_had_been_no_pads(variant: str, where: str) -> None:
    model = small_model(variant)
    ids, mask, alone = padded(PADS[where])
    together = model.generate(ids, attention_mask=mask, **GREEDY)
    single = model.generate(alone, attention_mask=torch.ones_like(alone), **GREEDY)
    written = single.sequences[:, alone.shape[1] :]
    assert torch.equal(together.sequences[1:, LENGTH:], written)
    truth = exact(model, single.sequences[:, :-1])[0, alone.shape[1] - 1 :]
    logits = [torch.stack([step[row] for step in out.logits]) for out, row in
              ((together, 1), (single, 0))]  # fmt: skip
    assert_as_near(logits[0], logits[1], truth)


@pytest.mark.parametrize("size", [1, 7, 16, 39])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prompt_in_chunks(variant: str, size: int) -> None:
    """``generate(prefill_chunk_size=)``: also chunks that end within a snapshot's interval."""
    model = small_model(variant)
    ids, mask, _ = padded(PADS["left"])
    whole = model.generate(ids, attention_mask=mask, **GREEDY)
    pieces = model.generate(ids, attention_mask=mask, prefill_chunk_size=size, **GREEDY)
    assert torch.equal(pieces.sequences, whole.sequences)
    truth = exact(model, whole.sequences[:1, :-1])[0, LENGTH - 1 :]
    logits = [torch.stack([step[0] for step in out.logits]) for out in (pieces, whole)]
    assert_as_near(logits[0], logits[1], truth)
