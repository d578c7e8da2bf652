"""The proof of the seam: a kind of state heads in one file, which nothing else knows of.

It is a plain decayed linear attention, S_t = decay S_{t-1} + v_t^T k_t, y_t = r_t S_t^T.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import initialization as init
from typer.testing import CliRunner

from tests.model.small import BASE, in_pieces
from wuneng import WuNengConfig, WuNengForCausalLM, kinds
from wuneng.kinds import kind_names, register
from wuneng.layers.attention import AttentionHeads
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.state.base import StateHeads
from wuneng.model import counting
from wuneng.model.parameter_groups import groups_of
from wuneng_cli.main import app


class ToyLinear(StateHeads):
    """One decay per head, neither gate nor norm."""

    settings = {"start": 2.0}  # noqa: RUF012 - as a researcher would write it
    groups = {"decay_logit": "double_lr"}  # noqa: RUF012

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.decay_logit = nn.Parameter(torch.empty(self.heads))
        self.add_token_shift()
        self.add_snapshots()

    def initialise(self, config: Any) -> None:
        init.constant_(self.decay_logit, self.setting("start"))
        super().initialise(config)

    @classmethod
    def recurrence_flops(cls, config: Any) -> float:
        return 5.0 * config.num_state_heads * config.state_head_dim**2

    def read(
        self, x: Tensor, attention: AttentionHeads | None, layout: SequenceLayout, slot: Any
    ) -> Tensor:
        k, v = self.key_value({"k": x, "v": x}, attention, layout)
        r, k, v = self.convolved(self.r_proj(x), k, v, layout, slot)
        r, k, v = (
            u.unflatten(-1, (self.heads, self.head_dim))
            for u in self.shifted(r, k, v, layout, slot)
        )
        w = nn.functional.logsigmoid(self.decay_logit)[:, None].expand_as(k)
        none = torch.zeros_like(k)
        return self.recur((r, w, k, v, none, none), x, layout, slot)


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """As ``@register("state", "toy_linear")`` over the class does, but for these tests alone."""
    register("state", "toy_linear")(ToyLinear)
    yield
    del kinds._REGISTERED["state"]["toy_linear"]


TOY = {"state_kind": "toy_linear", "state_options": {"start": 3.0}}


def test_the_kind_is_there() -> None:
    assert {"rwkv7", "toy_linear"} <= set(kind_names("state"))
    with pytest.raises(ValueError, match="no setting 'begin'; it takes start"):
        WuNengConfig(**(BASE | TOY | {"state_options": {"begin": 1}}))


def test_it_computes_decodes_and_is_counted() -> None:
    torch.manual_seed(0)
    config = WuNengConfig(**(BASE | TOY))
    model = WuNengForCausalLM(config).double().eval()
    heads = model.model.layers[0].state_heads
    assert type(heads) is ToyLinear
    assert heads.decay_logit.tolist() == [3.0, 3.0]
    ids = torch.randint(0, 61, (2, 20))
    with torch.no_grad():
        whole = model(ids).logits
    torch.testing.assert_close(in_pieces(model, ids, [11, 1, 1, 7]), whole, rtol=1e-9, atol=1e-10)
    assert counting.total_parameters(config) == sum(p.numel() for p in model.parameters())
    rwkv7 = counting.forward_flops_per_token(WuNengConfig(**BASE), 64)
    assert counting.forward_flops_per_token(config, 64) < rwkv7
    assert groups_of(model)["model.layers.0.state_heads.decay_logit"] == "double_lr"


def test_it_trains_resumes_evaluates_and_generates(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,\n"
        "        num_state_heads: 1, state_kind: toy_linear, state_options: {start: 1.0}}\n"
        "arms: [wuneng, mha, interleaved]\n"
        "data: {kind: synthetic, tasks: [{task: recall, pairs: 2}]}\n"
        "training: {steps: 2, sequence_length: 16, batch_size: 2}\n"
        "evaluation: {length_multiples: [1], examples: 4}\n"
        "device: cpu\n"
    )
    recipe.write_text(recipe.read_text().replace("num_hidden_layers: 1", "num_hidden_layers: 2"))
    run = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", str(recipe), "--out", str(run), "--json"])
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["arms"]) == {"wuneng", "mha", "interleaved"}
    saved = json.loads((run / "wuneng" / "model" / "config.json").read_text())
    assert (saved["state_kind"], saved["state_options"]) == ("toy_linear", {"start": 1.0})
    loaded = WuNengForCausalLM.from_pretrained(run / "wuneng" / "model")
    assert type(loaded.model.layers[0].state_heads) is ToyLinear
    zeroed = [
        "eval",
        str(run / "wuneng"),
        "--state",
        "zero",
        "--out",
        str(tmp_path / "e"),
        "--json",
    ]
    result = CliRunner().invoke(app, zeroed)
    assert result.exit_code == 0, result.output


def test_an_export_does_not_promise_what_it_cannot_carry(tmp_path: Path) -> None:
    """Its code is not this package's, and would be missing where the export is loaded."""
    WuNengForCausalLM(WuNengConfig(**(BASE | TOY))).save_pretrained(tmp_path / "model")
    asked = ["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "transformers"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2, result.output
    assert "state kind toy_linear is not part of wuneng" in result.stderr
    assert not (tmp_path / "out").exists()
