"""`--tasks questions`: one's own files, with choices and without, and the fields that say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wuneng.errors import DataError, InputError, TaskError
from wuneng.evaluate.own_questions import OwnQuestions, parse_fields
from wuneng.evaluate.task_loading import load_tasks
from wuneng.recipe import QuestionFields

ANIMALS = ("cat", "dog", "owl")


def written(directory: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def choosing(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"Who is number {i}?", "answer": i % 3, "choices": list(ANIMALS)}
        for i in range(count)
    ]


def writing(count: int) -> list[dict[str, Any]]:
    return [
        {"story": f"The {ANIMALS[i % 3]} came {i} times.", "q": "Who came?", "a": ANIMALS[i % 3]}
        for i in range(count)
    ]


def loaded(data: Path, tmp_path: Path, fields: str = "", shots: int | None = None) -> Any:
    workspace = tmp_path / "work"
    workspace.mkdir(exist_ok=True)
    own = OwnQuestions(parse_fields(fields)) if fields else None
    return load_tasks(["questions"], data_dir=data, workspace=workspace, own=own, num_fewshot=shots)


def test_choices_are_scored_as_the_harness_scores_them(tmp_path: Path) -> None:
    data = written(tmp_path / "data", "animals_test.jsonl", choosing(5))
    found = loaded(data, tmp_path)
    task = found.tasks["questions-animals_test"]
    task.set_fewshot_seed(seed=1)
    task.build_all_requests(limit=None)
    asked = [one for one in task.instances if one.doc_id == 4]
    assert {one.args[0] for one in asked} == {"Question: Who is number 4?\nAnswer:"}
    assert [one.args[1] for one in asked] == [" cat", " dog", " owl"]
    assert task.doc_to_target(asked[0].doc) == 1


def test_solved_questions_come_from_the_training_file(tmp_path: Path) -> None:
    data = written(tmp_path / "data", "animals_test.jsonl", choosing(3))
    with pytest.raises(TaskError, match="--num-fewshot: no file to show 2 solved questions from"):
        loaded(data, tmp_path, shots=2)
    written(data, "animals_train.jsonl", choosing(9)[3:])
    found = loaded(data, tmp_path, shots=2)
    assert list(found.tasks) == ["questions-animals_test"]
    task = found.tasks["questions-animals_test"]
    task.set_fewshot_seed(seed=1)
    task.build_all_requests(limit=1)
    prompt = task.instances[0].args[0]
    assert prompt.count("Answer:") == 3
    assert prompt.endswith("Question: Who is number 0?\nAnswer:")


def test_what_a_model_writes_is_compared_with_the_answer(
    tmp_path: Path, wuneng: Any, llama_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer may be followed by more lines, and its case and full stop do not count."""
    from wuneng.evaluate.harness_model import HarnessModel

    given = [" Cat.", " dog", "owl \n", " a cat", "", " DOG"]
    monkeypatch.setattr(
        HarnessModel, "generate_until", lambda self, asked, **_: given[: len(asked)]
    )
    data = written(tmp_path / "data", "who.jsonl", writing(6))
    result = wuneng(
        "eval", llama_directory, "--tasks", "questions", "--data-dir", data, "--fields",
        "question=q,answer=a,context=story", "--out", tmp_path, "--log-samples",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "eval.json").read_text())
    task = record["tasks"]["questions-who"]
    assert task["metrics"]["exact_match"]["model"] == pytest.approx(3 / 6)
    assert [item["outcome"]["exact_match"] if "outcome" in item else item["model"]["exact_match"]
            for item in task["items"]] == [1, 1, 1, 0, 0, 0]  # fmt: skip
    assert task["items"][0]["prompt"].startswith("The cat came 0 times.\nQuestion: Who came?")
    assert record["settings"]["fields"]["question"] == "q"
    assert task["source"] == str(data / "who.jsonl")


def test_fields_are_told_apart() -> None:
    assert parse_fields("question=q, answer=a") == QuestionFields(question="q", answer="a")
    with pytest.raises(InputError, match=r"--fields: expected question=NAME,.* Did you mean 'ans"):
        parse_fields("anser=a")
    with pytest.raises(InputError, match="got 'question'"):
        parse_fields("question")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (writing(2), "has the fields 'question' and 'answer'; found 'story', 'q', 'a'"),
        ([*choosing(1), {"question": "Why?", "answer": "so"}],
         "expected choices in every row or in none"),
        ([{"question": "Why?", "answer": 3, "choices": ["a", "b"]}], "line 1: field 'answer'"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path: Path, rows: list[Any], message: str) -> None:
    data = written(tmp_path / "data", "mine.jsonl", rows)
    with pytest.raises((TaskError, DataError)) as error:
        loaded(data, tmp_path)
    assert message in str(error.value)


def test_without_files_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"--tasks questions: no file to ask from; expected --data"):
        load_tasks(["questions"], workspace=tmp_path)
    data = written(tmp_path / "data", "a_train.jsonl", choosing(2))
    with pytest.raises(TaskError, match="no file to ask from"):
        loaded(data, tmp_path)
    written(data, "b.jsonl", choosing(2))
    written(data / "more", "b.jsonl", choosing(2))
    with pytest.raises(TaskError, match=r"b\.jsonl and .*b\.jsonl are of one name; rename one"):
        loaded(data, tmp_path)


def test_task_files_of_ones_own(tmp_path: Path, wuneng: Any, llama_directory: Path) -> None:
    written(tmp_path / "data", "levels.jsonl", [
        {"prompt": f"{i} plus 1 is", "answer": str(i + 1), "hard": i // 2} for i in range(4)
    ])  # fmt: skip
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "plus.yaml").write_text(
        "task: my_plus\noutput_type: multiple_choice\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'data' / 'levels.jsonl'}}}, "
        f"cache_dir: {tmp_path / 'hf'}}}\n"
        "test_split: test\ndoc_to_text: prompt\ndoc_to_target: answer\n"
        "doc_to_choice: ['1', '2', '3', '4']\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {version: 1, level_field: hard}\n"
    )
    result = wuneng(
        "eval", llama_directory, "--tasks", "my_plus", "--include-path", mine, "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    task = json.loads((tmp_path / "eval.json").read_text())["tasks"]["my_plus"]
    assert (task["n"], task["chance"]) == (4, 0.25)
    assert [(one["value"], one["n"]) for one in task["by_level"]["levels"]] == [(0, 2), (1, 2)]
    missing = wuneng(
        "eval", llama_directory, "--tasks", "my_plus", "--include-path", tmp_path / "no"
    )
    assert missing.exit_code == 2
    assert "--include-path" in missing.output
    assert "is not a directory" in missing.output
