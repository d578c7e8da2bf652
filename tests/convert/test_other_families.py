"""Families whose layers are wired otherwise than a Llama's: same logits, the same files back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.convert.sources import assert_same_bits, save_source, tensors_of
from wuneng.convert import GraftSettings, Request, convert
from wuneng.convert.architectures import does_not_fit
from wuneng.convert.families import FAMILIES
from wuneng.evaluate.scoring import CallLimits, score_answers
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.model.head_loss import summed_cross_entropy, token_scores

GRANITE = {
    "kind": "granite",
    "embedding_multiplier": 3.3,
    "attention_multiplier": 0.11,
    "residual_multiplier": 0.22,
    "logits_scaling": 1.7,
}
#: Of odd shapes; every field that only this family has is away from what changes nothing.
SOURCES: dict[str, dict[str, Any]] = {
    "granite-three-heads": GRANITE | {"num_attention_heads": 3, "num_key_value_heads": 1},
    "granite-biases-head14": GRANITE
    | {"head_dim": 14, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
}
#: What transformers writes of its own accord, or of a field that it does not declare.
NOT_COMPARED = {"head_dim", "_name_or_path", "transformers_version", "use_sliding_window"}


def _convert(name: str, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A source in bfloat16 (so that float32 is compared as well), and the record of its
    conversion to ``tmp_path / "grafted"``."""
    source = save_source(tmp_path / "source", **SOURCES[name], dtype=torch.bfloat16)
    return source, convert(Request(str(source), tmp_path / "grafted")).record


@pytest.mark.parametrize("name", SOURCES)
def test_the_logits_are_the_sources_and_the_way_back_is_its_files(
    name: str, tmp_path: Path
) -> None:
    source, record = _convert(name, tmp_path)
    ways = {(check["name"], check["dtype"]) for check in record["checks"]}
    asked = ("full forward", "left padding", "cache, token by token", "generate()")
    assert ways == {(way, dtype) for way in asked for dtype in ("float32", "bfloat16")}
    assert record["argmax_agreement"] == 1.0
    outcome = convert(Request(str(tmp_path / "grafted"), tmp_path / "back", to="transformers"))
    assert outcome.record["what"] == f"wuneng to stock {SOURCES[name]['kind']}"
    assert_same_bits(tensors_of(source), tensors_of(tmp_path / "back"))
    before, after = (AutoConfig.from_pretrained(p).to_dict() for p in (source, tmp_path / "back"))
    for field in {*before, *after} - NOT_COMPARED:
        assert before.get(field) == after.get(field), field


@pytest.mark.parametrize("name", SOURCES)
def test_every_field_of_the_family_reaches_the_model(name: str, tmp_path: Path) -> None:
    """Left at what changes nothing, each of them would give other logits."""
    _convert(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "grafted", dtype=torch.float32).eval()
    assert type(model) is WuNengForCausalLM
    family = FAMILIES[SOURCES[name]["kind"]]
    ids = torch.arange(40)[None] * 7 % 97
    with torch.no_grad():
        right = model(ids).logits
        for field in {*family.fields, *family.wiring}:
            config = WuNengConfig.from_dict(model.config.to_dict())
            setattr(config, field, getattr(WuNengConfig, field))
            other = WuNengForCausalLM(config).eval()
            found = other.load_state_dict(model.state_dict(), strict=False)
            same_parts = not (found.missing_keys or found.unexpected_keys)
            assert not same_parts or not torch.allclose(other(ids).logits, right), field


@pytest.mark.parametrize("name", SOURCES)
def test_what_reads_the_head_sees_the_models_own_logits(name: str, tmp_path: Path) -> None:
    """Losses and scores that never make the logits whole, beside those of the source's class."""
    source, _ = _convert(name, tmp_path)
    stock, ours = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (source, tmp_path / "grafted")
    )
    ids = torch.arange(46).view(2, 23) * 5 % 97
    labels = torch.cat([ids[:, 1:], ids.new_full((2, 1), -100)], dim=1)
    with torch.no_grad():
        wanted = stock(ids, labels=ids).loss
        assert torch.allclose(ours(ids, labels=ids).loss, wanted, rtol=1e-5)
        for whole_bytes in (0, 1 << 30):
            total = ours(ids, head_loss=summed_cross_entropy(labels, whole_bytes)).loss
            assert torch.allclose(total / (labels >= 0).sum(), wanted, rtol=1e-5)
        nats = ours(ids, head_loss=token_scores(labels)).loss[0]
        assert torch.allclose(nats.sum() / (labels >= 0).sum(), wanted, rtol=1e-5)
        logs = stock(ids[:1]).logits[0].log_softmax(-1)
    limits = CallLimits.on(torch.device("cpu"), None)
    rows = ids[0].tolist()
    (score, _), _ = score_answers(
        ours, [(rows[:20], rows[20:]), (rows[:9], rows[9:11])], 40, limits
    )
    assert score == pytest.approx(sum(float(logs[t, rows[t + 1]]) for t in (19, 20, 21)), rel=1e-5)


def test_what_fits_no_other_family_is_said() -> None:
    plain = {"num_state_heads": 0, "cross_head": "none"}
    config = WuNengConfig(**plain, residual_multiplier=0.5)
    reason = "residual_multiplier is 0.5, a Llama has 1.0"
    assert does_not_fit(config, FAMILIES["llama"]) == reason
    assert does_not_fit(config, FAMILIES["granite"]) == ""


def test_a_silent_branch_of_another_kind_changes_nothing_either(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", **GRANITE)
    graft = GraftSettings(state_heads=2, state_kind="gated_delta", cross_head="none")
    record = convert(Request(str(source), tmp_path / "out", graft=graft)).record
    assert record["max_abs_logit_difference"] == 0.0
