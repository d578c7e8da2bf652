"""RWKV-7 checkpoints become models without attention; and donate starting points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.convert.rwkv_files import random_x070, save_fla
from tests.convert.sources import assert_same_bits, save_source, tensors_of
from tests.model.small import plainly
from tests.precision import assert_as_exact
from wuneng.convert import GraftSettings, Request, convert
from wuneng.errors import InputError, ModelError


def _expected(folder: Path) -> torch.Tensor:
    return torch.from_numpy(np.fromfile(folder / "expected-logits-7v0-834K.bin", dtype="<f4"))


def _assert_expected(directory: Path, folder: Path) -> None:
    """Our logits and the published ones, of another program in float32, lose equally much."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()

    def last_logits(model: Any) -> torch.Tensor:
        found: torch.Tensor = model(torch.tensor([list(b'"in')])).logits[0, -1]
        return found

    with torch.no_grad():
        found, (_, exact) = last_logits(model), plainly(model, last_logits)
    published = _expected(folder)
    assert_as_exact(found, published, exact)
    assert_as_exact(published, found, exact)


def test_trained_model_from_both_layouts(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "models" / "rwkv7_tiny_834k"
    file = folder / "rwkv7-tiny-834k.pth"
    outcome = convert(Request(str(file), tmp_path / "pth"))
    assert outcome.checks
    assert all(check.passed for check in outcome.checks)
    assert outcome.record["tensors"] == {"kept": 399, "new": 12, "dropped": {}}
    _assert_expected(tmp_path / "pth", folder)
    fla = save_fla(tmp_path / "source", torch.load(file, weights_only=True))
    convert(Request(str(fla), tmp_path / "fla"))
    _assert_expected(tmp_path / "fla", folder)
    assert_same_bits(tensors_of(tmp_path / "pth"), tensors_of(tmp_path / "fla"))


def test_unused_tensors_of_the_first_layer_are_dropped_and_heads_may_be_small(
    tmp_path: Path,
) -> None:
    tensors = random_x070(heads=3, size=8)
    torch.save(tensors, tmp_path / "x.pth")
    outcome = convert(Request(str(tmp_path / "x.pth"), tmp_path / "out"))
    # The recurrence's own loss in float32 was measured: not the tenfold of the tolerance.
    assert all(check.passed and (check.tolerance or 0) < 1e-4 for check in outcome.checks)
    dropped = outcome.record["tensors"]["dropped"]
    assert set(dropped) == {f"blocks.0.att.v{n}" for n in "012"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    config = model.config
    assert (config.num_attention_heads, config.num_state_heads, config.state_head_dim) == (0, 3, 8)
    assert (config.decay_rank, config.rate_rank, config.value_rank, config.gate_rank) == (
        4,
        5,
        6,
        7,
    )


def test_half_precision_weights_stay_as_stored(tmp_path: Path) -> None:
    tensors = {name: t.to(torch.bfloat16) for name, t in random_x070().items()}
    torch.save(tensors, tmp_path / "x.pth")
    outcome = convert(Request(str(tmp_path / "x.pth"), tmp_path / "out"))
    assert outcome.record["dtype"] == "bfloat16"
    assert [check.dtype for check in outcome.checks][:1] == ["float32"]
    assert torch.equal(
        tensors_of(tmp_path / "out")["model.layers.1.state_heads.w1"], tensors["blocks.1.att.w1"]
    )


def _with(changes: dict[str, Any]) -> dict[str, Any]:
    tensors = random_x070() | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.att.time_decay": torch.zeros(3)}, "RWKV-4 to RWKV-6"),
        ({"blocks.1.ffn.mine.weight": torch.zeros(3)}, "mine.weight is no tensor of RWKV-7"),
        ({"blocks.1.ffn.s_emb.weight": torch.zeros(3)}, "RWKV-7a, with DeepEmbed"),
        ({"head.weight": None}, "no output projection"),
        ({"blocks.1.att.k_k": None}, "lacks 1 tensors.*layers.1.state_heads.k_k"),
        ({"blocks.1.att.w2": torch.zeros(4, 17)}, "w2 has shape"),
        ({"blocks.0.att.r_k": torch.zeros(3, 8)}, "3 heads of 8"),
        ({"blocks.1.att.k_k": torch.full((16,), float("nan"))}, "k_k holds 16 values that are NaN"),
        ({"emb.weight": torch.zeros(5, 4, 3)}, "emb.weight has shape"),
        ({"emb.weight": torch.zeros(61, 16, dtype=torch.int64)}, "expected floating"),
    ],
)
def test_what_is_not_rwkv7(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(_with(changes), tmp_path / "x.pth")
    with pytest.raises(ModelError, match=message):
        convert(Request(str(tmp_path / "x.pth"), tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn": {"layers": [1], "num_heads": 2}}, "attn is"),
        ({"norm_bias": False}, "norm_bias is False"),
        ({"norm_eps": "small"}, "norm_eps must be"),
    ],
)
def test_fla_variants_that_compute_something_else(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = save_fla(tmp_path / "source", random_x070(), **changes)
    with pytest.raises(ModelError, match=message):
        convert(Request(str(source), tmp_path / "out"))


def test_a_donor_is_a_warm_start_that_changes_no_logit(tmp_path: Path) -> None:
    donor = random_x070(layers=3, heads=4, size=12)
    torch.save(donor, tmp_path / "donor.pth")
    source = save_source(tmp_path / "source", num_hidden_layers=2)  # D = 48 as the donor's
    said: list[str] = []
    outcome = convert(
        Request(
            str(source),
            tmp_path / "out",
            graft=GraftSettings(state_heads=2, key_source="own"),
            state_from=str(tmp_path / "donor.pth"),
        ),
        said.append,
    )
    assert any("a warm start, not an equivalence" in line for line in said)
    assert outcome.record["max_abs_logit_difference"] == 0.0
    record = outcome.record["state_from"]
    assert record["equivalence"] is False
    assert record["layers"] == {"0": 0, "1": 2}
    out = tensors_of(tmp_path / "out")
    heads = "model.layers.1.state_heads"
    assert f"{heads}.w1" in record["tensors"]
    theirs = "blocks.2.att"
    assert torch.equal(out[f"{heads}.r_proj.weight"], donor[f"{theirs}.receptance.weight"][:24])
    assert torch.equal(out[f"{heads}.k_proj.weight"], donor[f"{theirs}.key.weight"][:24])
    assert torch.equal(out[f"{heads}.w0"], donor[f"{theirs}.w0"].flatten()[:24])
    assert torch.equal(out[f"{heads}.w1"][:, :4], donor[f"{theirs}.w1"])
    assert not out[f"{heads}.w1"][:, 4:].any()
    assert torch.equal(out[f"{heads}.w2"][:4], donor[f"{theirs}.w2"][:, :24])
    assert torch.equal(out[f"{heads}.r_k"], donor[f"{theirs}.r_k"][:2])
    assert torch.equal(out[f"{heads}.g_norm.weight"].flatten(), donor[f"{theirs}.ln_x.weight"][:24])


def test_donors_that_do_not_fit(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    torch.save(random_x070(heads=2, size=8), tmp_path / "small.pth")
    torch.save(random_x070(heads=1, size=12), tmp_path / "one.pth")

    def request(donor: Path) -> Request:
        return Request(str(source), tmp_path / "out", state_from=str(donor))

    with pytest.raises(InputError, match="--state-head-dim 8 --cross-head none"):
        convert(request(tmp_path / "small.pth"))
    with pytest.raises(InputError, match="1 heads in a layer, --state-heads asks for 2"):
        convert(request(tmp_path / "one.pth"))
    with pytest.raises(ModelError, match="expected an RWKV-7, got a llama"):
        convert(request(source))
