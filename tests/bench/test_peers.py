"""Other projects beside ours: what they are called with, what they are checked with, what is said
where they are absent."""

from __future__ import annotations

import math
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.bench import fake_peers
from tests.bench.fake_rwkv7 import wkv7
from tests.bench.records import record_of, tiny_request
from wuneng.bench import architectures
from wuneng.bench.architectures import choose
from wuneng.bench.engine import Unsupported
from wuneng.bench.gate import judge, relative_error
from wuneng.bench.operator_peers import mamba_inputs, ssd_reference
from wuneng.bench.peers import flash_attention, load_peer, peer_versions
from wuneng.bench.record import Row, failures, rows_of
from wuneng.bench.schema import problems
from wuneng.bench.shapes import OperatorShapes
from wuneng.bench.tables import record_tables
from wuneng.errors import InputError

CPU = torch.device("cpu")
EVERYTHING = "ops,prefill,decode,train"
PEER_ARMS = ("fla", "fla-chunk", "fla-recurrent", "fla-kda", "mamba2")


@pytest.fixture(autouse=True)
def _two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """fla's model needs them."""
    changed = {**architectures.DEFAULT_MODEL, "num_hidden_layers": 2}
    monkeypatch.setattr(architectures, "DEFAULT_MODEL", changed)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Triton's interpreter could run the peers' kernels."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def peer_rows(record: Any) -> list[Row]:
    return [row for row in rows_of(record) if row.arm in PEER_ARMS]


def shown(record: Any) -> str:
    console = Console(file=StringIO(), width=200)
    for table in record_tables(record):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def measured(**changes: Any) -> Any:
    options = {"what": EVERYTHING, "against": "fla,mamba", "seq_len": "24", "seconds": 0.1}
    return record_of(**{**options, **changes})


#: As flash-linear-attention's own layer calls its operator: without, it takes slower kernels.
TOLD = {"safe_gate": True, "chunk_size": 64, "lower_bound": -math.exp(-0.5)}

#: Everything that a peer is measured at.
CASES = {
    *(("ops", "forward", arm) for arm in ("fla-chunk", "fla-recurrent", "fla-kda", "mamba2")),
    *(("ops", "forward+backward", arm) for arm in ("fla-chunk", "fla-kda", "mamba2")),
    *(("ops", "step", arm) for arm in ("fla-recurrent", "mamba2")),
    *(("prefill", "first token", "fla"), ("decode", "next token", "fla"), ("train", "step", "fla")),
}


def cases_of(rows: list[Any]) -> set[tuple[str, str, str]]:
    return {(row.what, row.operation, row.arm) for row in rows}


def test_absent_peers_are_named_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_peers.uninstall(monkeypatch)
    record = measured()
    rows = peer_rows(record)
    assert cases_of(rows) == CASES
    for row in rows:
        name = "mamba-ssm" if row.arm == "mamba2" else "flash-linear-attention"
        assert (row.status, row.note) == ("missing", f"{name} is not installed")
        assert (row.median_ms, row.tokens_per_second) == (None, None)
    assert set(record["peers"].values()) == {"missing"}
    text = shown(record)
    assert "mamba2 missing: mamba-ssm is not installed" in text
    assert "fla missing: flash-linear-attention is not installed" in text
    assert failures(record) == []
    assert problems(record) == []


def test_without_a_gpu_installed_peers_are_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_peers.install(monkeypatch)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    record = measured(what="ops,decode,train")
    for row in peer_rows(record):
        name = "mamba-ssm" if row.arm == "mamba2" else "flash-linear-attention"
        expected = f"{name}'s kernels need a GPU, this run is on cpu"
        assert (row.status, row.note, row.median_ms) == ("unsupported", expected, None)
    assert "mamba2 unsupported: mamba-ssm's kernels need a GPU" in shown(record)
    assert (record["peers"]["flash-linear-attention"], record["peers"]["mamba-ssm"]) == (
        "9.9",
        "9.8",
    )
    assert failures(record) == []
    assert problems(record) == []


def test_peers_are_timed_and_say_what_they_were_checked_with(
    monkeypatch: pytest.MonkeyPatch, interpreted: None
) -> None:
    calls = fake_peers.install(monkeypatch)
    record = measured(batch="2")
    rows = peer_rows(record)
    assert {row.status for row in rows} == {"ok"}, {row.note for row in rows}
    assert all(row.tokens_per_second and row.roofline_share for row in rows)
    for row in rows:
        if row.what in ("prefill", "decode"):
            assert row.cache_bytes == row.state_bytes == row.cache_bytes_counted
    by_arm = {(g["what"], g["operation"], g["arm"]): g["reference"] for g in record["gates"]}
    for what, operation in (
        ("prefill", "first token"),
        ("decode", "next token"),
        ("train", "step"),
    ):
        assert by_arm[what, operation, "fla"].startswith("the same weights in WuNeng's RWKV-7")
        assert by_arm[what, operation, "wuneng"].startswith("the same weights through the token")
    assert by_arm["ops", "forward", "fla-chunk"] == by_arm["ops", "forward", "reference"]
    assert "state-space" in by_arm["ops", "forward+backward", "mamba2"]
    assert "state-space" in by_arm["ops", "step", "mamba2"]
    chunked = [{k: v for k, v in call.items() if k in TOLD} for call in calls["chunk_rwkv7"]]
    assert all(told == TOLD for told in chunked)
    assert {call["options"]["scale"] for call in calls["chunk_rwkv7"]} == {1.0}
    assert {call["chunk_size"] for call in calls["scan"]} == {256}
    assert {call["x"].shape[1] for call in calls["scan"]} == {24}


