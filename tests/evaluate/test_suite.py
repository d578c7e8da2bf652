"""`wuneng-suite`: generated tasks in words, their levels, and what guessing gets right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from wuneng.errors import TaskError
from wuneng.evaluate.suite import MEMBERS, NEEDLE, suite_members
from wuneng.evaluate.suite.members import FORMS
from wuneng.evaluate.suite.needle_form import needle_form
from wuneng.evaluate.suite.question import Form, questions
from wuneng.evaluate.suite.writing import suite_items
from wuneng.evaluate.task_loading import load_tasks


def bytes_of(text: str) -> int:
    return len(text.encode("utf-8"))


def form_of(name: str) -> Form:
    return FORMS[name] if name in FORMS else needle_form((1024, 3000), bytes_of)


@pytest.fixture(scope="module", params=MEMBERS)
def member(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_suite_has_every_kind_of_task() -> None:
    kinds = {type(level.settings).__name__ for name in MEMBERS for level in form_of(name).levels}
    assert len(kinds) == 11
    assert suite_members("wuneng-suite") == MEMBERS
    assert suite_members("wuneng-suite-s5") == ("wuneng-suite-s5",)
    assert suite_members("arc") == ()


def test_items_are_the_same_every_time_and_shown_examples_are_not_among_them(member: str) -> None:
    form = form_of(member)
    items = suite_items(member, form)
    assert items == suite_items(member, form)
    prompts = [row["prompt"] for rows in items.values() for row in rows]
    assert len(set(prompts)) == len(prompts)
    assert len(items["test"]) == form.items * len(form.levels)
    values = [level.value for level in form.levels]
    assert [row["level"] for row in items["test"][: len(values)]] == values
    for rows in items.values():
        for row in rows:
            assert len(set(row["choices"])) == len(row["choices"])
            assert 0 <= row["answer"] < len(row["choices"])
            assert "Answer:" in row["prompt"]


def test_no_choice_is_a_better_guess_than_another(member: str) -> None:
    form = form_of(member)
    for level in (form.levels[0], form.levels[-1]):
        asked = questions(member, form, level, 150, set())
        chance = 1 / len(asked[0].choices)
        # Within four standard errors of a share of 150.
        bound = chance + 4 * (chance * (1 - chance) / len(asked)) ** 0.5
        by_place = Counter(question.answer for question in asked)
        by_word = Counter(question.choices[question.answer] for question in asked)
        assert by_place.most_common(1)[0][1] / len(asked) <= bound
        if "addition" not in member:
            assert by_word.most_common(1)[0][1] / len(asked) <= bound


def lines(prompt: str) -> list[str]:
    return prompt.split("\n")


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.replace(".", " ").split() if word.isdigit()]


def parity(prompt: str) -> str:
    return ("even", "odd")[sum(numbers(lines(prompt)[0])) % 2]


def counter(prompt: str) -> str:
    return str(sum(numbers(prompt.split("again: ")[1])) % 7)


def cards(prompt: str) -> str:
    place = 1
    for move in lines(prompt)[1].removeprefix("Moves: (").removesuffix(")").split(") ("):
        place = numbers(move)[place - 1]
    return str(place)


def boxes(prompt: str) -> str:
    holds: dict[str, str] = {}
    for sentence in lines(prompt)[0].removesuffix(".").split(". "):
        words = sentence.split()
        if words[0] == "Box":
            holds[words[1]] = words[-1]
        else:
            one, other = words[5], words[8]
            holds[one], holds[other] = holds[other], holds[one]
    return holds[lines(prompt)[1].split()[3]]


def addition(prompt: str) -> str:
    return str(sum(numbers(prompt)))


def compose(prompt: str) -> str:
    meanings, steps = prompt.split("Count modulo 4")
    means = {w[0]: w[2] for w in (s.split() for s in meanings.split(".")) if w}
    return means[str(sum(numbers(steps.split("again: ")[1])) % 4)]


def recall(prompt: str) -> str:
    said = dict(sentence.split(" is ") for sentence in lines(prompt)[0].rstrip(".").split(". "))
    return said[lines(prompt)[1].split()[2].rstrip("?").capitalize()]


def chain(prompt: str) -> str:
    said = lines(prompt)[0].removeprefix("Arrows: ").rstrip(".").split(", ")
    follows = dict(arrow.split(" to ") for arrow in said)
    words = lines(prompt)[1].split()
    found = words[2]
    for _ in range(1 if words[-1] == "once." else int(words[-2])):
        found = follows[found]
    return found


def brackets(prompt: str) -> str:
    stack: list[str] = []
    for bracket in lines(prompt)[0].removeprefix("Brackets: ").split():
        if bracket in "([{<":
            stack.append(bracket)
        else:
            assert dict(zip(")]}>", "([{<", strict=True))[bracket] == stack.pop()
    return dict(zip("([{<", ")]}>", strict=True))[stack[-1]]


def copy(prompt: str) -> str:
    letters = [w for w in lines(prompt)[0].removeprefix("Letters: ").split() if w != "-"]
    return letters[numbers(lines(prompt)[1].rstrip("?"))[0] - 1]


def induction(prompt: str) -> str:
    words = lines(prompt)[0].removeprefix("Words: ").split()
    return words[words.index(lines(prompt)[1].split()[-1].rstrip("?")) + 1]


def functions(prompt: str) -> str:
    said = prompt.split(": ")[1].replace("f(", "").replace(")", "")
    (x, y), *_ = [pair.split(" = ") for pair in said.split(", ") if " = " in pair]
    asked = said.split(", ")[-1].split()[0]
    return str((int(asked) + int(y) - int(x)) % 13)


def needle(prompt: str) -> str:
    return prompt.split("The password is ")[1].split(".")[0]


#: What a reader of the words alone would answer.
READERS = {
    "parity": parity, "counter": counter, "s3": cards, "s5": cards, "boxes": boxes,
    "addition": addition, "compose": compose, "recall": recall, "chain": chain,
    "brackets": brackets, "copy": copy, "induction": induction, "functions": functions,
    "needle": needle,
}  # fmt: skip


def test_a_reader_of_the_words_finds_every_answer(member: str) -> None:
    reader = READERS[member.removeprefix("wuneng-suite-")]
    for rows in suite_items(member, form_of(member)).values():
        for row in rows:
            assert reader(row["prompt"]) == row["choices"][row["answer"]], row["prompt"]


@pytest.mark.parametrize("length", [1024, 4096, 20_000])
def test_needles_have_the_length_asked_for(length: int) -> None:
    form = needle_form((length,), bytes_of)
    asked = questions(NEEDLE, form, form.levels[0], 20, set())
    sizes = [bytes_of(question.prompt) for question in asked]
    assert max(sizes) <= length
    assert min(sizes) > length - 150
    depths = [question.prompt.index("The password is") / length for question in asked]
    assert min(depths) < 0.3
    assert max(depths) > 0.7


def test_a_level_with_too_few_different_questions_is_refused() -> None:
    form = FORMS["wuneng-suite-parity"]
    with pytest.raises(TaskError, match="has no 300 different questions of 8 bits"):
        questions("wuneng-suite-parity", form, form.levels[0], 300, set())


def test_a_misspelt_member_gets_near_ones(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="Did you mean 'wuneng-suite-parity'"):
        load_tasks(["wuneng-suite-partiy"], workspace=tmp_path)
    with pytest.raises(TaskError, match="lengths are counted in tokens of a tokenizer"):
        load_tasks([NEEDLE], workspace=tmp_path)


def test_the_suite_from_the_command_line(
    wuneng: Any, wuneng_directory: Path, llama_directory: Path, tmp_path: Path
) -> None:
    result = wuneng(
        "eval", wuneng_directory, "--baseline", llama_directory, "--tasks",
        "wuneng-suite-parity,wuneng-suite-needle", "--limit", 10, "--num-fewshot", 1, "--out",
        tmp_path, "--log-samples",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "wuneng-suite-parity: acc by bits (baseline's behind): 8: " in result.stdout
    assert "wuneng-suite-needle: 512 tokens" in result.stdout
    tasks = json.loads((tmp_path / "eval.json").read_text())["tasks"]
    assert set(tasks) == {"wuneng-suite-parity", "wuneng-suite-needle"}
    record = tasks["wuneng-suite-parity"]
    assert (record["n"], record["chance"], record["source"]) == (10, 0.5, "generated")
    assert record["num_fewshot"] == 1
    levels = record["by_level"]
    assert levels["name"] == "bits"
    assert [(level["value"], level["n"]) for level in levels["levels"]] == [
        (bits, 2) for bits in (8, 16, 32, 64, 128)
    ]
    whole = record["metrics"]["acc"]
    parts = [level["metrics"]["acc"] for level in levels["levels"]]
    for side in ("model", "baseline", "difference"):
        assert sum(part[side] for part in parts) / 5 == pytest.approx(whole[side])
    assert all(part["p_holm"] is None for part in parts), "levels are part of no correction"
    assert record["items"][0]["prompt"].count("Answer:") == 2, "one solved example before it"
