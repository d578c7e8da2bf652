"""Every kind of arm trains, resumes to the same bits, is evaluated and is converted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.cli.commands import answer as call
from tests.cli.commands import undo_the_end
from tests.convert.sources import save_source
from tests.model.small import plainly
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengForCausalLM
from wuneng_cli.main import app

ARMS = (
    *("wuneng", "mha", "mha-shift", "mha-conv", "interleaved", "gated-delta", "kda"),
    *("rwkv7", "replace", "mha-heads"),
)
MODEL = """\
model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_state_heads: 2,
        cross_head: gated, decay_rank: 4, rate_rank: 4, gate_rank: 4}
"""
TRAINING = (
    "training: {steps: 4, sequence_length: 32, batch_size: 2, checkpoint_every: 2, "
    "keep_checkpoints: 9}\n"
    "device: cpu\n"
)
DATA = {
    "synthetic": "data: {kind: synthetic, tasks: [{task: recall, pairs: 2},\n"
    "        {task: state_tracking, group: parity}]}\n"
    "evaluation: {length_multiples: [1, 2], examples: 4}\n",
    "bytes": "data: {kind: text, train: [text], tokenizer: bytes, validation_fraction: 0.3}\n",
}


@pytest.fixture(scope="module", params=DATA)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all arms, on the tasks or on bytes."""
    place = tmp_path_factory.mktemp(request.param)
    (place / "text").mkdir()
    for number in range(20):
        words = " ".join(f"word{number * i % 17}" for i in range(60))
        (place / "text" / f"{number}.txt").write_text(words)
    data = DATA[request.param].replace("[text]", f"[{place / 'text'}]")
    recipe = place / "recipe.yaml"
    recipe.write_text(f"{MODEL}arms: [{', '.join(ARMS)}]\n{data}{TRAINING}")
    found = call("train", str(recipe), "--out", str(place / "run"))
    arms = found["arms"]
    assert list(arms) == list(ARMS)
    for name in set(ARMS) - {"replace"}:
        matched = arms[name]["parameters"] / arms["wuneng"]["parameters"]
        assert matched == pytest.approx(1, abs=0.01), name
    return place / "run"


def test_a_stopped_run_ends_with_the_same_bits(run: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run, tmp_path / "run"))
    undo_the_end(again, ARMS, 4)
    call("train", str(again / "recipe.yaml"), "--out", str(again))
    for arm in ARMS:
        found, kept = (load_file(r / arm / "model" / "model.safetensors") for r in (again, run))
        assert all(torch.equal(found[name], value) for name, value in kept.items()), arm


# A text's arms have a tokenizer beside them; that the tasks' have none is the same for all.
@pytest.mark.parametrize(
    ("run", "arm"),
    [
        *(("bytes", arm) for arm in ("interleaved", "gated-delta", "kda", "mha-conv", "mha-heads")),
        ("synthetic", "kda"),
    ],
    indirect=["run"],
)
def test_an_arm_becomes_a_directory_that_loads(run: Path, arm: str, tmp_path: Path) -> None:
    """With its own code, or as a stock model; proved by the conversion alone in its process."""
    out = tmp_path / "out"
    record = call("convert", str(run / arm / "model"), str(out), "--to", "transformers")
    assert record["checks"][-1]["argmax_agreement"] == 1.0
    ours = WuNengForCausalLM.from_pretrained(run / arm / "model")
    theirs = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    ids = torch.arange(20)[None] % 30

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(ids).logits
        return found

    assert_as_exact(logits(theirs), *plainly(ours, logits), arm, floor=CHUNKED_FLOOR)
    written = [m.generate(ids, max_new_tokens=5, do_sample=False) for m in (ours, theirs)]
    assert written[0].tolist() == written[1].tolist()


def test_they_are_evaluated(run: Path, tmp_path: Path) -> None:
    for arm in ("interleaved", "kda"):
        for control in ("keep", "zero"):
            out = str(tmp_path / f"{arm}-{control}")
            found = call("eval", str(run / arm), "--state", control, "--out", out)
            assert found["tasks"]


@pytest.mark.parametrize("kind", ["gated_delta", "kda"])
def test_they_are_grafted_silently(kind: str, tmp_path: Path) -> None:
    save_source(tmp_path / "llama", "llama", hidden_size=32, vocab_size=61)
    asked = ["convert", str(tmp_path / "llama"), str(tmp_path / "out"), "--state-kind", kind]
    assert call(*asked)["max_abs_logit_difference"] == 0.0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["state_kind"], config["state_short_conv"]) == (kind, 4)
    asked[2] = str(tmp_path / "other")
    refused = CliRunner().invoke(app, [*asked[:3], "--state-kind", "gated"])
    assert refused.exit_code == 2
    assert "--state-kind must be one of" in refused.stderr
    assert "Did you mean 'gated_delta'?" in refused.stderr
