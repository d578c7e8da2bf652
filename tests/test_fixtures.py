"""What earlier versions wrote still loads, and computes the same: checkpoints, runs, recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.commands import answer as call
from tests.cli.commands import undo_the_end
from tests.fixtures.make import DRAWN
from tests.model.small import VARIANTS
from wuneng import WuNengConfig, WuNengForCausalLM

FIXTURES = Path(__file__).parent / "fixtures"
#: The variants there were when the fixtures were written.
KEPT = sorted(path.name for path in (FIXTURES / "models").iterdir())
#: Drawn by a QR decomposition, whose roundings are the processor's.
ORTHOGONAL = ("r_proj", "k_proj", "v_proj", "kappa_proj", "w2", "a2", "v2", "g2")
#: Powers of the channel's place, whose last bit is the processor's.
POWERS = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "shift_r", "shift_k", "shift_v")
LAST_BIT = torch.finfo(torch.float32).eps


def test_every_fixture_is_there() -> None:
    assert len(KEPT) == 31
    assert set(KEPT) <= set(VARIANTS)


@pytest.mark.parametrize("variant", KEPT)
def test_a_checkpoint_computes_what_it_computed(variant: str) -> None:
    """In float64, where processors differ by roundings only; whole and token by token."""
    model = WuNengForCausalLM.from_pretrained(FIXTURES / "models" / variant).double().eval()
    kept = load_file(FIXTURES / "models" / variant / "expected.safetensors")
    with torch.no_grad():
        whole = model(kept["ids"]).logits
        cache, steps = None, []
        for column in kept["ids"].split(1, dim=1):
            out = model(column, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(whole, kept["logits"], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(torch.cat(steps, 1), kept["logits"], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("variant", DRAWN)
def test_a_seed_draws_what_it_drew(variant: str) -> None:
    """From the configuration as it was saved, which says less than one of today."""
    torch.manual_seed(3)
    model = WuNengForCausalLM(WuNengConfig.from_pretrained(FIXTURES / "models" / variant))
    kept = load_file(FIXTURES / "models" / variant / "initial.safetensors")
    drawn = dict(model.named_parameters())
    assert set(drawn) == set(kept)
    for name, value in kept.items():
        part = name.removesuffix(".weight")
        close = 1e-5 if part.endswith(ORTHOGONAL) else LAST_BIT if part.endswith(POWERS) else 0.0
        torch.testing.assert_close(drawn[name].detach(), value, rtol=close, atol=close, msg=name)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "run", tmp_path / "run"))


def test_a_finished_run_is_known_as_such(run: Path) -> None:
    """Its figures stay; what they show is said as it is today, of one seed that it is one."""
    before = json.loads((run / "results.json").read_text())
    found = call("train", str(run / "recipe.yaml"), "--out", str(run))
    assert list(found["arms"]) == ["wuneng", "mha", "mha-shift", "rwkv7", "replace", "no-middle"]
    after = json.loads((run / "results.json").read_text())
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"summary"}
    assert "no verdict can be given" in after["summary"]


def test_a_stopped_run_goes_on_to_the_same_end(run: Path) -> None:
    arms = ("wuneng", "rwkv7", "mha-shift")
    undo_the_end(run, arms, 4)
    call("train", str(run / "recipe.yaml"), "--out", str(run))
    for arm in arms:
        found = load_file(run / arm / "model" / "model.safetensors")
        kept = load_file(FIXTURES / "run" / arm / "model" / "model.safetensors")
        for name, value in kept.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_the_other_commands_take_an_old_run(run: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "eval")
    evaluated = call("eval", str(run / "wuneng"), "--baseline", str(run / "mha"), "--out", out)
    assert evaluated["tasks"]
    changed = ("--set", "training.steps=2", "--out", str(tmp_path / "again"))
    again = call("train", str(run / "recipe.yaml"), *changed, "--dry-run", "--no-measure")
    kept = json.loads((FIXTURES / "run" / "results.json").read_text())
    for arm, was in kept["arms"].items():
        assert again["arms"][arm]["parameters"] == was["parameters"]


def test_a_converted_model_loads() -> None:
    model = WuNengForCausalLM.from_pretrained(FIXTURES / "converted")
    kept = json.loads((FIXTURES / "converted" / "convert.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == kept["parameters"]
