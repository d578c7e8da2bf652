"""The worked examples of CONTRIBUTING.md, run as they stand there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.convert.sources import save_source
from tests.model.small import BASE
from wuneng import WuNengConfig, WuNengForCausalLM, kinds
from wuneng.bench import operators
from wuneng.bench.shapes import OperatorShapes
from wuneng.convert import Request, convert, families
from wuneng.evaluate import local_files, local_formats
from wuneng.evaluate.local_data import LocalDirectory

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def example(heading: str) -> dict[str, Any]:
    """What the code under a heading defines."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    defined: dict[str, Any] = {}
    exec(compile(code, f"CONTRIBUTING.md: {heading}", "exec"), defined)
    return defined


@pytest.fixture(autouse=True)
def no_kind_stays() -> Iterator[None]:
    yield
    for known in kinds._REGISTERED.values():
        for name in [n for n, kind in known.items() if not kind.__module__.startswith("wuneng.")]:
            del known[name]


def test_what_it_names_is_there() -> None:
    named = re.findall(r"`((?:wuneng|tests|docs|benchmarks)/[\w./]+)`", TEXT)
    assert len(named) > 8
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("heading", "changes"),
    [
        ("A kind of state heads", {"state_kind": "decayed"}),
        ("A kind of middle heads", {"cross_head": "product"}),
    ],
)
def test_a_kind(heading: str, changes: dict[str, str]) -> None:
    example(heading)
    torch.manual_seed(0)
    model = WuNengForCausalLM(WuNengConfig(**(BASE | changes))).double()
    ids = torch.randint(0, 61, (2, 24))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3
    model.eval()
    with torch.no_grad():
        whole = model(ids).logits
        cache, parts = None, []
        for part in ids.split([15, 1, 8], dim=1):
            out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-10)


def test_an_evaluation_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    added = example("An evaluation task")["FORMAT"]
    monkeypatch.setattr(local_formats, "FORMATS", (added, *local_formats.FORMATS))
    data = tmp_path / "data"
    data.mkdir()
    row = {"prompt": "Is ice cold?", "options": ["yes", "no"], "answer": "yes"}
    (data / "ours.jsonl").write_text(json.dumps(row) + "\n")
    [found] = LocalDirectory(data, tmp_path / "work").files
    [(_, converted)] = local_files.converted_rows(found)
    assert converted["choices"]["text"] == ["yes", "no"]
    assert converted["answerKey"] == "A"
    with pytest.raises(ValueError, match="'maybe' is none of its options"):
        added.convert(row | {"answer": "maybe"})


def test_a_checkpoint_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    family = example("A checkpoint family")["FAMILY"]
    source = save_source(tmp_path / "source", "seed_oss", head_dim=12)
    monkeypatch.setitem(families.FAMILIES, family.model_type, family)
    outcome = convert(Request(str(source), tmp_path / "out"))
    assert all(check.max_abs_logit_difference == 0.0 for check in outcome.checks)


def test_a_benchmark_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = example("A benchmark peer")["PEER"]
    wrong = operators.AttentionPeer(lambda: lambda q, k, v: 1.01 * peer.load()(q, k, v))
    shapes = OperatorShapes(1, 40, 2, 32, torch.float32, "fp32", torch.device("cpu"))
    config = WuNengConfig(**BASE)
    for name, added, passes in (("explicit", peer, True), ("wrong", wrong, False)):
        monkeypatch.setattr(operators, "ATTENTION_PEERS", {name: added})
        groups = operators.operator_groups(shapes, config, peers=(), compiled=False)
        cases = [case for _, some in groups for case in some if case.row.arm == name]
        assert [case.row.operation for case in cases] == ["forward", "forward+backward"]
        assert [case.gate().passed for case in cases] == [passes] * 2
