"""RULER and BABILong: what the harness' task files leave to the task manager's metadata."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wuneng.errors import TaskError
from wuneng.evaluate.harness import _metric
from wuneng.evaluate.long_context import _essays_of, interleaved, length_metadata, seeded
from wuneng.evaluate.reader import Reader, open_reader
from wuneng.evaluate.task_loading import load_tasks


def reader(context: int | None = 4096) -> Reader:
    return Reader(Path("my-model"), lambda text, **_: {"input_ids": text.split()}, context)


def test_the_metadata_name_the_tokenizer_and_the_lengths() -> None:
    named = {"tokenizer": "my-model", "pretrained": "my-model"}
    assert length_metadata(reader(), None, ["ruler"]) == named
    assert length_metadata(reader(), [1024, 2048], ["ruler"]) == {
        **named,
        "max_seq_lengths": [1024, 2048],
    }
    assert length_metadata(reader(), [4096], ["babilong_qa1"])["max_seq_lengths"] == "4k"
    assert length_metadata(None, [4096], ["ruler"]) == {}


@pytest.mark.parametrize(
    ("lengths", "names"),
    [([1024, 2048], ["babilong"]), ([1000], ["babilong"]), ([1024], ["babilong", "ruler"])],
)
def test_lengths_that_babilong_does_not_have(lengths: list[int], names: list[str]) -> None:
    with pytest.raises(TaskError, match="--lengths: babilong takes one length, as 4k, in a call"):
        length_metadata(reader(), lengths, names)


def test_lengths_that_fit_the_model() -> None:
    assert reader(4096).fitting((1024, 4096, 8192)) == (1024, 4096)
    assert reader(512).fitting((1024, 4096)) == (512,)
    assert reader(None).fitting((1024, 4096)) == (1024, 4096)


def test_a_model_directory_is_read(llama_directory: Path, tmp_path: Path) -> None:
    found = open_reader(llama_directory)
    assert found is not None
    assert (found.context, found.count("naïve")) == (512, 6)
    assert open_reader(tmp_path) is None


def test_local_text_stands_for_the_essays(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("one two three")
    (tmp_path / "b.txt").write_text("four five")
    (tmp_path / "c.py").write_text("not = 'this'")
    asked: list[str] = []
    load = _essays_of(tmp_path, 11, lambda name, **_: asked.append(name))
    texts = load("baber/paul_graham_essays", split="train")["text"]
    assert sorted(set(texts)) == ["four five", "one two three"]
    assert 11 <= len(" ".join(texts).split()) <= 15, "as many words as the longest text has tokens"
    load("squad")
    assert asked == ["squad"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match=r"--data-dir: RULER hides .* has no \.txt or \.md file"):
        _essays_of(tmp_path / "empty", 9, None)("baber/paul_graham_essays")
    fetching = _essays_of(None, 9, lambda name, **_: asked.append(name))
    fetching("baber/paul_graham_essays")
    assert asked[-1] == "baber/paul_graham_essays"


def test_random_numbers_of_others_go_on() -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    with seeded():
        drawn = random.random()
    assert (random.random(), np.random.rand()) == expected
    with seeded():
        assert random.random() == drawn


def test_lengths_take_turns() -> None:
    import datasets

    rows = [{"index": i, "max_length": n} for n in (1024, 4096) for i in range(3)]
    task = SimpleNamespace(dataset={"test": datasets.Dataset.from_list(rows)})
    interleaved(task)
    assert task.dataset["test"]["max_length"] == [1024, 4096] * 3
    other = SimpleNamespace(dataset={"test": [1, 2]})
    interleaved(other)
    assert other.dataset["test"] == [1, 2]


def test_an_item_of_another_length_is_not_scored() -> None:
    """RULER marks it with -1, and its mean leaves that out."""

    def aggregate_metrics(scores: list[float]) -> float:
        raise AssertionError("is computed from the items")

    task: Any = SimpleNamespace(
        aggregation=lambda: {"4096": aggregate_metrics}, higher_is_better=lambda: {"4096": True}
    )
    rows = [{"4096": score} for score in (1.0, -1, 0.0, -1, 1.0)]
    scored = _metric("4096", rows, task)
    assert scored.kind == "ratio"
    assert scored.estimate().value == pytest.approx(2 / 3)


def test_a_missing_package_is_named(
    llama_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    with pytest.raises(TaskError, match=r"the package wonderwords: pip install 'wuneng\[ruler\]'"):
        load_tasks(["niah_single_1"], workspace=tmp_path, reader=open_reader(llama_directory))


def test_texts_that_never_fit_are_refused(llama_directory: Path, tmp_path: Path) -> None:
    """Bytes are short tokens: RULER would look for a text that is short enough for ever."""
    pytest.importorskip("wonderwords", reason="RULER's words are not installed")
    found = open_reader(llama_directory)
    with pytest.raises(TaskError, match="'ruler_vt': its solved example may have 500 tokens and"):
        load_tasks(["ruler_vt"], workspace=tmp_path, reader=found, lengths=[4096])
    with pytest.raises(TaskError, match=r"'ruler_cwe': its shortest text has about .* 1,024, as"):
        load_tasks(["ruler_cwe"], workspace=tmp_path, reader=found, lengths=[1024])
    with pytest.raises(TaskError, match=r"'niah_single_1': .* Raise `max_seq_lengths`"):
        load_tasks(["niah_single_1"], workspace=tmp_path, reader=found, lengths=[300], limit=1)


def test_ruler_without_network(wuneng: Any, tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("wonderwords", reason="RULER's words are not installed")
    text = tmp_path / "text"
    text.mkdir()
    (text / "mill.txt").write_text("The river ran past the mill. It was old, and nobody came. " * 9)
    result = wuneng(
        "eval", tiny("llama", context=8192), "--tasks", "niah_single_1,niah_single_2", "--data-dir",
        text, "--lengths", "4k,5k", "--limit", 4, "--out", tmp_path, "--log-samples",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    tasks = json.loads((tmp_path / "eval.json").read_text())["tasks"]
    for name in ("niah_single_1", "niah_single_2"):
        assert tasks[name]["n"] == 4
        assert set(tasks[name]["metrics"]) == {"4096", "5120"}
        assert "special magic number" in tasks[name]["items"][0]["prompt"]
    assert "the mill" in tasks["niah_single_2"]["items"][0]["prompt"]
