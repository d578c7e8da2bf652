"""Fused projections and stacked experts: views of a checkpoint's tensors, one way and the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from wuneng.convert.families import FAMILIES
from wuneng.convert.fused import JoinedTensors, SplitTensors, joined_shapes
from wuneng.convert.stacked import ExpertsApart, ExpertsTogether, apart_shapes
from wuneng.convert.tensor_files import TensorInfo
from wuneng.errors import ModelError

FUSED = FAMILIES["phi3"].fused
LAYER = "model.layers.0."
ROWS = {"q": 6, "k": 2, "v": 2}


class Held:
    """Tensors in memory as a checkpoint's."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values
        self.tensors = {
            name: TensorInfo(tuple(x.shape), x.dtype, Path("model.safetensors"))
            for name, x in values.items()
        }

    def read(self, name: str) -> Tensor:
        return self.values[name]


def _fused() -> Held:
    names = {"self_attn.qkv_proj": 10, "mlp.gate_up_proj": 8, "mlp.down_proj": 4}
    return Held({f"{LAYER}{name}.weight": torch.randn(rows, 4) for name, rows in names.items()})


def _rows_of(name: str) -> tuple[int, ...]:
    letter = name.removeprefix(f"{LAYER}self_attn.")[0]
    return (ROWS.get(letter, 4), 4)


def test_fused_projections_go_apart_and_together() -> None:
    held = _fused()
    split = SplitTensors(held, FUSED, _rows_of)
    assert {name.removeprefix(LAYER) for name in split.tensors} == {
        *(f"self_attn.{letter}_proj.weight" for letter in "qkv"),
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    whole = held.values[f"{LAYER}self_attn.qkv_proj.weight"]
    assert torch.equal(split.read(f"{LAYER}self_attn.k_proj.weight"), whole[6:8])
    joined = JoinedTensors(split, FUSED)
    assert {n: info.shape for n, info in joined.tensors.items()} == joined_shapes(
        {n: info.shape for n, info in split.tensors.items()}, FUSED
    )
    assert joined.tensors.keys() == held.tensors.keys()
    assert all(torch.equal(joined.read(name), held.read(name)) for name in held.tensors)


def test_a_fused_projection_of_another_height_is_named() -> None:
    with pytest.raises(ModelError, match=r"qkv_proj.weight has shape \[10, 4\]; .* makes it \[12"):
        SplitTensors(_fused(), FUSED, lambda name: (4, 4))


def _experts(count: int = 3) -> dict[str, Tensor]:
    place = f"{LAYER}mlp.experts"
    return {
        f"{place}.{e}.{part}_proj.weight": torch.randn(*((4, 5) if part == "down" else (5, 4)))
        for e in range(count)
        for part in ("gate", "up", "down")
    } | {f"{LAYER}mlp.gate.weight": torch.randn(count, 4)}


def test_experts_go_together_and_apart() -> None:
    held = Held(_experts())
    together = ExpertsTogether(held)
    assert {n.removeprefix(f"{LAYER}mlp."): i.shape for n, i in together.tensors.items()} == {
        "experts.gate_up_proj": (3, 10, 4),
        "experts.down_proj": (3, 4, 5),
        "gate.weight": (3, 4),
    }
    for name, info in together.tensors.items():
        assert together.read(name).shape == info.shape
    apart = ExpertsApart(together)
    assert {n: info.shape for n, info in apart.tensors.items()} == apart_shapes(
        {n: info.shape for n, info in together.tensors.items()}
    )
    assert apart.tensors.keys() == held.tensors.keys()
    assert all(torch.equal(apart.read(name), held.read(name)) for name in held.tensors)


def test_an_expert_that_is_not_whole_is_named() -> None:
    values, name = _experts(), f"{LAYER}mlp.experts.1.up_proj.weight"
    with pytest.raises(ModelError, match=r"experts\.1\.up_proj\.weight has shape \[9, 4\]"):
        ExpertsTogether(Held(values | {name: torch.zeros(9, 4)}))
    del values[name]
    with pytest.raises(ModelError, match=r"lacks .*experts\.1\.up_proj\.weight, which its other"):
        ExpertsTogether(Held(values))
