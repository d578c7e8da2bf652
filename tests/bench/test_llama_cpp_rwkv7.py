"""RWKV-7 in llama.cpp as an arm: the file that is written for it, and what is asked of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench import fake_llama_cpp
from tests.bench.peer_logits import assert_as_its_twin
from tests.bench.records import record_of, tiny_request
from tests.bench.rwkv7_from_gguf import read_rwkv7_gguf, tensors_of
from tests.precision import relative_error
from wuneng.bench import architectures
from wuneng.bench.architectures import choose
from wuneng.bench.engine import Unsupported
from wuneng.bench.gguf_rwkv7 import write_rwkv7_gguf
from wuneng.bench.llama_cpp_rwkv7 import llama_cpp_rwkv7_config
from wuneng.bench.record import Row, rows_of
from wuneng.errors import InputError
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.ops import using

pytest.importorskip("gguf")

ARM = "llama.cpp-rwkv7"
CASES = {("prefill", "first token"), ("decode", "next token"), ("train", "step")}


@pytest.fixture(autouse=True)
def _heads_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp computes no smaller ones."""
    heads = {"num_attention_heads": 2, "num_state_heads": 1, "hidden_size": 128}
    changed = {**architectures.DEFAULT_MODEL, **heads, "num_hidden_layers": 2}
    monkeypatch.setattr(architectures, "DEFAULT_MODEL", changed)