def test_an_older_peer_is_not_told_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, interpreted: None
) -> None:
    calls = fake_peers.install(monkeypatch, fla_chunk=wkv7)
    rows = peer_rows(measured(what="ops", against="fla"))
    assert {row.status for row in rows} == {"ok"}, {row.note for row in rows}
    assert {call["scale"] for call in calls["chunk_rwkv7"]} == {1.0}


def test_the_model_arm_is_as_large_and_as_deep(
    monkeypatch: pytest.MonkeyPatch, interpreted: None
) -> None:
    calls = fake_peers.install(monkeypatch)
    own, arm = choose(tiny_request(against="fla")).architectures
    model = arm.build()
    assert sum(p.numel() for p in model.parameters()) == arm.parameters
    assert arm.parameters == pytest.approx(own.parameters, rel=0.01)
    described = arm.to_json()
    assert sum(described["parts"].values()) == described["parameters"] == arm.parameters
    (settings,) = calls["RWKV7Config"]
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings"):
        assert settings[name] == getattr(own.config, name)
    assert settings["head_dim"] == own.config.state_head_dim
    assert settings["use_l2warp"] is False  # a gradient that the loss does not show
    for name, parameter in model.named_parameters():
        assert parameter.dim() < 2 or parameter.abs().max() > 1e-3, name
    twin = arm.twin(model)
    assert twin is not None
    assert twin.model.config.to_dict() == arm.config.to_dict()


def test_wrong_peers_get_no_speed(monkeypatch: pytest.MonkeyPatch, interpreted: None) -> None:
    fake_peers.install(monkeypatch, fla_factor=1.01, mamba_factor=1.01)
    record = measured()
    wrong = [row for row in peer_rows(record) if row.status == "gate failed"]
    # Of the operators only Mamba-2's scan and Kimi Delta Attention have a planted factor.
    right = {case for case in CASES if case[0] == "ops" and case[2] not in ("mamba2", "fla-kda")}
    assert cases_of(wrong) == CASES - right - {("ops", "step", "mamba2")}
    assert {row.median_ms for row in wrong} == {None}
    assert len(failures(record)) == len(wrong)


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_state_space_reference_is_its_quadratic_form(tokens: int, groups: int) -> None:
    shapes = OperatorShapes(2, tokens, 3, 8, torch.float64, "fp64", CPU)
    x, dt, A, B, C, D, dt_bias = (z.double() for z in mamba_inputs(shapes, 5))
    B, C = (torch.randn(2, tokens, groups, 8, dtype=torch.float64) for _ in (B, C))
    inputs = [x, dt, A, B, C, D, dt_bias]
    options: dict[str, Any] = {"dt_softplus": True, "return_final_states": True}

    def quadratic(*z: Any) -> Any:
        return fake_peers._scan(1.0)(*z[:5], 256, D=z[5], dt_bias=z[6], **options)

    results = []
    for function in (ssd_reference, quadratic):
        leaves = [z.clone().requires_grad_() for z in inputs]
        y, state = function(*leaves)
        results.append([y, state, *torch.autograd.grad(y.sin().sum() + state.sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 1e-10


def test_a_state_continues_the_recurrence() -> None:
    shapes = OperatorShapes(1, 20, 2, 8, torch.float64, "fp64", CPU)
    x, dt, A, B, C, D, dt_bias = (z.double() for z in mamba_inputs(shapes, 1))
    whole, last = ssd_reference(x, dt, A, B, C, D, dt_bias)
    state, parts = None, []
    for part in (slice(0, 7), slice(7, 20)):
        own = (x[:, part], dt[:, part], A, B[:, part], C[:, part], D, dt_bias)
        y, state = ssd_reference(*own, state=state)
        parts.append(y)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-12)
    assert state is not None
    assert torch.allclose(state, last, atol=1e-12)


def test_one_layer_and_odd_heads(monkeypatch: pytest.MonkeyPatch, interpreted: None) -> None:
    fake_peers.install(monkeypatch)
    model = architectures.DEFAULT_MODEL
    monkeypatch.setitem(model, "num_hidden_layers", 1)
    record = measured(what="decode", against="fla")
    (note,) = {row.note for row in peer_rows(record)}
    assert note == "flash-linear-attention's RWKV-7 needs two layers or more"
    assert {row.status for row in peer_rows(record)} == {"unsupported"}
    monkeypatch.setitem(model, "head_dim", 24)
    with pytest.raises(InputError, match="--against fla: RWKV-7 needs heads that fill the width"):
        choose(tiny_request(against="fla"))
    assert [a.arm for a in choose(tiny_request(what="ops", against="fla")).architectures] == [
        "wuneng"
    ]


def test_a_peer_that_does_not_load_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "mamba_ssm"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mamba_ssm", raising=False)
    reason = "ImportError: libcudart.so.12: cannot open"
    assert peer_versions()["mamba-ssm"] == f"missing: {reason}"
    with pytest.raises(Exception, match=f"^mamba-ssm does not load here: {reason}$"):
        load_peer("mamba-ssm", "mamba_ssm.ops.triton.ssd_combined")


def test_flash_attention_takes_its_two_types(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(q: Any, k: Any, v: Any, causal: bool) -> Any:
        assert causal
        assert q.shape == (1, 5, 2, 8)  # tokens before heads
        return v

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=kernel))
    attend = flash_attention()
    x = torch.randn(1, 2, 5, 8)
    assert torch.equal(attend(*(3 * [x.bfloat16()])), x.bfloat16())
    with pytest.raises(Unsupported, match=r"fp16 and bf16, this run is in torch\.float32"):
        attend(x, x, x)


def test_not_a_number_is_no_small_error() -> None:
    row = Row("train", "step", "fla", 16, 1, "fp32")
    result = judge(row, {"right": 0.0, "lost": float("nan")}, torch.float32)
    assert (result.passed, result.error, result.detail) == (False, float("inf"), "lost")
