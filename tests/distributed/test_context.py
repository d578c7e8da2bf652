"""``parallel.context``: what a recipe may say, and what each process is given of a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.distributed.cases import packed_batch, planned
from wuneng import kinds
from wuneng.distributed.degrees import Degrees
from wuneng.distributed.processes import Processes
from wuneng.errors import InputError
from wuneng.layers.state.rwkv7 import RWKV7
from wuneng.recipe import Parallel
from wuneng.train.plan import ArmPlan
from wuneng.train.shares import piece_of_rows
from wuneng.train.spread import arm_degrees


class Four(Processes):
    """Four processes, as far as their number is asked for."""

    size = host_size = 4


def _degrees(arm: ArmPlan, **fields: Any) -> Degrees:
    return arm_degrees(arm, Parallel(**fields), Four(), torch.device("cpu"))


def test_processes_that_share_a_sequence_hold_weights_as_others_do() -> None:
    arm = planned().arms["wuneng"]
    degrees = _degrees(arm, context=2)
    assert degrees == Degrees(replicate=2, context=2)
    assert degrees.of_weights == Degrees(replicate=4)
    assert str(degrees) == "DDP, replicate 2 x shard 1 x context 2"
    cut = _degrees(arm, context=2, shard=2)
    assert cut.of_weights == Degrees(shard=4)
    assert str(cut) == "FSDP, replicate 1 x shard 2 x context 2"


def test_pieces_put_together_are_the_batch() -> None:
    batch = packed_batch(1, 3, 50)
    pieces = [piece_of_rows(batch, number, 5) for number in range(5)]
    for name in ("input_ids", "labels", "document_ids"):
        whole = torch.cat([getattr(piece, name) for piece in pieces], dim=1)
        assert torch.equal(whole, getattr(batch, name))
    assert [piece.input_ids.shape[1] for piece in pieces] == [5, 5, 5, 5, 4]
    assert piece_of_rows(batch, 0, 1) is batch


@pytest.mark.parametrize("context", [0, "auto", 1.5, True])
def test_what_context_may_be(context: Any) -> None:
    with pytest.raises(ValueError, match="a number of processes from 1"):
        Parallel(context=context)


class Foreign(RWKV7):
    """State heads that do not say what they can."""


def test_an_arm_that_cannot_be_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = planned().arms["wuneng"]
    short = replace(arm, training=arm.training.model_copy(update={"sequence_length": 3}))
    with pytest.raises(InputError, match=r"training\.sequence_length: .* 4 processes .* got 3"):
        _degrees(short, context=4)
    compiled = replace(arm, training=arm.training.model_copy(update={"compile": True}))
    with pytest.raises(InputError, match=r"parallel\.context 4: set training\.compile to false"):
        _degrees(compiled, context=4)
    monkeypatch.setitem(kinds._REGISTERED["state"], "foreign", Foreign)
    foreign = replace(arm, config=arm.config.changed({"state_kind": "foreign"}))
    with pytest.raises(InputError, match="state_kind 'foreign'"):
        _degrees(foreign, context=4)
    blocks = replace(arm, training=arm.training.model_copy(update={"optimizer": "adamw-8bit"}))
    assert _degrees(blocks, context=2) == Degrees(replicate=2, context=2)
    with pytest.raises(InputError, match=r"adamw-8bit is not for .*parallel\.shard 2.*adamw-bf16"):
        _degrees(blocks, shard=2)
    taught: Any = replace(arm, teacher=object())
    with pytest.raises(InputError, match="a teacher"):
        _degrees(taught, context=4)
