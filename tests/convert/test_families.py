"""A checkpoint family is one record: what it says decides how checkpoints are read and written."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.convert.sources import save_source
from wuneng.bench.architectures import choose, derive
from wuneng.bench.request import make_request
from wuneng.convert import Request, convert
from wuneng.convert.architectures import as_stock, does_not_fit, plain_fields
from wuneng.convert.families import FAMILIES, Family, family_of
from wuneng.convert.source import locate
from wuneng.errors import InputError, ModelError
from wuneng.evaluate import scoring
from wuneng.model import WuNengConfig

TRANSFORMERS = [name for name, family in FAMILIES.items() if family.role == "attention"]
PLAIN: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_state_heads": 0,
    "cross_head": "none",
}
SEED_OSS = Family(
    "seed_oss",
    "Seed-OSS",
    "attention",
    biases={
        "attention_bias": "attention_bias",
        "attention_output_bias": "attention_out_bias",
        "mlp_bias": "mlp_bias",
    },
)


@pytest.fixture
def seed_oss(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more family, by its record alone."""
    monkeypatch.setitem(FAMILIES, SEED_OSS.model_type, SEED_OSS)


def test_a_family_is_added_by_its_record(seed_oss: None, tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", "seed_oss", head_dim=12, attention_out_bias=True,
                         attention_bias=False, residual_dropout=0.0)  # fmt: skip
    outcome = convert(Request(str(source), tmp_path / "wuneng"))
    assert outcome.record["what"] == "seed_oss to wuneng"
    assert outcome.record["max_abs_logit_difference"] == 0.0
    convert(Request(str(tmp_path / "wuneng"), tmp_path / "back", to="transformers", stock=True))
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).eval() for path in (source, tmp_path / "back")
    )
    assert type(after) is type(before)
    assert after.config.attention_out_bias
    assert not after.config.attention_bias
    ids = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(before(ids).logits, after(ids).logits)


def test_without_its_record_it_is_refused(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", "seed_oss", head_dim=12)
    with pytest.raises(ModelError, match="model_type 'seed_oss' cannot be converted") as caught:
        convert(Request(str(source), tmp_path / "out"))
    for family in FAMILIES.values():
        assert f"{family.title} ({family.model_type})" in str(caught.value)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_record_is_transformers_own_layer(name: str) -> None:
    """Biases, q/k norm and window of a model that transformers builds from what we write."""
    family = FAMILIES[name]
    fixed = {ours: value for ours, value in family.biases.items() if isinstance(value, bool)}
    for on in (False, True):
        asked = {ours: fixed.get(ours, on) for ours in family.biases}
        wiring = {"qk_norm": family.qk_norm, **family.wiring}
        if family.has_experts:
            wiring |= {"num_experts": 3, "moe_intermediate_size": 8, "moe_layers": [1]}
        config = WuNengConfig(**PLAIN, **asked, **wiring, sliding_window=7)
        if family.window == "none":
            assert does_not_fit(config, family) == "has no sliding window"
            config.sliding_window = None
        assert does_not_fit(config, family) == ""
        model = AutoModelForCausalLM.from_config(as_stock(config, family))
        projection = next(p for n, p in model.named_modules() if n.endswith(("q_proj", "qkv_proj")))
        attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
        found = {
            "attention_bias": projection.bias is not None,
            "attention_output_bias": attention.o_proj.bias is not None,
            "mlp_bias": mlp.down_proj.bias is not None,
        }
        assert found == asked
        assert hasattr(attention, "q_norm") == family.qk_norm
        assert getattr(attention, "sliding_window", None) == config.sliding_window or (
            family.window == "all" and model.config.sliding_window == 7
        )
        again = plain_fields(model.config.to_dict(), family, "config.json")
        for field in (*asked, "qk_norm", "sliding_window", "sliding_window_layers"):
            assert again[field] == getattr(config, field), field


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("llama", {"qk_norm": True}, "q/k norm"),
        ("qwen3", {}, "has q/k norm"),
        ("llama", {"attention_bias": True}, "has biases on all four attention projections or on "),
        (
            "qwen2",
            {"attention_bias": True, "attention_output_bias": True},
            "has biases on q, k",
        ),
        ("mistral", {"attention_bias": True}, "has no attention bias"),
        ("mistral", {"mlp_bias": True}, "has no feed-forward bias"),
        ("llama", {"sliding_window": 4}, "has no sliding window"),
        ("mistral", {"sliding_window": 4, "sliding_window_layers": [1]}, "has the sliding window "),
        ("llama", {"num_attention_heads": 5, "head_dim": 8}, "needs hidden_size to be a multiple"),
        ("llama", {"ffn": "mlp"}, "ffn is 'mlp', stock models have 'swiglu'"),
    ],
)
def test_what_does_not_fit_is_said(name: str, changes: dict[str, Any], reason: str) -> None:
    config = WuNengConfig(**PLAIN | changes)
    assert does_not_fit(config, FAMILIES[name]).startswith(reason)


def test_every_spelling_is_known() -> None:
    assert family_of("rwkv7_fla") is FAMILIES["rwkv7"]
    assert family_of("rwkv6") is None
    spelled = [s for f in FAMILIES.values() for s in (f.model_type, *f.spellings)]
    assert len(set(spelled)) == len(spelled)


def test_what_a_source_is_follows_from_its_family(tmp_path: Path) -> None:
    llama = locate(str(save_source(tmp_path / "llama")))
    assert (llama.kind, llama.is_wuneng, llama.is_rwkv7, llama.is_distributed) == (
        *("llama", False, False, False),
    )
    assert replace(llama, family=FAMILIES["rwkv7"]).is_rwkv7
    assert replace(llama, family=FAMILIES["wuneng"]).is_wuneng
    assert replace(llama, family=None).kind == "dcp"


def _like_llama(family: Family) -> dict[str, Any]:
    """What sets families apart whose layers are otherwise a Llama's."""
    names = ("qk_norm", "biases", "window", "even_width")
    return {name: getattr(family, name) for name in names}


def test_logits_are_left_out_for_families_like_llama_when_scoring() -> None:
    """Scoring keeps a list of its own: it is below conversion. Stock models of the other families
    are called whole, because some of them do more to their logits than multiply."""
    ours = {
        name
        for name, family in FAMILIES.items()
        if family.role == "wuneng"
        or family == Family(family.model_type, family.title, "attention", **_like_llama(family))
    }
    assert set(scoring._MODEL_TYPES) == ours


def test_no_comparison_of_model_types_outside_the_records(repository: Path) -> None:
    """``kind == "llama"`` in any of the rooms would be a second place that knows families."""
    types = "|".join(name for name in FAMILIES if name != "wuneng")
    told_apart = re.compile(rf'\b(kind|model_type|name)\b *(==|!=|in|not in) *\(?"({types})"')
    assert told_apart.search('if located.kind == "llama":')
    wrong = [
        f"{path.name}: {line.strip()}"
        for path in (repository / "wuneng" / "convert").glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if told_apart.search(line)
    ]
    assert wrong == []


def test_bench_compares_with_a_llama_that_computes_the_same() -> None:
    config = choose(make_request(seq_len="16", against="none")).architectures[0].config
    assert derive(config, "llama").num_state_heads == 0
    config.qk_norm = True
    with pytest.raises(InputError, match=r"no Llama has this model's wiring \(q/k norm\)"):
        derive(config, "llama")
