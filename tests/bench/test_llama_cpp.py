"""llama.cpp as an arm: the file that is written for it, and what is asked of it."""

from __future__ import annotations

import importlib.util
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.bench import fake_llama_cpp
from tests.bench.peer_logits import assert_as_its_twin
from tests.bench.records import record_of, tiny_request
from wuneng.bench.architectures import DEFAULT_MODEL, choose
from wuneng.bench.engine import Unsupported
from wuneng.bench.gguf_file import write_gguf
from wuneng.bench.llama_cpp import LlamaCpp
from wuneng.bench.record import Row, rows_of
from wuneng.errors import InputError

pytest.importorskip("gguf")

CASES = {("prefill", "first token"), ("decode", "next token"), ("train", "step")}


def llama(**changes: Any) -> Any:
    """Grouped queries, heads that do not fill the width, a base of its own."""
    settings: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_transformers_reads_the_file_as_the_model_that_was_written(
    tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    model = llama(tie_word_embeddings=tied)
    with torch.no_grad():
        for parameter in model.parameters():  # norms, which begin at one, too
            parameter.copy_(torch.randn_like(parameter).mul(0.2).to(dtype))
    write_gguf(model, tmp_path / "model.gguf", dtype)
    read = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="model.gguf", dtype=torch.float32
    )
    ids = torch.randint(259, (2, 21))
    assert torch.equal(read.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "gelu in the feed-forward"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "RoPE of the kind linear"),
    ],
)
def test_what_is_not_written_is_refused(tmp_path: Path, changes: Any, what: str) -> None:
    with pytest.raises(Unsupported, match=f"no file of a Llama with {what} is written"):
        write_gguf(llama(**changes), tmp_path / "model.gguf", torch.float32)
    with pytest.raises(Unsupported, match=r"torch\.float64"):
        write_gguf(llama(), tmp_path / "model.gguf", torch.float64)


def measured(**changes: Any) -> Any:
    options = {"what": "prefill,decode,train", "seq_len": "24", "seconds": 0.1}
    return record_of(**{**options, "against": "llama.cpp", **changes})


def rows_by_case(record: Any) -> dict[tuple[str, str], Row]:
    return {(r.what, r.operation): r for r in rows_of(record) if r.arm == "llama.cpp"}


@pytest.mark.parametrize("batch", ["1", "3"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_is_checked_and_timed(monkeypatch: pytest.MonkeyPatch, batch: str, dtype: str) -> None:
    contexts = fake_llama_cpp.install(monkeypatch)
    record = measured(batch=batch, dtype=dtype)
    rows = rows_by_case(record)
    assert set(rows) == CASES
    assert rows["train", "step"].note == "llama.cpp does not train"
    for case in CASES - {("train", "step")}:
        assert rows[case].status == "ok", rows[case].note
        assert rows[case].kv_bytes == rows[case].cache_bytes_counted
        assert rows[case].peak_bytes is None, "torch's allocator does not see it"
    gates = {(g["what"], g["arm"]): g["reference"] for g in record["gates"]}
    assert gates["decode", "llama.cpp"] == "the same weights in transformers' Llama"
    wanted = {"fp32": 0, "bf16": 30}[dtype]
    assert {(c.settings.type_k, c.settings.type_v) for c in contexts} == {(wanted, wanted)}
    assert {c.settings.n_threads for c in contexts} == {torch.get_num_threads()}
    assert "missing" not in record["peers"]["llama-cpp-python"]


def test_a_wrong_one_gets_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_llama_cpp.install(monkeypatch, factor=1.01)
    rows = rows_by_case(measured(what="prefill,decode"))
    assert {row.status for row in rows.values()} == {"gate failed"}


def test_what_it_holds_is_freed_once_and_before_the_interpreter_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_llama_cpp.install(monkeypatch)
    library, freed = sys.modules["llama_cpp"], []
    monkeypatch.setattr(library, "llama_free", lambda context: freed.append("context"))
    monkeypatch.setattr(library, "llama_model_free", lambda model: freed.append("model"))
    model = LlamaCpp(llama()).to(torch.device("cpu"))
    model(torch.tensor([[1, 2, 3]]))
    model(torch.ones(2, 3, dtype=torch.int64))  # of another batch: another context
    assert freed == ["context"]
    finalizers = [x for x in weakref.finalize._registry if x.peek()[0] is model]  # type: ignore[attr-defined]
    assert [x.atexit for x in finalizers] == [True]
    del finalizers, model
    assert freed == ["context", "context", "model"]


def test_where_it_is_missing_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for row in rows_by_case(measured()).values():
        assert row.status == "missing"
        assert "llama-cpp-python" in row.note
    unlike = {**DEFAULT_MODEL, "qk_norm": True}
    monkeypatch.setattr("wuneng.bench.architectures.DEFAULT_MODEL", unlike)
    with pytest.raises(InputError, match=r"--against llama\.cpp: no Llama has"):
        choose(tiny_request(against="llama.cpp"))


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_one(dtype: torch.dtype) -> None:
    """A prompt, tokens after it, another prompt, a batch: each as transformers has it."""
    own = choose(tiny_request(against="llama.cpp")).architectures[1]
    model = own.build().to(torch.device("cpu"), dtype)
    assert_as_its_twin(model, own.twin(model), 1e-5 if dtype == torch.float32 else 0.05)
