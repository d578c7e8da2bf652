"""`train` and `eval --tasks validation` say the same of the same rows, down to the error."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

RECIPE = """
name: uneven
arms: {wuneng: {training: {learning_rate: 3e-3}}, mha: {training: {learning_rate: 1e-3}}}
model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_state_heads: 2}
data: {kind: text, train: TEXT/train.jsonl, validation: TEXT/valid.jsonl, cache_dir: TEXT/cache,
       tokenizer: {train_bpe: 400}}
training: {steps: 12, sequence_length: 32, batch_size: 8, validate_every: 12}
"""
FIGURE = "text/bits_per_byte"


def invoke(*arguments: object) -> Result:
    from wuneng_cli.main import app

    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A run over BPE tokens whose rows have few bytes (digits) or many (words): its directory,
    its results and what train printed."""
    place = tmp_path_factory.mktemp("estimator")
    draw = random.Random(0)
    words = ["remarkable", "extraordinary", "tokenizer", "validation", "interesting"]
    for name, count in (("train", 200), ("valid", 60)):
        lines = []
        for _ in range(count):
            digits = "".join(draw.choices("0123456789", k=40))
            text = digits if draw.random() < 0.5 else " ".join(draw.choices(words, k=30))
            lines.append(json.dumps({"text": text}))
        (place / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (place / "recipe.yaml").write_text(RECIPE.replace("TEXT", str(place)), encoding="utf-8")
    run = place / "run"
    printed = invoke("train", place / "recipe.yaml", "--out", run, "--quiet").stdout
    return run, json.loads((run / "results.json").read_text()), printed


def test_eval_and_train_report_one_figure_one_error_and_one_difference(
    trained: tuple[Path, dict[str, Any], str],
) -> None:
    run, results, _ = trained
    invoke("eval", run, "--tasks", "validation")
    found = json.loads((run / "eval.json").read_text())["tasks"]["validation"]
    metric = found["metrics"]["bits_per_byte"]
    for side, arm in (("model", "wuneng"), ("baseline", "mha")):
        entry = results["arms"][arm]
        assert metric[side] == pytest.approx(entry["quality"][FIGURE], rel=1e-5)
        error = entry["standard_error"][FIGURE]
        assert metric[f"{side}_stderr"] == pytest.approx(error, rel=1e-4)
        perplexity = found["metrics"]["perplexity"]
        assert perplexity[side] == pytest.approx(entry["quality"]["text/perplexity"], rel=1e-4)
        error = entry["standard_error"]["text/perplexity"]
        assert perplexity[f"{side}_stderr"] == pytest.approx(error, rel=1e-3)
    [pair] = [p for p in results["paired"] if p["figure"] == FIGURE]
    assert pair["arms"] == ["wuneng", "mha"]
    assert found["n"] == pair["rows"]
    assert metric["difference"] == pytest.approx(pair["difference"], rel=1e-3, abs=1e-6)
    assert metric["difference_stderr"] == pytest.approx(pair["standard_error"], rel=1e-3)
    assert metric["ci95"] == pytest.approx(pair["interval"], rel=1e-3, abs=1e-5)
    assert (metric["p"], metric["test"]) == (pytest.approx(pair["p"], abs=1e-3), pair["test"])


def test_a_validation_while_training_says_the_same(
    trained: tuple[Path, dict[str, Any], str],
) -> None:
    """Bits per byte of metrics.jsonl, of rows.json and of its rows by hand are one figure."""
    run, results, _ = trained
    lines = (run / "wuneng" / "metrics.jsonl").read_text().splitlines()
    rows = json.loads((run / "wuneng" / "rows.json").read_text())["rows"]["text"]["32"]
    by_hand = sum(rows["nats"]) / math.log(2) / sum(rows["bytes"])
    at_the_end = results["arms"]["wuneng"]["quality"][FIGURE]
    assert at_the_end == pytest.approx(by_hand, rel=1e-12)
    # All of the text is few enough tokens to be watched as well.
    watched = json.loads(lines[-1])["validation"][FIGURE]
    assert watched == pytest.approx(at_the_end, rel=1e-6)


def test_the_rows_weigh_what_their_bytes_say(trained: tuple[Path, dict[str, Any], str]) -> None:
    """The premise: by tokens, the error would be another."""
    run, results, _ = trained
    rows = json.loads((run / "wuneng" / "rows.json").read_text())["rows"]["text"]["32"]
    sizes = rows["bytes"]
    assert max(sizes) > 4 * min(sizes)
    loss = results["arms"]["wuneng"]["standard_error"]["text/loss"]
    by_tokens = loss * sum(rows["tokens"]) / sum(sizes) / 0.6931471805599453
    by_bytes = results["arms"]["wuneng"]["standard_error"][FIGURE]
    assert not 0.7 < by_tokens / by_bytes < 1.4


def test_the_sentence_does_not_contradict_the_interval(
    trained: tuple[Path, dict[str, Any], str],
) -> None:
    _, results, printed = trained
    [pair] = [p for p in results["paired"] if p["figure"] == FIGURE]
    low, high = pair["interval"]
    assert low * high > 0, "the arms of this test differ on these rows"
    assert "no difference beyond noise" not in results["summary"]
    assert f"95 % interval {low:+.4f} to {high:+.4f} over {pair['rows']} rows" in results["summary"]
    assert f"{pair['difference']:+.4f} ({low:+.4f} to {high:+.4f})" in printed
