"""Scores equal the harness' own `hf` model; items pair, short contexts and odd tokenizers work."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.decoded import counted
from wuneng.errors import ModelError, TaskError
from wuneng.evaluate.harness import run_tasks
from wuneng.evaluate.harness_model import HarnessModel
from wuneng.evaluate.outcomes import TaskOutcomes
from wuneng.evaluate.task_loading import load_tasks, quiet_harness
from wuneng.ops import native, using

SUITE = ["arc", "hellaswag", "piqa", "winogrande", "obqa", "boolq", "copa", "lambada", "sciq"]
Load = Callable[..., Any]


def harness_figures(
    directory: Path,
    workspace: Path,
    names: list[str],
    limit: int | None = None,
    num_fewshot: int | None = None,
    dtype: str = "auto",
) -> dict[str, dict[str, float]]:
    """What lm-evaluation-harness reports for the same task files, through its own front door."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from wuneng.evaluate.tasks import common_directories

    with quiet_harness():
        manager = TaskManager(
            include_defaults=False, include_path=[*common_directories(), workspace]
        )
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(directory), "dtype": dtype},
            tasks=names,
            batch_size=4,
            device="cpu",
            limit=limit,
            num_fewshot=num_fewshot,
            task_manager=manager,
            bootstrap_iters=0,
        )
    assert results is not None
    return {
        name: {
            key.removesuffix(",none"): value
            for key, value in figures.items()
            if "," in key and "stderr" not in key
        }
        for name, figures in results["results"].items()
    }


def assert_same(found: dict[str, TaskOutcomes], expected: dict[str, dict[str, float]]) -> None:
    for name, figures in expected.items():
        ours = {metric: one.estimate().value for metric, one in found[name].metrics.items()}
        assert ours == pytest.approx(figures, rel=1e-6), name


def test_scores_are_those_of_the_harness(
    load: Load, llama_directory: Path, all_files: Path, tmp_path: Path
) -> None:
    tasks = load_tasks([*SUITE, "gsm8k"], data_dir=all_files, workspace=tmp_path, num_fewshot=0)
    tasks.tasks["gsm8k"].set_config("generation_kwargs", {"max_gen_toks": 8}, update=True)
    found = run_tasks(HarnessModel(load(llama_directory), batch_size=4), tasks, limit=5)
    names = [name for name in tasks.tasks if name != "gsm8k"]
    assert_same(found, harness_figures(llama_directory, tmp_path, names, limit=5))
    assert set(found["gsm8k"].metrics) == {
        "exact_match,strict-match",
        "exact_match,flexible-extract",
    }
    assert all(one.n == 5 for one in found.values())


def test_few_shot_scores_are_those_of_the_harness(
    load: Load, llama_directory: Path, make_files: Callable[..., Path], tmp_path: Path
) -> None:
    files = make_files(6, "arc_easy_test.jsonl", "arc_easy_train.jsonl")
    work = tmp_path / "work"
    work.mkdir()
    tasks = load_tasks(["arc_easy"], data_dir=files, workspace=work, num_fewshot=3)
    model = HarnessModel(load(llama_directory), batch_size=4)
    found = run_tasks(model, tasks)
    assert_same(found, harness_figures(llama_directory, work, ["arc_easy"], num_fewshot=3))
    assert found["arc_easy"].num_fewshot == 3


def test_two_models_are_asked_the_same_questions(
    load: Load, llama_directory: Path, make_files: Callable[..., Path], tmp_path: Path
) -> None:
    """Task objects are used again for the baseline; few-shot examples must not move on."""
    files = make_files(6, "arc_easy_test.jsonl", "arc_easy_train.jsonl")
    (tmp_path / "work").mkdir()
    tasks = load_tasks(["arc_easy"], data_dir=files, workspace=tmp_path / "work", num_fewshot=3)
    model = HarnessModel(load(llama_directory), batch_size=4)
    first, second = (run_tasks(model, tasks, log_items=True)["arc_easy"] for _ in range(2))
    assert first.items == second.items


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("auto", "auto")])
def test_a_trained_llama_scores_as_in_the_harness(
    precision: str, dtype: str, load: Load, shared_data: Path, tmp_path: Path
) -> None:
    """The first 30 items of five public test sets; LAMBADA's 31st stops the harness' own model.

    As stored, in bf16, sums are rounded to a quarter and near ties follow the batches: there every
    request is run whole, as the harness does.
    """
    directory = shared_data / "models" / "tinystories_656k"
    tasks = load_tasks(
        ["arc", "hellaswag", "piqa", "winogrande", "lambada"],
        data_dir=shared_data / "eval",
        workspace=tmp_path,
    )
    model = HarnessModel(load(directory, precision), batch_size=4, share=precision == "fp32")
    found = run_tasks(model, tasks, limit=30)
    names = list(tasks.tasks)
    assert_same(found, harness_figures(directory, tmp_path, names, limit=30, dtype=dtype))