def rwkv7(dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """Two heads, ranks that all differ, every number drawn; as ``dtype`` rounds them."""
    base = WuNengConfig(
        vocab_size=97, hidden_size=128, num_hidden_layers=3, num_attention_heads=2, head_dim=64
    )
    sizes = {
        "intermediate_size": 200,
        "decay_rank": 8,
        "rate_rank": 16,
        "value_rank": 24,
        "gate_rank": 40,
        "tie_word_embeddings": False,
    }
    model = WuNengForCausalLM(llama_cpp_rwkv7_config(base, ARM).changed({**sizes, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn_like(parameter).mul(0.2).to(dtype)
            parameter.copy_(torch.ones_like(drawn) if name.endswith("scale") else drawn)
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_file_is_the_model_that_was_written(
    tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    model = rwkv7(dtype, tie_word_embeddings=tied)
    write_rwkv7_gguf(model, tmp_path / "model.gguf", dtype)
    reference = read_rwkv7_gguf(tmp_path / "model.gguf", torch.float64)
    assert reference.config.rms_norm_eps == pytest.approx(model.config.rms_norm_eps)
    ids = torch.randint(97, (21,))
    with using("reference"), torch.no_grad():
        expected = model.double()(ids[None]).logits[0]
    assert relative_error(reference.logits(ids), expected) < 1e-9


def test_the_tensors_are_those_that_are_asked_for(tmp_path: Path) -> None:
    """Names and shapes as llama.cpp creates them (``rwkv7.cpp``), in torch's order."""
    write_rwkv7_gguf(rwkv7(), tmp_path / "model.gguf", torch.float32)
    width = (128,)
    wanted = {"token_embd.weight": (97, 128), "output.weight": (97, 128)}
    norms = ["token_embd_norm", "output_norm"]
    for layer in range(3):
        block = f"blk.{layer}."
        norms += [block + name for name in ("attn_norm", "attn_norm_2", "time_mix_ln")]
        vectors = ("w0", "a0", "v0", "k_k", "k_a", "r_k")
        wanted |= {f"{block}time_mix_{name}.weight": width for name in vectors}
        ranks = {"w": 8, "a": 16, "v": 24 if layer else 16, "g": 40}
        for letter, rank in ranks.items():
            wanted[f"{block}time_mix_{letter}1.weight"] = (rank, 128)
            wanted[f"{block}time_mix_{letter}2.weight"] = (128, rank)
        for name in ("receptance", "key", "value", "output"):
            wanted[f"{block}time_mix_{name}.weight"] = (128, 128)
        wanted[f"{block}time_mix_lerp_fused.weight"] = (6, 1, 1, 128)
        wanted[f"{block}channel_mix_lerp_k.weight"] = width
        wanted[f"{block}channel_mix_key.weight"] = (200, 128)
        wanted[f"{block}channel_mix_value.weight"] = (128, 200)
    wanted |= {f"{name}.{last}": width for name in norms for last in ("weight", "bias")}
    found = {n: tuple(t.shape) for n, t in tensors_of(tmp_path / "model.gguf").items()}
    assert found == wanted


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"snapshots": 2}, r"snapshots 2 \(expected 0\)"),
        ({"state_a_max": 2.0}, r"state_a_max 2\.0"),
        ({"state_norm_eps": 1e-5}, r"state_norm_eps 1e-05 \(expected 0\.00064\)"),
        ({"embedding_norm": False}, "embedding_norm False"),
        ({"ffn": "swiglu"}, r"ffn 'swiglu' \(expected 'rwkv7'\)"),
        ({"norm": "rmsnorm"}, "norm 'rmsnorm'"),
        ({"state_output_gate": False}, "state_output_gate False"),
        ({"state_gate_sigmoid": "output"}, "state_gate_sigmoid 'output'"),
        ({"state_head_dim": 32, "num_state_heads": 4}, "heads of 32 channels"),
        ({"logits_scaling": 2.0}, r"logits_scaling 2\.0"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    tmp_path: Path, changes: Any, what: str
) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(Unsupported, match=f"no file of an RWKV-7 with {what}"):
        write_rwkv7_gguf(rwkv7(**changes), file, torch.float32)


def test_other_models_and_types_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(Unsupported, match=r"torch\.float64"):
        write_rwkv7_gguf(rwkv7(), file, torch.float64)
    with pytest.raises(Unsupported, match="1 state heads of 64 channels in 128"):
        write_rwkv7_gguf(rwkv7(num_state_heads=1), file, torch.float32)
    scaled = rwkv7()
    scaled.model.layers[1].cross_head.scale.data.mul_(2)
    with pytest.raises(Unsupported, match=r"cross_head\.scale"):
        write_rwkv7_gguf(scaled, file, torch.float32)
    assert not file.exists()


def measured(**changes: Any) -> Any:
    options = {"what": "prefill,decode,train", "seq_len": "24", "seconds": 0.1}
    return record_of(**{**options, "against": ARM, **changes})


def rows_by_case(record: Any) -> dict[tuple[str, str], Row]:
    return {(r.what, r.operation): r for r in rows_of(record) if r.arm == ARM}


@pytest.mark.parametrize("batch", ["1", "3"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_is_checked_and_timed(monkeypatch: pytest.MonkeyPatch, batch: str, dtype: str) -> None:
    contexts = fake_llama_cpp.install(monkeypatch)
    record = measured(batch=batch, dtype=dtype)
    rows = rows_by_case(record)
    assert set(rows) == CASES
    assert rows["train", "step"].note == f"{ARM} does not train"
    for case in CASES - {("train", "step")}:
        assert rows[case].status == "ok", rows[case].note
        assert rows[case].kv_bytes == 0
        if dtype == "fp32":  # llama.cpp's shifted tokens are float32 in every run
            assert rows[case].state_bytes == rows[case].cache_bytes_counted
        assert rows[case].peak_bytes is None, "torch's allocator does not see it"
    gates = {(g["what"], g["arm"]): g["reference"] for g in record["gates"]}
    assert gates["decode", ARM].startswith("the same weights in WuNeng's RWKV-7")
    assert {c.settings.n_threads for c in contexts} == {torch.get_num_threads()}
    assert contexts[-1].settings.n_seq_max == 4 * int(batch)


def test_a_wrong_one_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_llama_cpp.install(monkeypatch, factor=1.01)
    rows = rows_by_case(measured(what="prefill,decode"))
    assert {row.status for row in rows.values()} == {"gate failed"}


def test_it_is_as_large_and_as_deep() -> None:
    own, arm = choose(tiny_request(against=ARM)).architectures
    weights = arm.build().weights
    counted = {n: p.numel() for n, p in weights.named_parameters()}
    scales = sum(count for name, count in counted.items() if name.endswith("scale"))
    assert sum(counted.values()) - scales == arm.parameters
    assert arm.parameters == pytest.approx(own.parameters, rel=0.01)
    described = arm.to_json()
    assert sum(described["parts"].values()) == described["parameters"] == arm.parameters
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings"):
        assert getattr(arm.config, name) == getattr(own.config, name)
    for name, parameter in weights.named_parameters():
        assert name.endswith("scale") or parameter.std() > 1e-3, name


def test_a_cache_is_gone_on_from_until_its_place_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_llama_cpp.install(monkeypatch)
    own = choose(tiny_request(against=ARM)).architectures[1]
    model = own.build().to(torch.device("cpu"))
    assert_as_its_twin(model, own.twin(model), 1e-5)
    ids = torch.randint(model.config.vocab_size, (1, 5))
    first = after = model(ids, use_cache=True).past_key_values
    for _ in range(model.places):
        after = model(ids[:, :1], use_cache=True, past_key_values=after).past_key_values
    with pytest.raises(RuntimeError, match="what came later has taken the place"):
        model(ids[:, :1], use_cache=True, past_key_values=first)


def test_where_it_is_missing_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for row in rows_by_case(measured()).values():
        assert row.status == "missing"
        assert "llama-cpp-python" in row.note


def test_what_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"Did you mean.*llama\.cpp-rwkv7"):
        tiny_request(against="llama.cpp-rwkv")
    smaller = {**architectures.DEFAULT_MODEL, "num_attention_heads": 4}
    monkeypatch.setattr(architectures, "DEFAULT_MODEL", smaller)
    with pytest.raises(
        InputError, match=rf"--against {ARM}: .*heads of 64.*, this model's have 32"
    ):
        choose(tiny_request(against=ARM))


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_one(dtype: torch.dtype) -> None:
    own = choose(tiny_request(against=ARM)).architectures[1]
    model = own.build().to(torch.device("cpu"), dtype)
    assert_as_its_twin(model, own.twin(model), 1e-5 if dtype == torch.float32 else 0.05)
