"""What ``benchmarks.decoded_token`` compares is comparable."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from benchmarks.decoded_token import COMPILED, TEXT, WAYS, matched, measured
from benchmarks.figures import table
from benchmarks.static_token import StaticStep
from tests.model.decoded import counted
from wuneng.bench.models import ModelStore, decode_case
from wuneng.ops import native
from wuneng.recipe import load_recipe
from wuneng.records import write_json


def test_the_arms_have_as_many_parameters_each() -> None:
    others = ("text", "mha-shift", "rwkv7", "interleaved")
    ours, *plain = (arm.parameters for arm in matched(64, 2, 2, 1, others))
    assert len(plain) == 5
    # a feed-forward layer is widened by fours
    assert all(abs(ours - other) <= 2 * 3 * 64 * 2 for other in plain)


def test_one_arm_is_wired_as_the_recipe_for_text(repository: Path) -> None:
    own = load_recipe(repository / "recipes" / "text.yaml").model
    assert {name: getattr(own, name) for name in TEXT} == TEXT


@pytest.mark.skipif(native.library(64) is None, reason="no C compiler on this machine")
def test_both_ways_are_timed_and_only_one_calls_the_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = measured((64, 1, 1, 1), 16, 2, 2)["gates"]
    assert [(gate["arm"], gate["passed"]) for gate in checked] == [("wuneng", True), ("mha", True)]
    monkeypatch.setattr("benchmarks.decoded_token.gated", lambda cases: [])
    with counted() as taken:
        found = measured((64, 1, 1, 1), 16, 2, 2)
    # Of two arms a prompt and its last token, then four rounds of both arms both ways.
    assert (taken.count(True), taken.count(False)) == (2 + 4 * 2, 2 + 4 * 2)
    rows = {(row["arm"], row["way"]): row for row in found["rows"]}
    assert set(rows) == {(a, w) for a in ("wuneng", "mha") for w in ("modules", "one call")}
    assert rows["mha", "modules"]["of_mha"] == rows["mha", "one call"]["of_mha"] == 1
    assert rows["mha", "modules"]["gained"] == rows["wuneng", "modules"]["gained"] == 1
    assert all(row["fastest_milliseconds"] <= row["milliseconds"] for row in rows.values())


def test_torch_compiles_way_is_one_graph_and_says_what_the_modules_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, and not compiled: Inductor's C++ takes minutes."""
    found = measured((64, 1, 1, 1), 16, 2, 2, compiler={"backend": "eager"})
    rows = {(row["arm"], row["way"]): row for row in found["rows"]}
    assert set(rows) == {(a, w) for a in ("wuneng", "mha") for w in (*WAYS, COMPILED)}
    assert rows["mha", COMPILED]["of_mha"] == 1
    timed = [row["way"] for row in found["rows"] if "compile_seconds" in row]
    assert timed == [COMPILED] * 2
    write_json(tmp_path / "some.json", {"load_average": [0.5], "models": [found]})
    monkeypatch.setattr("benchmarks.figures.HERE", tmp_path)
    lines = table("some.json", "tokens").splitlines()
    assert [line.split(" | ")[1:3] for line in lines[4:]] == [list(key) for key in rows]
    right = StaticStep.logits
    monkeypatch.setattr(StaticStep, "logits", lambda self, token: -right(self, token))
    with pytest.raises(RuntimeError, match="wuneng, compiled: another token"):
        measured((64, 1, 1, 1), 16, 1, 1, compiler={"backend": "eager"})


@pytest.mark.parametrize("name", ["wuneng", "mha", "text", "rwkv7"])
def test_a_static_cache_gives_the_models_logits(name: str) -> None:
    store = ModelStore(torch.device("cpu"), torch.float64, "fp64")
    arm = next(arm for arm in matched(64, 2, 2, 1, ("text", "rwkv7")) if arm.arm == name)
    step = decode_case(store, arm, 2, 20).prepare().call
    static = StaticStep(step.model, step.cache, step.tokens)
    with torch.inference_mode():
        for token in step.tokens:
            cache = copy.deepcopy(step.cache)
            expected = step.model(input_ids=token, past_key_values=cache).logits[:, -1]
            torch.testing.assert_close(static.logits(token), expected, rtol=1e-10, atol=1e-10)