def test_answers_that_the_tokenizer_merges_into_the_question_are_scored(
    load: Load, shared_data: Path
) -> None:
    """Some BPE without pre-tokenisation encodes "don't eat" in no more tokens than "don't"."""
    from lm_eval.models.huggingface import HFLM

    model = HarnessModel(load(shared_data / "models" / "tinystories_656k"), batch_size=1)
    question, answer = "When I get upset, I don't", " eat"
    assert HFLM._encode_pair(model, question, answer)[1] == []
    before, scored = model._encode_pair(question, answer)
    whole = model.tok_encode(question + answer)
    assert before + scored == whole
    assert model.tokenizer.decode(scored).endswith("eat")
    assert model.merged_requests == 1
    assert model._encode_pair("The cat", " sat") == HFLM._encode_pair(model, "The cat", " sat")


def outcomes(load: Load, directory: Path, files: Path, work: Path, *names: str) -> Any:
    tasks = load_tasks(list(names), data_dir=files, workspace=work)
    return run_tasks(HarnessModel(load(directory), batch_size=4), tasks, log_items=True)


def test_chance_majority_and_items(
    load: Load, llama_directory: Path, all_files: Path, tmp_path: Path
) -> None:
    found = outcomes(load, llama_directory, all_files, tmp_path, "arc_easy", "boolq", "lambada")
    arc, boolq, lambada = found["arc_easy"], found["boolq"], found["lambada_openai"]
    assert arc.chance == pytest.approx((3 * (1 / 3) + 5 * (1 / 4)) / 8)  # 3 or 4 choices
    assert (boolq.chance, boolq.majority) == (0.5, 5 / 8)
    assert (lambada.chance, lambada.majority, arc.majority) == (None, None, None)
    item = arc.items[1]
    assert item["prompt"].startswith("Question: Which animal is number 1?")
    assert item["target"] == 1
    scores = item["outcome"]["loglikelihoods"]
    assert len(scores) == 4
    assert item["outcome"]["acc"] == float(int(np.argmax(scores)) == 1)


def test_lambada_perplexity_is_from_the_items(
    load: Load, llama_directory: Path, all_files: Path, tmp_path: Path
) -> None:
    found = outcomes(load, llama_directory, all_files, tmp_path, "lambada")["lambada_openai"]
    scores = [item["outcome"]["loglikelihoods"][0] for item in found.items]
    value = found.metrics["perplexity"].estimate().value
    assert value == pytest.approx(math.exp(-np.mean(scores)))
    assert not found.metrics["perplexity"].higher_is_better


@pytest.fixture
def short_model(tmp_path: Path, load: Load, tiny: Callable[..., Path]) -> Any:
    """A Llama whose context is 48 bytes."""
    return load(tiny("llama", context=48))


def test_questions_longer_than_the_context_are_cut_and_counted(
    short_model: Any, all_files: Path, tmp_path: Path
) -> None:
    tasks = load_tasks(["copa", "boolq"], data_dir=all_files, workspace=tmp_path)
    model = HarnessModel(short_model, batch_size=4)
    assert model.max_length == 48
    run_tasks(model, tasks)
    assert model.truncated_requests == 16  # BoolQ's passages, twice eight answers


def test_an_answer_longer_than_the_context_is_a_clear_error(
    short_model: Any, make_files: Callable[..., Path], tmp_path: Path
) -> None:
    row = {"goal": "g", "sol1": "word " * 20, "sol2": "b", "label": 0}
    files = make_files(1, "piqa_test.jsonl", changes={"piqa_test.jsonl": [row]})
    (tmp_path / "work").mkdir()
    tasks = load_tasks(["piqa"], data_dir=files, workspace=tmp_path / "work")
    with pytest.raises(TaskError, match=r"an answer of 1\d\d tokens does not fit .* of 48"):
        run_tasks(HarnessModel(short_model, batch_size=4), tasks)


