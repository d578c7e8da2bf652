"""wuneng convert: options, output, exit codes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from tests.cli.commands import outcome
from tests.convert.sources import save_source
from wuneng.convert import Check
from wuneng_cli.conversion_text import is_same

run = partial(outcome, "convert")


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(save_source(tmp_path / "source", num_hidden_layers=4))


def test_options_and_table(source: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    code, said, progress = run(
        *(source, out, "--state-heads", "4", "--state-layers", "0,2-3", "--cross-head", "concat"),
        *("--snapshots", "1", "--key-source", "own", "--value-source", "own", "--seed", "4"),
        "--verbose",
    )
    assert code == 0, progress
    config = AutoConfig.from_pretrained(out)
    assert (config.num_state_heads, config.state_layers, config.cross_head, config.snapshots) == (
        4,
        [0, 2, 3],
        "concat",
        1,
    )
    assert (config.state_key_source, config.state_value_source) == ("own", "own")
    for text in ("full forward", "left padding", "cache, token by token", "max |Δ logit|", "KL"):
        assert text in said
    assert "llama to wuneng" in said
    assert " kept, " in said
    assert "in state and middle heads (+" in said
    assert "comparing logits" in progress


def test_where_nothing_differs_one_line_says_so(source: str, tmp_path: Path) -> None:
    """A table of which every row says "same" tells nothing that a line does not."""
    code, said, _ = run(source, str(tmp_path / "out"))
    assert code == 0
    first = said.splitlines()[0]
    names = "full forward; left padding; cache, token by token; generate()"
    assert first.startswith(
        f"The same logits as the source's in 4 checks ({names}); furthest apart"
    )
    assert ": 0 in float32 (1e-05 allowed). " in first
    assert "max |Δ logit|" not in said


@pytest.mark.parametrize(
    ("difference", "tolerance", "same"),
    [(0.0, None, True), (1e-9, None, False), (1e-5, 2e-5, True), (3e-5, 2e-5, False)],
)
def test_what_differs_has_its_table(difference: float, tolerance: float | None, same: bool) -> None:
    check = Check("full forward", "float32", 96, difference, 1.0, 0.0, tolerance)
    assert is_same(check) == same


def test_json_is_alone_on_stdout_and_quiet_is_quiet(source: str, tmp_path: Path) -> None:
    code, said, progress = run(source, str(tmp_path / "out"), "--json", "--quiet")
    assert (code, progress) == (0, "")
    record = json.loads(said)
    stored = json.loads((tmp_path / "out" / "convert.json").read_text())
    assert record == {"directory": str(tmp_path / "out"), **stored}


def test_exit_codes(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "out")
    code, said, error = run(str(tmp_path / "nothing"), out)
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert run(source, out, "--cross-head", "mixed")[0] == 2
    assert run(source, out, "--state-layers", "a-b")[0] == 2
    code, _, error = run(source, out, "--state-layers", "0,3-1")
    assert code == 2
    assert "'3-1'" in error
    assert "--state-layers" in error
    assert run(source, out, "--no-such-option")[0] == 2
    # a tolerance that not even equality meets
    monkeypatch.setattr("wuneng.convert.comparison.TOLERANCE", {torch.float32: -1.0})
    monkeypatch.setattr("wuneng.convert.comparison.FACTOR", -1.0)
    code, said, error = run(source, out)
    assert code == 1
    assert "DIFFERS" in error
    assert "error: the converted model differs from its source" in error
    assert not Path(out).exists()
    code, said, _ = run(source, out, "--no-verify")
    assert code == 0
    assert "not verified" in said


def test_an_unsupported_architecture_lists_what_is_supported(tmp_path: Path) -> None:
    (tmp_path / "moe").mkdir()
    config = {"model_type": "mixtral", "num_local_experts": 8}
    (tmp_path / "moe" / "config.json").write_text(json.dumps(config))
    code, _, error = run(str(tmp_path / "moe"), str(tmp_path / "out"))
    assert code == 2
    first, reason, supported = error.strip().splitlines()
    assert "model_type 'mixtral' cannot be converted" in first
    assert "num_local_experts: 8 (a mixture of experts)" in reason
    assert "Llama (llama)" in supported
