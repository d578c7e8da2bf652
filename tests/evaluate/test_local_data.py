"""Local evaluation files: recognised by their fields, scored with the stock prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wuneng.errors import DataError, TaskError
from wuneng.evaluate.local_files import scan
from wuneng.evaluate.local_formats import FORMATS, format_of_row, formats_table
from wuneng.evaluate.task_loading import LoadedTasks, load_tasks
from wuneng.evaluate.task_objects import check_examples

Files = Callable[..., Path]
ALL = ("arc", "hellaswag", "piqa", "winogrande", "obqa", "boolq", "copa", "lambada", "sciq", "mmlu")
FOUR = ("the cat", "the dog", "the owl", "the bee")


def loaded(directory: Path, workspace: Path, *names: str, shots: int | None = None) -> LoadedTasks:
    workspace.mkdir(parents=True, exist_ok=True)
    return load_tasks(list(names), data_dir=directory, workspace=workspace, num_fewshot=shots)


def requests(task: Any) -> list[Any]:
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(limit=None)
    return list(task.instances)


@pytest.fixture(scope="module")
def everything(all_files: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedTasks:
    return loaded(all_files, tmp_path_factory.mktemp("work"), *ALL)


#: Task, item, its question, its answers, its right answer: what the stock task files spell.
PROMPTS: list[tuple[str, int, str, tuple[str, ...], Any]] = [
    ("arc_easy", 1, "Question: Which animal is number 1?\nAnswer:",
        tuple(" " + a for a in FOUR), 1),
    ("arc_challenge", 0, "Question: Which animal is number 100?\nAnswer:",
        tuple(" " + a for a in FOUR), 0),
    ("hellaswag", 2, "Feeding animals: A man has 2 bowls. he",
        tuple(f" feeds a {a}." for a in ("cat", "dog", "owl", "bee")), 2),
    ("piqa", 3, "Question: Feed 3 cats\nAnswer:", (" Use a bowl.", " Use a hammer."), 1),
    ("openbookqa", 1, "Animal 1 is", tuple(" " + a for a in FOUR), 1),
    ("boolq", 0, "Animals -- They live.\nQuestion: is 0 an animal?\nAnswer:", (" no", " yes"), 0),
    ("copa", 1, "The cat saw 1 birds therefore", ("  it purred.", "  it slept."), " it slept."),
    ("lambada_openai", 4, "There were 4 animals and one of them was a", (" fox",), " fox"),
    ("sciq", 0, "Dogs bark.\nQuestion: What barks 0 times?\nAnswer:",
        (" cats", " owls", " bees", " dogs"), 3),
    ("mmlu_astronomy", 1, "The following are multiple choice questions (with answers) about "
        "astronomy.\n\nWhich test bone 3?\nA. arm\nB. leg\nC. rib\nD. jaw\nAnswer:",
        (" A", " B", " C", " D"), 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "item", "question", "answers", "right"), PROMPTS)
def test_prompts_are_the_stock_ones(
    everything: LoadedTasks,
    name: str,
    item: int,
    question: str,
    answers: tuple[str, ...],
    right: Any,
) -> None:
    task = everything.tasks[name]
    mine = [one for one in requests(task) if one.doc_id == item]
    assert {one.args[0] for one in mine} == {question}
    assert tuple(one.args[1] for one in mine) == answers
    assert task.doc_to_target(mine[0].doc) == right


def test_winogrande_puts_the_options_into_the_question(everything: LoadedTasks) -> None:
    mine = [one for one in requests(everything.tasks["winogrande"]) if one.doc_id == 0]
    assert [one.args for one in mine] == [
        ("The cat chased 0 mice until the cat", " was tired."),
        ("The cat chased 0 mice until the mouse", " was tired."),
    ]


def test_every_row_is_there_and_the_split_is_known(everything: LoadedTasks) -> None:
    assert len(requests(everything.tasks["hellaswag"])) == 8 * 4
    assert everything.local["hellaswag"].split == "validation"
    assert everything.local["arc_easy"].split == "test"
    assert everything.local["sciq"].split == "validation"  # the stock task has a test split


def test_original_hellaswag_rows_get_the_capital_of_the_stock_prompt(
    make_files: Files, tmp_path: Path
) -> None:
    row = {
        "activity_label": "Feeding",
        "ctx_a": "A man has bowls.",
        "ctx_b": "he",
        "ctx": "A man has bowls. he",
        "endings": ["sits.", "[step] feeds."],
        "label": "1",
    }
    directory = make_files(1, "hellaswag_val.jsonl", changes={"hellaswag_val.jsonl": [row]})
    task = loaded(directory, tmp_path / "work", "hellaswag").tasks["hellaswag"]
    assert [one.args for one in requests(task)] == [
        ("Feeding: A man has bowls. He", " sits."),
        ("Feeding: A man has bowls. He", "  feeds."),
    ]


def test_a_group_holds_the_subjects_that_the_file_has(everything: LoadedTasks) -> None:
    mmlu = next(one for one in everything.selections if one.name == "mmlu")
    assert mmlu.pool
    assert set(mmlu.leaves) == {"mmlu_anatomy", "mmlu_astronomy"}
    assert any("2 of its 57 tasks" in note for note in everything.notes)


def test_few_shot_examples_come_from_the_training_file(make_files: Files, tmp_path: Path) -> None:
    directory = make_files(5, "arc_easy_test.jsonl", "arc_easy_train.jsonl")
    task = loaded(directory, tmp_path / "work", "arc_easy", shots=2).tasks["arc_easy"]
    question = requests(task)[0].args[0]
    *examples, asked = question.split("Question: ")[1:]
    assert len(examples) == 2
    assert all("number 100" in example for example in examples)
    assert asked == "Which animal is number 0?\nAnswer:"


def test_mmlu_takes_its_examples_from_the_dev_file_in_order(
    make_files: Files, tmp_path: Path
) -> None:
    directory = make_files(8, "mmlu_test.jsonl", "mmlu_dev.jsonl")
    task = loaded(directory, tmp_path / "work", "mmlu_anatomy", shots=2).tasks["mmlu_anatomy"]
    question = requests(task)[0].args[0]
    assert question.index("Which dev bone 0?") < question.index("Which dev bone 2?")


def test_gsm8k_keeps_its_own_number_of_examples(make_files: Files, tmp_path: Path) -> None:
    directory = make_files(8, "gsm8k_test.jsonl", "gsm8k_train.jsonl")
    task = loaded(directory, tmp_path / "work", "gsm8k").tasks["gsm8k"]
    assert requests(task)[0].args[0].count("Question:") == 6


def test_files_may_be_packed_and_lie_one_directory_down(make_files: Files, tmp_path: Path) -> None:
    rows = {"sub/piqa_test.jsonl.gz": [{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}]}
    (tmp_path / "data" / "sub").mkdir(parents=True)
    directory = make_files(1, "sub/piqa_test.jsonl.gz", changes=rows)
    task = loaded(directory, tmp_path / "work", "piqa").tasks["piqa"]
    assert requests(task)[0].args == ("Question: g\nAnswer:", " a")


def test_nothing_is_left_in_the_users_cache(
    make_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    cache = tmp_path / "users-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    loaded(make_files(2, "copa_val.jsonl"), tmp_path / "work", "copa")
    assert not cache.exists() or not any(cache.rglob("*.arrow"))


def test_strings_that_look_like_dates_stay_strings(make_files: Files, tmp_path: Path) -> None:
    rows = {"piqa_test.jsonl": [{"goal": "2024-01-02", "sol1": "1", "sol2": "2", "label": 1}]}
    directory = make_files(1, "piqa_test.jsonl", changes=rows)
    task = loaded(directory, tmp_path / "work", "piqa").tasks["piqa"]
    assert requests(task)[0].args == ("Question: 2024-01-02\nAnswer:", " 1")


def test_every_format_is_recognised_by_its_fields_alone(all_files: Path) -> None:
    files, unrecognised = scan(all_files)
    assert not unrecognised
    assert {file.format.name for file in files} == {known.name for known in FORMATS}


def test_near_misses_are_not_recognised() -> None:
    assert format_of_row({"text": "a b", "source": "c"}) is None
    assert format_of_row({"question": "q", "choices": []}) is None


def test_the_table_names_every_task() -> None:
    table = formats_table()
    for task in ("arc_easy", "hellaswag", "piqa", "boolq", "mmlu_<subject>", "gsm8k"):
        assert f"| `{task}` |" in table
    assert table.count("\n") == 1 + sum(len(known.tasks) for known in FORMATS)


def test_a_missing_file_says_what_was_looked_for_and_found(
    make_files: Files, tmp_path: Path
) -> None:
    directory = make_files(1, "arc_challenge_test.jsonl", "boolq_val.jsonl")
    with pytest.raises(TaskError) as caught:
        loaded(directory, tmp_path / "work", "arc_easy")
    message = str(caught.value)
    for part in ("'arc_easy'", "'easy'", "answerKey", "arc_challenge_test.jsonl", "boolq_val"):
        assert part in message


def test_a_training_file_alone_is_not_evaluated(make_files: Files, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no test or validation file for task 'arc_easy'"):
        loaded(make_files(2, "arc_easy_train.jsonl"), tmp_path / "work", "arc_easy")


def test_examples_are_never_taken_from_the_evaluated_items(
    make_files: Files, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=r"needs 3 examples.*no train file"):
        loaded(make_files(9, "piqa_valid.jsonl"), tmp_path / "work", "piqa", shots=3)


def test_two_files_for_one_split_are_refused(make_files: Files, tmp_path: Path) -> None:
    rows = {"other_val.jsonl": [{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}]}
    directory = make_files(1, "piqa_valid.jsonl", "other_val.jsonl", changes=rows)
    with pytest.raises(TaskError, match=r"two files give the validation split of 'piqa'"):
        loaded(directory, tmp_path / "work", "piqa")


def test_a_task_without_a_local_format_is_refused(make_files: Files, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="'lambada_standard' cannot be read from local files"):
        loaded(make_files(1, "boolq_val.jsonl"), tmp_path / "work", "lambada_standard")


def test_a_directory_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="is not a directory"):
        loaded(tmp_path / "none", tmp_path / "work", "piqa")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match=r"found no \.jsonl file"):
        loaded(tmp_path / "empty", tmp_path / "work", "piqa")


BAD_ROWS: list[tuple[str, str, dict[str, Any], str]] = [
    ("arc_easy", "arc_easy_test.jsonl", {"answerKey": "E"}, "'E' is not one of the 4 labels"),
    ("arc_easy", "arc_easy_test.jsonl", {"choices": ["a"]}, "lists 'text' and 'label'"),
    ("arc_easy", "arc_easy_test.jsonl", {"question": 3}, "'question' must be a string, not int"),
    ("arc_easy", "arc_easy_test.jsonl", {"question": "\ud800"}, "half a surrogate pair"),
    ("hellaswag", "hellaswag_val.jsonl", {"label": 4}, "'label' must be a number from 0 to 3"),
    ("winogrande", "winogrande_validation.jsonl", {"answer": "3"}, "must be '1' or '2'"),
    ("winogrande", "winogrande_validation.jsonl", {"sentence": "no gap"}, "has no blank '_'"),
    ("copa", "copa_val.jsonl", {"question": "why"}, "'cause' or 'effect'"),
    ("mmlu_anatomy", "mmlu_test.jsonl", {"choices": ["a", "b"]}, "must hold 4 strings"),
    ("gsm8k", "gsm8k_test.jsonl", {"answer": "7"}, "must end in '#### <number>'"),
    ("lambada", "lambada_openai_test.jsonl", {"text": "alone"}, "at least two words"),
]


@pytest.mark.parametrize(("task", "name", "change", "message"), BAD_ROWS)
def test_bad_rows_name_the_file_and_the_line(
    make_files: Files,
    make_rows: Callable[[int], dict[str, Any]],
    tmp_path: Path,
    task: str,
    name: str,
    change: dict[str, Any],
    message: str,
) -> None:
    rows = make_rows(3)[name]
    rows[2] = {**rows[2], **change}
    directory = make_files(3, name, changes={name: rows})
    with pytest.raises(DataError, match=message) as caught:
        loaded(directory, tmp_path / "work", task, shots=0)
    assert f"{name}, line 3: " in str(caught.value)


def test_piqa_labels_must_be_as_many_as_rows(make_files: Files, tmp_path: Path) -> None:
    directory = make_files(3, "piqa_valid.jsonl")
    labels = directory / "piqa_valid-labels.lst"
    labels.write_text("0\n1\n0\n1\n")
    with pytest.raises(DataError, match="3 rows, but 4 labels"):
        loaded(directory, tmp_path / "work", "piqa")
    labels.unlink()
    with pytest.raises(DataError, match=r"line 1: no label: neither a field 'label' nor"):
        loaded(directory, tmp_path / "work", "piqa")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"goal": "g", \n', r"piqa_test\.jsonl, line 1: not JSON in UTF-8"),
        (b'{"goal": "\xff"}\n', r"piqa_test\.jsonl, line 1: not JSON in UTF-8"),
        (b"[1]\n", r"piqa_test\.jsonl, line 1: expected an object, not list"),
    ],
)
def test_broken_files_are_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "piqa_test.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        loaded(tmp_path / "data", tmp_path / "work", "piqa")


def test_a_cut_archive_is_reported(make_files: Files, tmp_path: Path) -> None:
    rows = {"piqa_test.jsonl.gz": [{"goal": "g" * 999, "sol1": "a", "sol2": "b", "label": 0}]}
    directory = make_files(1, "piqa_test.jsonl.gz", changes=rows)
    packed = directory / "piqa_test.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:30])
    with pytest.raises(DataError, match=r"piqa_test\.jsonl\.gz: cannot be read"):
        loaded(directory, tmp_path / "work", "piqa")


@pytest.mark.parametrize(("name", "shots"), [("arc_easy", 5), ("gsm8k", None), ("mmlu_anatomy", 3)])
def test_fewer_examples_than_asked_for(
    make_files: Files, tmp_path: Path, name: str, shots: int | None
) -> None:
    directory = make_files(4)
    there = 2 if name == "mmlu_anatomy" else 4
    message = (
        rf"'{name}' puts {shots or 5} solved .*\.jsonl has {there}\. Pass --num-fewshot {there}"
    )
    with pytest.raises(TaskError, match=message):
        loaded(directory, tmp_path / "work", name, shots=shots)
    fewer = loaded(directory, tmp_path / "fewer", name, shots=there)
    assert requests(fewer.tasks[name])


def test_examples_drawn_from_the_questions_themselves(
    monkeypatch: pytest.MonkeyPatch, make_files: Files, tmp_path: Path
) -> None:
    """Of a data set without a split for them: the one that is asked is left out, so one more."""
    task = loaded(make_files(4), tmp_path / "work", "arc_easy", shots=4).tasks["arc_easy"]
    monkeypatch.setattr(task.fewshot_cfg, "split", task.config.test_split)
    with pytest.raises(TaskError, match=r"its data set has 4 with the one .* --num-fewshot 3 or"):
        check_examples("arc_easy", task, None)
