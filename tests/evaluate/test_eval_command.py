"""`wuneng eval` from the command line to eval.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from wuneng.evaluate.local_formats import FORMATS
from wuneng.evaluate.tasks import ALIASES

Invoke = Callable[..., Result]


@pytest.mark.usefixtures("pages")
def test_one_model(wuneng: Invoke, llama_directory: Path, all_files: Path, tmp_path: Path) -> None:
    result = wuneng(
        "eval", llama_directory, "--tasks", "arc,copa", "--data-dir", all_files, "--limit", 4
    )
    assert result.exit_code == 0, result.output
    for part in ("arc_easy", "arc_challenge", "copa", "llama (", "limited to 4 items"):
        assert part in result.stdout
    assert "evaluating llama" in result.stderr
    record = json.loads((tmp_path / "runs" / "eval" / "llama" / "eval.json").read_text())
    assert record["tasks"]["copa"]["n"] == 4
    assert record["tasks"]["copa"]["source"] == str(all_files / "copa_val.jsonl")
    assert record["models"]["baseline"] is None
    assert record["environment"]["command_line"][0] == "wuneng"
    assert "copa" in (tmp_path / "runs" / "eval" / "llama" / "report.html").read_text()


def test_a_run_with_its_baseline_in_one_call(
    wuneng: Invoke, text_run: Path, all_files: Path
) -> None:
    result = wuneng(
        "eval", "--tasks", "mmlu,validation", "--data-dir", all_files, "--log-samples",
        "--batch-size", 4,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "compared with the run's arm mha" in result.stderr
    record = json.loads((text_run / "eval.json").read_text())
    tasks = record["tasks"]
    assert set(tasks) == {"mmlu", "mmlu_anatomy", "mmlu_astronomy", "validation"}
    assert tasks["mmlu"]["n"] == 8
    assert tasks["mmlu"]["parts"] == ["mmlu_anatomy", "mmlu_astronomy"]
    assert tasks["mmlu_anatomy"]["group"] == "mmlu"
    assert set(tasks["validation"]["metrics"]) == {"bits_per_byte", "perplexity"}
    for one in tasks.values():
        for metric in one["metrics"].values():
            low, high = metric["ci95"]
            assert low <= metric["difference"] <= high
            assert metric["difference"] == pytest.approx(metric["model"] - metric["baseline"])
    item = tasks["mmlu_anatomy"]["items"][0]
    assert set(item) == {"id", "prompt", "target", "model", "baseline"}
    assert "│ mmlu " in result.stdout
    assert "mmlu_anatomy" not in result.stdout


def test_a_wuneng_run_against_a_llama_as_json(
    wuneng: Invoke, text_run: Path, llama_directory: Path, all_files: Path, tmp_path: Path
) -> None:
    result = wuneng(
        "eval", "letters", "--baseline", llama_directory, "--tasks", "piqa", "--data-dir",
        all_files, "--out", tmp_path / "out", "--json", "--dtype", "fp32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["models"]["model"]["model_type"] == "wuneng"
    assert record["models"]["baseline"]["model_type"] == "llama"
    assert record["tasks"]["piqa"]["metrics"]["acc"]["test"] == "mcnemar-exact"
    assert record["file"] == str(tmp_path / "out" / "eval.json")
    assert Path(record["file"]).is_file()


@pytest.mark.parametrize("control", ["zero", "permute"])
def test_a_state_control_says_what_is_lost(
    wuneng: Invoke, text_run: Path, all_files: Path, control: str
) -> None:
    result = wuneng(
        "eval", "--tasks", "validation,lambada", "--data-dir", all_files, "--state", control,
        "--quiet", "--batch-size", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert f"letters/wuneng, state {control}" in result.stdout
    record = json.loads((text_run / f"eval-state-{control}.json").read_text())
    assert [record["models"][one]["state"] for one in ("model", "baseline")] == [control, "keep"]
    assert record["tasks"]["validation"]["metrics"]["bits_per_byte"]["difference"] != 0
    assert record["tasks"]["lambada_openai"]["metrics"]["perplexity"]["difference"] != 0


def refused(result: Result, *parts: str) -> None:
    """Exit code 2, one message, no traceback."""
    assert result.exit_code == 2, result.output
    for part in parts:
        assert part in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("error: ") == 1


CASES: list[tuple[list[str], tuple[str, ...]]] = [
    (["--tasks", "piqa", "--data-dir", "nowhere"], ("nowhere is not a directory",)),
    (["--tasks", ","], ("no task given",)),
    (["--tasks", "gsm8k", "--data-dir", "FILES"], ("no test or validation file", "copa_val")),
    (["--tasks", "copa", "--data-dir", "FILES", "--num-fewshot", "2"], ("no train file",)),
    (["--tasks", "validation"], ("neither MODEL nor the baseline belongs to a run",)),
    (["--tasks", "copa", "--state", "none"], ("--state: expected keep, zero, permute",)),
    (["--tasks", "copa", "--data-dir", "FILES", "--state", "zero"], ("no state heads",)),
    (["--tasks", "copa", "--data-dir", "FILES", "--dtype", "int8"], ("--dtype",)),
    (["--tasks", "copa", "--data-dir", "FILES", "--device", "tpu"], ("got 'tpu'",)),
    (["--tasks", "copa", "--baseline", "missing"], ("missing does not exist",)),
]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--limit", str(10**23), "at most 4611686018427387904"),
        ("--num-fewshot", str(10**23), "at most 4611686018427387904"),
        ("--batch-size", "9" * 5000, "from 1 to 4611686018427387904"),
        ("--batch-size", "\u00b2", "or auto, got"),
    ],
)
def test_numbers_that_cannot_be_counted_with(
    wuneng: Invoke, llama_directory: Path, option: str, value: str, said: str
) -> None:
    result = wuneng("eval", llama_directory, "--tasks", "copa", option, value)
    assert result.exit_code == 2, result.output
    assert option in result.stderr
    assert said in " ".join(result.stderr.split())
    assert len(result.stderr) < 600


@pytest.mark.parametrize(("arguments", "parts"), CASES)
def test_bad_input_is_one_clear_message(
    wuneng: Invoke,
    llama_directory: Path,
    make_files: Callable[..., Path],
    arguments: list[str],
    parts: tuple[str, ...],
) -> None:
    files = make_files(2, "copa_val.jsonl")
    given = [str(files) if one == "FILES" else one for one in arguments]
    refused(wuneng("eval", llama_directory, *given), *parts)


@pytest.mark.parametrize("batch_size", ["0", "-1", "many"])
def test_a_bad_batch_size_is_a_usage_error(
    wuneng: Invoke, llama_directory: Path, batch_size: str
) -> None:
    result = wuneng("eval", llama_directory, "--tasks", "copa", "--batch-size", batch_size)
    assert result.exit_code == 2
    assert "--batch-size" in result.stderr


def test_bad_models_are_refused(wuneng: Invoke, all_files: Path, tmp_path: Path) -> None:
    refused(wuneng("eval", "--tasks", "copa"), "no model was given")
    (tmp_path / "empty").mkdir()
    refused(wuneng("eval", tmp_path / "empty", "--tasks", "copa"), "no model in")
    (tmp_path / "empty" / "config.json").write_text("{")
    refused(
        wuneng("eval", tmp_path / "empty", "--tasks", "copa", "--data-dir", all_files),
        "not readable as JSON",
    )


def test_tasks_are_checked_before_any_model_is_loaded(
    wuneng: Invoke, tmp_path: Path, all_files: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    arguments = ("--tasks", "lambada_standard", "--data-dir", all_files)
    result = wuneng("eval", tmp_path / "broken", *arguments)
    refused(result, "'lambada_standard' cannot be read from local files")


def test_a_model_of_synthetic_tasks_cannot_read(
    wuneng: Invoke, tiny: Callable[..., Path], all_files: Path
) -> None:
    directory = tiny("wuneng", tokenizer=False)
    result = wuneng("eval", directory, "--tasks", "copa", "--data-dir", all_files)
    refused(result, "has no tokenizer (tokenizer.json), so it reads token ids, not text")


def test_a_data_set_that_cannot_be_had_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    """In a process of its own, offline and with an empty cache; the model would not load."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{")
    environment: dict[str, Any] = {
        **os.environ,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "wuneng_cli.main", "eval", str(model), "--tasks", "piqa"],
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    assert "'piqa' needs the data set baber/piqa" in done.stderr
    assert "network" in done.stderr
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_complete_and_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "wuneng_cli.main", "eval", "--help"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0
    for option in ("--tasks", "--baseline", "--data-dir", "--state", "--log-samples", "Examples"):
        assert option in done.stdout
    said = " ".join(done.stdout.split())
    for alias, tasks in ALIASES.items():
        assert f"{alias} =" in said
        assert all(task in said for task in tasks)
    assert all(known.name.split()[0] in said for known in FORMATS)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "numpy", "lm_eval", "datasets"}
