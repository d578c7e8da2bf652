"""``wuneng inspect`` from the command line, over a model whose state flips by construction."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from tests.evaluate.conftest import save_model, tiny_llama, tiny_wuneng
from tests.model.small import small_model
from wuneng import WuNengConfig, WuNengForCausalLM

START, ZERO, ONE = 2, 0, 1
ROW = [START, ZERO, ONE, ONE, ZERO, ONE, ZERO, ZERO, ONE, ONE, ONE, ZERO]


def invoke(*arguments: object) -> Result:
    from wuneng_cli.main import app

    return CliRunner().invoke(app, [str(one) for one in arguments])


def parity_model() -> WuNengForCausalLM:
    """One RWKV-7 head that writes at the first token and turns its state around at every one."""
    config = WuNengConfig(
        vocab_size=3,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=0,
        num_state_heads=1,
        state_head_dim=4,
        state_key_source="own",
        state_value_source="own",
        state_removal_key="own",
        state_a_max=2.0,
        state_output_gate=False,
        token_shift="none",
        decay_rank=1,
        rate_rank=1,
        tie_word_embeddings=False,
    )
    model = WuNengForCausalLM(config).eval()
    heads: Any = model.model.layers[0].state_heads
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(4)[:3])
        for linear in (heads.k_proj, heads.v_proj, heads.kappa_proj, heads.r_proj):
            nn.init.zeros_(linear.weight)
        heads.k_proj.weight[0, START] = 1  # key and value of the first token alone
        heads.v_proj.weight[1, START] = 1
        heads.kappa_proj.weight[0] = 1  # every token may turn what lies under that key
        heads.r_proj.weight[0] = 1
        heads.k_k.fill_(1)
        heads.k_a.zero_()
        heads.w0.fill_(-30)  # nothing decays
        heads.w1.zero_()
        heads.a0.fill_(-20)  # rate 0 ...
        heads.a1.zero_()
        heads.a1[ONE] = 1
        heads.a2.fill_(40)  # ... but 2 at a one
    return model


@pytest.fixture
def parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "row.txt").write_text(" ".join(map(str, ROW)))
    return save_model(parity_model(), tmp_path / "parity", tokenizer=False)


def test_one_sees_the_state_flip(parity: Path) -> None:
    done = invoke("inspect", parity, "--text", "row.txt", "--format", "json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    [layer] = record["layers"]
    state = layer["state"]
    turns = [row[0] for row in state["turn"][1:]]
    assert turns == pytest.approx([-1 if token == ONE else 1 for token in ROW[1:]], abs=1e-6)
    assert state["flips"] == [ROW.count(ONE)]
    odd = [sum(token == ONE for token in ROW[: t + 1]) % 2 for t in range(len(ROW))]
    signs = [1 if row[0] > 0 else -1 for row in state["coordinate"]]
    assert signs == [1 if one == odd[-1] else -1 for one in odd]
    assert state["coordinate_share"] == pytest.approx([1])
    rates = [row[0] for row in state["rate_over_time"]]
    assert rates == pytest.approx([2.0 * (token == ONE) for token in ROW], abs=1e-6)
    # with the norm of h, sqrt(4) on the token's own channel: key and value are 2 each
    assert [row[0] for row in state["norm"]] == pytest.approx([4.0] * len(ROW), rel=1e-4)
    assert [row[0] for row in state["rank"]] == pytest.approx([1.0] * len(ROW), rel=1e-4)
    assert state["rate"] == pytest.approx([2 * ROW.count(ONE) / len(ROW)], abs=1e-6)
    assert state["half_life"]["median"][0] > 1e9
    assert layer["missing"] == ["no middle heads", "no attention heads"]
    table = invoke("inspect", parity, "--text", "row.txt").stdout
    assert "flips" in table
    assert "every layer: no attention heads." in table


def test_a_text_file_and_everything_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = save_model(tiny_wuneng(), tmp_path / "model")
    (tmp_path / "text.txt").write_text("Two cats, naïve owls.\n" * 9, encoding="utf-8")
    done = invoke("inspect", model, "--text", "text.txt", "--seq-len", 40, "--out", "look")
    assert done.exit_code == 0, done.output
    assert "model over 40 tokens of text.txt" in done.stderr
    record = json.loads((tmp_path / "look" / "inspect.json").read_text())
    assert "".join(record["text"]["spelled"][:8]) == "Two cats"
    assert [sorted(layer) for layer in record["layers"]] == [
        ["attention", "layer", "middle", "missing", "state"]
    ] * 2
    for layer in record["layers"]:
        assert len(layer["state"]["turn"]) == len(layer["middle"]["gate_over_time"]) == 40
        assert 0 < layer["middle"]["gate"][1] < 1
        assert 0 < layer["attention"]["entropy"][0] <= layer["attention"]["uniform"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "look" / "inspect.csv").read_text())))
    asked = {"layer": "1", "part": "state", "head": "0", "quantity": "norm", "token": "40"}
    [row] = [row for row in rows if asked.items() <= row.items()]
    assert float(row["value"]) == record["layers"][1]["state"]["norm"][-1][0]
    assert {row["quantity"] for row in rows} == {
        *("half_life_shortest", "half_life_median", "half_life_longest", "rate", "rate_largest"),
        *("rate_over_time", "norm", "rank", "turn", "coordinate", "coordinate_share", "flips"),
        *("gate", "gate_over_time", "share", "entropy", "entropy_over_time"),
    }
    written = next((tmp_path / "look").glob("*.md")).read_text()
    assert written.startswith("**state heads of model over 40 tokens**\n\n| head | half-life |")
    for name in ("heads", "states", "flips"):
        assert (tmp_path / "look" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (tmp_path / "look" / f"{name}.svg").read_text()
    for form, part in (("md", "| 0.0 |"), ("csv", "layer,part,head,quantity,token,value")):
        shown = invoke("inspect", model, "--text", "text.txt", "--format", form)
        assert shown.exit_code == 0, shown.output
        assert part in shown.stdout


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ({"cross_head": "concat"}, "every layer: middle heads of kind concat have no gate."),
        ({"cross_head": "none"}, "every layer: no middle heads."),
        ({"num_state_heads": 0}, "every layer: no state heads."),
        ({"state_layers": [1]}, "layer 0: no state heads."),
        ({"state_kind": "gated_delta", "token_shift": "none"}, ""),
        ({"state_kind": "kda", "token_shift": "none"}, ""),
    ],
)
def test_what_a_layer_has_not_is_said(
    tmp_path: Path, variant: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    model = save_model(small_model(**variant), tmp_path / "m", tokenizer=False)
    (tmp_path / "row.txt").write_text("1, 2, 3, 60, 4")
    done = invoke("inspect", model, "--text", tmp_path / "row.txt")
    assert done.exit_code == 0, done.output
    assert says in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "attention heads of m" in done.stdout


def test_held_out_rows_of_a_run(text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text_run.parents[1])
    done = invoke("inspect", "--json", "--quiet")
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    record = json.loads(done.stdout)
    assert record["text"]["source"] == f"the held-out text of {Path('runs/letters').resolve()}"
    assert record["text"]["tokens"] == 64
    done = invoke("inspect", "--arm", "mha", "--json", "--task", "recall")
    assert done.exit_code == 2
    assert "--task recall" in done.stderr


def test_what_is_not_finite_is_told_and_not_shown(parity: Path, tmp_path: Path) -> None:
    """Its figures looked like any other's."""
    model = parity_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    broken = save_model(model, tmp_path / "broken", tokenizer=False)
    done = invoke("inspect", broken, "--text", "row.txt")
    assert done.exit_code == 1, done.output
    assert "row.txt: logits of broken are NaN or infinite" in done.output
    assert "model.layers.0.mlp.up_proj (its weight is not finite)" in " ".join(done.output.split())