def test_generation_leaves_room_in_a_short_context(
    short_model: Any, make_files: Callable[..., Path], tmp_path: Path
) -> None:
    files = make_files(2, "gsm8k_test.jsonl")
    (tmp_path / "work").mkdir()
    tasks = load_tasks(["gsm8k"], data_dir=files, workspace=tmp_path / "work", num_fewshot=0)
    tasks.tasks["gsm8k"].set_config("generation_kwargs", {"max_gen_toks": 256}, update=True)
    model = HarnessModel(short_model, batch_size=2)
    assert model.max_gen_toks == 24
    found = run_tasks(model, tasks, log_items=True)["gsm8k"]
    assert all(len(item["outcome"]["responses"][0]) <= 24 for item in found.items)


@pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")
@pytest.mark.parametrize(("batch_size", "number", "batches"), [(2, 2, 1), ("auto", 9, 2)])
def test_answers_are_written_in_one_call_a_token(
    load: Load, wuneng_directory: Path, batch_size: int | str, number: int, batches: int
) -> None:
    """Questions of unequal length in one batch: the shorter one stands behind pads."""
    from lm_eval.api.instance import Instance

    settings = {"until": ["\0"], "max_gen_toks": 6}
    texts = [f"{'One cat' if i % 2 else 'Two dogs and a third one'} {i}" for i in range(number)]
    requests = [Instance("generate_until", {}, (text, settings), 0) for text in texts]

    def written() -> tuple[list[str], list[bool]]:
        with counted() as taken:
            answers = HarnessModel(load(wuneng_directory), batch_size).generate_until(requests)
        return answers, taken

    answers, taken = written()
    once = [False] + 5 * [True]  # the questions go through the modules
    assert taken == batches * once
    with using("reference"):
        plain, modules = written()
    assert modules == batches * 6 * [False]
    assert plain == answers


def test_results_go_nowhere_but_into_the_return_value(
    load: Load,
    llama_directory: Path,
    all_files: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """stdout belongs to the result, and the harness must not write into its own package."""
    import lm_eval

    package = Path(lm_eval.__file__).parent
    before = {path for path in package.rglob("*") if "__pycache__" not in path.parts}
    capfd.readouterr()
    outcomes(load, llama_directory, all_files, tmp_path, "copa")
    assert capfd.readouterr() == ("", "")
    assert {path for path in package.rglob("*") if "__pycache__" not in path.parts} == before


def test_auto_is_a_fixed_batch_on_the_cpu(load: Load, llama_directory: Path) -> None:
    assert HarnessModel(load(llama_directory), batch_size="auto").batch_size == 8


def test_a_tokenizer_without_marks_is_refused(load: Load, llama_directory: Path) -> None:
    loaded = load(llama_directory)
    loaded.tokenizer.bos_token = loaded.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="neither a beginning-of-text nor an end-of-text"):
        HarnessModel(loaded)


def test_wuneng_scores_are_the_same_at_any_batch_size(
    load: Load, wuneng_directory: Path, all_files: Path, tmp_path: Path
) -> None:
    """The harness pads on the right without a mask; that must not reach the state."""
    tasks = load_tasks(["hellaswag", "lambada"], data_dir=all_files, workspace=tmp_path)
    alone, together = (
        run_tasks(HarnessModel(load(wuneng_directory), batch_size=size), tasks, log_items=True)
        for size in (1, 8)
    )
    for name in tasks.tasks:
        for one, other in zip(alone[name].items, together[name].items, strict=True):
            scores = one["outcome"]["loglikelihoods"]
            assert other["outcome"]["loglikelihoods"] == pytest.approx(scores, rel=1e-4)


def test_questions_cut_for_generation_are_counted(
    load: Load, make_files: Callable[..., Path], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Few-shot questions of gsm8k in a short context lose most of what they are."""
    from wuneng.evaluate.session import EvaluationRequest, run_evaluation

    files = make_files(6, "gsm8k_test.jsonl", "gsm8k_train.jsonl")
    request = EvaluationRequest(
        tiny("llama", context=128), ["gsm8k"], data_dir=files, limit=3, num_fewshot=5
    )
    found = run_evaluation(request, torch.device("cpu"))
    [note] = [note for note in found.notes if "cut from the left" in note]
    assert "3 questions were cut" in note
    share = int(note.split("the longest kept ")[1].split("%")[0])
    assert 5 < share < 40
    whole = EvaluationRequest(
        tiny("llama", context=2048), ["gsm8k"], data_dir=files, limit=3, num_fewshot=5
    )
    assert not any("cut" in note for note in run_evaluation(whole, torch.device("cpu")).notes)
