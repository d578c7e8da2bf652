"""wuneng train of recipes/upgrade-llama.yaml: planned, and a few steps of it on a real model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wuneng_cli.main import app

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "upgrade-llama.yaml"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


@pytest.fixture
def asked(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a short run of the recipe on 120 stories."""
    monkeypatch.chdir(tmp_path)
    changes = {
        "init_from": shared_data / "models" / "tinystories_656k",
        "data.train": shared_data / "text" / "tinystories_train.jsonl",
        "data.max_documents": 120,
        "training.steps": 2,
        "training.warmup_steps": 0,
        "training.batch_size": 2,
        "training.num_threads": 1,
        "device": "cpu",
        "study": "null",
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    return ["train", str(RECIPE), *sets, "--json", "--quiet"]


def test_the_recipe_compares_source_upgrade_and_control(asked: list[str]) -> None:
    planned = CliRunner().invoke(app, [*asked, "--dry-run", "--no-measure"])
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)["arms"]
    trained = CliRunner().invoke(app, asked)
    assert trained.exit_code == 0, trained.output
    result = json.loads(trained.stdout)
    arms = result["arms"]
    names = ["wuneng", "source", "lora", "lora-flops", "lora-shift", "wuneng-lora"]
    assert list(arms) == [*names, "wuneng-frozen", "wuneng-donor"]
    for name, arm in arms.items():
        for count in ("parameters", "trainable_parameters"):
            assert plan[name][count] == arm[count], (name, count)
        assert plan[name]["training_flops"] == arm["training_flops"]
        assert sum(plan[name]["parts"].values()) == arm["parameters"]
        place = Path(result["directory"], name)
        written = sum(file.stat().st_size for file in place.rglob("*.safetensors"))
        assert (place / "start").is_dir(), "converted on the way"
        assert plan[name]["disk_bytes"] >= written
    trains = [arm["trains"] for arm in arms.values()]
    assert trains[:6] == ["new", "none", "lora", "lora", "new+lora", "new+lora"]
    donor = arms["wuneng-donor"]
    assert donor["state_control"] == "donor"
    for figure in ("trainable_parameters", "training_flops"):
        assert donor[figure] == arms["wuneng"][figure]
    flops = arms["lora-flops"]["training_flops"]
    assert flops == pytest.approx(arms["wuneng"]["training_flops"], rel=0.001)
    assert arms["lora"]["training_flops"] < 0.99 * flops
    assert arms["source"]["parameters"] == 656_000
    ours = arms["wuneng"]["trainable_parameters"]
    for name in ("lora", "lora-shift", "wuneng-lora"):
        assert arms[name]["trainable_parameters"] == pytest.approx(ours, rel=0.01), name
    # On 120 stories the trained model is a fair one: about 1.1 bits per byte.
    assert arms["source"]["quality"]["text/bits_per_byte"] == pytest.approx(1.1, abs=0.15)
    assert len(result["paired"]) == 28
    assert "LoRA control" in result["summary"]


def test_a_source_that_is_not_there_is_named(asked: list[str]) -> None:
    failed = CliRunner().invoke(app, [*asked, "--set", "init_from=lama"])
    assert failed.exit_code == 2
    assert "model lama does not exist" in failed.stderr
    assert not Path("runs/upgrade-llama").exists()
