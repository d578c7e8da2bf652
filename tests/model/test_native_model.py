"""Whole models through the C kernels against the token loop in torch, with heads of 16."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.small import VARIANTS, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengForCausalLM
from wuneng.model.call_arguments import cache_of
from wuneng.ops import native
from wuneng.ops.state_head import native as operator

pytestmark = pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")
#: Twice the width of the usual small models, so that heads have a size that the kernels take.
WIDE: dict[str, Any] = {"hidden_size": 64}
VARIANTS_WITH_STATE = [
    name for name in VARIANTS if not name.startswith("mha") and "size" not in name
]


def _model(variant: str) -> WuNengForCausalLM:
    settings = VARIANTS[variant]
    sizes = {"head_dim": 16} if "head_dim" in settings else {}
    sizes |= {"state_head_dim": 16} if "state_head_dim" in settings else {}
    return small_model(variant, **WIDE, **sizes)


def _results(model: WuNengForCausalLM, ids: Tensor, **arguments: Any) -> dict[str, Tensor]:
    """Logits, and the gradient of every parameter by name."""
    model.zero_grad()
    logits = model(ids, use_cache=False, **arguments).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


@pytest.mark.parametrize("variant", VARIANTS_WITH_STATE)
def test_logits_and_gradients(variant: str) -> None:
    model = _model(variant)
    ids = torch.randint(0, 61, (2, 40))
    documents = torch.arange(40).expand(2, 40) // 17
    arguments: dict[str, Any] = {} if "state" in variant else {"document_ids": documents}
    with mock.patch.object(operator, "_kernels", side_effect=operator._kernels) as kernels:
        found = _results(model, ids, **arguments)
    assert bool(kernels.called) == ("snapshots" not in VARIANTS[variant])
    plain = plainly(model, lambda m: _results(m, ids, **arguments))
    assert_as_exact(found, *plain, floor=CHUNKED_FLOOR)


@pytest.mark.parametrize("variant", VARIANTS_WITH_STATE)
def test_left_padded_generation(variant: str) -> None:
    """Prompt with pads, then one token at a time: C kernels for state, projections and mixing."""
    model = _model(variant)
    ids = torch.randint(1, 61, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0

    def decode(model: WuNengForCausalLM) -> Tensor:
        with torch.no_grad():
            out = model(ids, attention_mask=mask, use_cache=True)
            seen, logits = mask, [out.logits[:, -1]]
            for token in torch.arange(1, 13).view(6, 1, 2).transpose(1, 2):
                seen = F.pad(seen, (0, 1), value=1)
                cache = cache_of(out)
                out = model(token, attention_mask=seen, past_key_values=cache, use_cache=True)
                logits.append(out.logits[:, -1])
        return torch.stack(logits)

    assert_as_exact(decode(model), *plainly(model, decode), floor=CHUNKED_FLOOR)