def test_mistakes(parity: Path, tmp_path: Path) -> None:
    llama = save_model(tiny_llama(), tmp_path / "llama")
    (tmp_path / "text.txt").write_text("Two cats")
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "odd.bin").write_bytes(b"\xff\xfe1 2")
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it: reading would never end
    cases: list[tuple[tuple[object, ...], str]] = [
        ((parity, "--text", "pipe"), "expected a regular file, not a pipe or a device"),
        ((parity, "--text", tmp_path), "cannot be read: Is a directory"),
        ((parity, "--text", "nowhere.txt"), "--text nowhere.txt: cannot be read: No such file"),
        ((parity, "--text", "text.txt"), "token ids from 0 to 2, got 'Two'"),
        ((parity, "--text", "one.txt"), "expected two tokens or more, got 1"),
        ((parity, "--text", "odd.bin"), "expected UTF-8 text"),
        ((parity,), "belongs to no run, so it has no held-out data; name a file"),
        ((parity, "--text", "row.txt", "--task", "parity"), "give one of them"),
        ((parity, "--text", "row.txt", "--format", "jsn"), "Did you mean 'json'?"),
        ((parity, "--text", "row.txt", "--format", "md", "--json"), "--json asks for JSON"),
        ((parity, "--text", "row.txt", "--seq-len", "none"), "expected a whole number"),
        ((llama, "--text", "text.txt"), "a llama model; expected a wuneng model"),
        ((tmp_path / "missing", "--text", "text.txt"), "missing"),
    ]
    for arguments, message in cases:
        done = invoke("inspect", *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), (arguments, done.output)
        assert message in " ".join(done.stderr.split()), (arguments, done.stderr)
        assert "Traceback" not in done.output
