"""Which models an evaluation means."""

from __future__ import annotations

from pathlib import Path

import pytest

from wuneng.errors import ModelError
from wuneng.evaluate.choice import choose_models, default_directory


def test_the_latest_run_is_compared_with_its_plain_attention_arm(text_run: Path) -> None:
    model, baseline, remark = choose_models(None, None, runs_root=text_run.parent)
    assert model == text_run / "wuneng" / "model"
    assert baseline is not None
    assert baseline.resolve() == text_run / "mha" / "model"
    assert remark is not None
    assert "arm mha" in remark


def test_so_is_a_run_by_path_or_name(text_run: Path) -> None:
    for name in (str(text_run), "letters"):
        _, baseline, _ = choose_models(name, None, runs_root=text_run.parent)
        assert baseline is not None
        assert baseline.parent.name == "mha"


def test_an_arm_or_a_model_stands_alone(text_run: Path, llama_directory: Path) -> None:
    for model in (text_run / "wuneng", text_run / "wuneng" / "model", llama_directory):
        assert choose_models(str(model), None, runs_root=text_run.parent)[1] is None


def test_a_baseline_may_be_an_arm_a_directory_or_none(
    text_run: Path, llama_directory: Path
) -> None:
    root = text_run.parent
    assert choose_models(None, "none", runs_root=root)[1] is None
    arm = choose_models(str(text_run), "mha", runs_root=root)[1]
    assert arm is not None
    assert arm.parent.name == "mha"
    assert choose_models(None, str(llama_directory), runs_root=root)[1] == llama_directory
    with pytest.raises(ModelError, match=r"model .*mho does not exist"):
        choose_models(None, "mho", runs_root=root)


def test_a_state_control_is_compared_with_the_model_itself(text_run: Path) -> None:
    model, baseline, remark = choose_models(None, None, "zero", runs_root=text_run.parent)
    assert model == baseline
    assert remark == "compared with the same model, its state untouched"


def test_a_run_without_plain_attention_has_no_default(text_run: Path) -> None:
    (text_run / "mha" / "model" / "config.json").unlink()
    assert choose_models(None, None, runs_root=text_run.parent)[1:] == (None, None)


def test_results_go_into_the_run_or_beside_the_runs(text_run: Path, llama_directory: Path) -> None:
    assert default_directory(text_run / "mha" / "model") == text_run
    assert default_directory(llama_directory, Path("runs")) == Path("runs/eval/llama")
