"""Stories whose answer is a state: solved from their text alone, balanced, the same for a seed."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import state_stories

NUMBER = 4000


def lamp(text: str) -> str:
    pushes = len(re.findall("push", text))
    return ("on", "off")[(pushes + ("is off." in text)) % 2]


def cups(text: str) -> str:
    order = {cup: cup for cup in ("red", "blue", "green")}  # where what began there is
    for one, other in re.findall(r"swap (\w+) (\w+)", text):
        for start, place in order.items():
            order[start] = {one: other, other: one}.get(place, place)
    return order[re.findall(r"ball is (\w+)\.", text)[0]]


def boxes(text: str) -> str:
    asked = re.findall(r"Now the (\w+) is in$", text)[0]
    place = re.findall(rf"the {asked} in (\w+)", text)[0]
    for one, other in re.findall(r"move (\w+) (\w+)", text):
        place = other if place == one else place
    return str(place)


def rooms(text: str) -> str:
    asked = re.findall(r"The (\w+) is now in the$", text)[0]
    place, holder, at = "", "", {}
    for line in text.split(". "):
        words = line.split()
        if words[0] == "The" and words[1] == asked and words[2:4] == ["is", "in"]:
            place = words[-1]
        elif words[0] != "The" and words[1] in ("is", "goes"):
            at[words[0]] = words[-1]
        elif words[-1].rstrip(".") == asked:
            holder = words[0] if words[1] == "takes" else ""
        place = at[holder] if holder else place
    return place


def fact(text: str) -> str:
    asked = re.findall(r"(\w+) has a hat that is$", text)[0]
    return str(re.findall(rf"{asked} has a (\w+) hat", text)[0])


SOLVERS = {"lamp": lamp, "cups": cups, "boxes": boxes, "rooms": rooms, "fact": fact}


@pytest.mark.parametrize("kind", state_stories.KINDS)
def test_the_answer_follows_from_the_story(kind: str) -> None:
    draw = random.Random(0)
    stories = [state_stories.KINDS[kind](draw) for _ in range(NUMBER)]
    assert [SOLVERS[kind](text) for text, _ in stories] == [answer for _, answer in stories]
    counts = Counter(answer for _, answer in stories)
    assert len(counts) > 1
    share = counts.most_common(1)[0][1] / NUMBER
    assert share < 1 / len(counts) + 0.03, "one answer is more frequent"
    assert len({text for text, _ in stories}) > NUMBER / 3
    assert max(len(text.split()) for text, _ in stories) < 130


@pytest.mark.parametrize("kind", ["boxes", "rooms"])
def test_what_was_named_last_is_no_answer(kind: str) -> None:
    """Who answers with the place that the last line names, or the first of the thing, guesses."""
    draw = random.Random(1)
    stories = [state_stories.KINDS[kind](draw) for _ in range(NUMBER)]
    answers = {answer for _, answer in stories}
    named = [re.findall("|".join(answers), text) for text, _ in stories]
    last = sum(found[-1] == answer for found, (_, answer) in zip(named, stories, strict=True))
    assert last / NUMBER < 0.6
    first = sum(found[0] == answer for found, (_, answer) in zip(named, stories, strict=True))
    assert first / NUMBER < 0.5


def test_a_seed_gives_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_stories, "STORIES", 20)
    contents = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        file = tmp_path / f"{name}.jsonl"
        monkeypatch.setattr(sys, "argv", ["x", "boxes", str(file), "--seed", seed])
        state_stories.main()
        contents.append(file.read_text())
        rows = [json.loads(line) for line in contents[-1].splitlines()]
        assert len(rows) == 20
        assert all(set(row) == {"question", "answer"} for row in rows)
    assert contents[0] == contents[1] != contents[2]
