"""What ``benchmarks.kept_for_backward`` counts is all that a step keeps, once, by its part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.figures import table
from benchmarks.kept_for_backward import Kept, measured
from benchmarks.training_step import MODEL
from wuneng.bench.architectures import choose
from wuneng.bench.models import ModelStore, train_case
from wuneng.bench.request import BenchRequest
from wuneng.model.time_by_part import REST
from wuneng.records import write_json


class _Two(nn.Module):
    """Of modules whose names are those of parts."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.lm_head = nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.mlp(x).exp()).sum()


def test_a_memory_counts_once_for_the_part_that_saved_it_first() -> None:
    model, x = _Two(), torch.randn(7, 3)
    with Kept(model) as kept:
        loss = model(x)
    # x for one product; the powers, which are their own gradient and the other product's input.
    assert kept.bytes() == {REST: 7 * 5 * 4, "feed-forward": 7 * 3 * 4}
    loss.backward()
    counted = dict(kept.bytes())
    model(x)
    assert kept.bytes() == counted, "nothing watches afterwards"


@pytest.mark.parametrize("arm", ["wuneng", "mha"])
def test_watching_the_parts_changes_nothing_that_is_kept(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = BenchRequest(model=MODEL, seq_lens=(16,), against=("mha",))
    chosen = next(a for a in choose(request).architectures if a.arm == arm)
    store = ModelStore(torch.device("cpu"), torch.float32, "fp32")
    step = train_case(store, chosen, 1, 16).prepare().call
    own = {p.untyped_storage().data_ptr() for p in store.trainee(chosen).model.parameters()}
    plain = {}

    def saved(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in {0, *own}:
            plain[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(saved, lambda tensor: tensor):
        step(0)
    record = measured(1, 16, ("mha",))
    found = record["arms"][arm]
    assert sum(found.values()) == sum(x.nbytes() for x in plain.values())
    assert ("state heads" in found) == ("middle heads" in found) == (arm == "wuneng")
    assert {"attention", "feed-forward", "norms and residuals"} <= set(found)
    write_json(tmp_path / "some.json", record)
    monkeypatch.setattr("benchmarks.figures.HERE", tmp_path)
    lines = table("some.json", "kept").splitlines()
    assert lines[0] == "| MiB, by part | wuneng | mha |"
    assert lines[-1].endswith("(1.00 of mha) |")
    assert any(line.startswith("| state heads |") and line.endswith(" |  |") for line in lines)
