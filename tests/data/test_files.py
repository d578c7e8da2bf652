"""From the names in a recipe to files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wuneng.data.files import file_kind, find_files, standard_library_files
from wuneng.errors import DataError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    for name in ("b.txt", "a.md", "sub/c.jsonl", "sub/d.jsonl.gz", ".git/x.txt", "e.rst", "f.PY"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return root


def test_directory_is_walked_in_order_without_hidden_and_unknown_files(corpus: Path) -> None:
    found = find_files([str(corpus)], "data.train")
    assert [str(p.relative_to(corpus)) for p in found] == [
        "a.md",
        "b.txt",
        "f.PY",
        "sub/c.jsonl",
        "sub/d.jsonl.gz",
    ]


def test_globs_files_and_repetitions(corpus: Path) -> None:
    sources = [f"{corpus}/**/*.jsonl", f"{corpus}/b.txt", f"{corpus}/*", str(corpus / "b.txt")]
    names = [path.name for path in find_files(sources, "data.train")]
    assert names == ["c.jsonl", "b.txt", "a.md", "f.PY"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "notes[1].txt"
    path.write_text("x")
    assert find_files([str(path)], "data.train") == [path]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("b.tx", r"data\.train: no file or directory '.*b\.tx'\. Did you mean 'b\.txt'\?"),
        ("*.parquet", r"data\.train: glob '.*\*\.parquet' finds no readable file \(no match\)"),
        ("*.rst", r"data\.train: glob .* \(the 1 matches are none of \.txt, "),
        ("e.rst", r"data\.train: .*e\.rst is of no kind that can be read; expected \.txt, "),
        ("empty", r"data\.train: directory .*empty holds no readable file; looked for \.txt"),
        ("void.txt", r"data\.train: .*void\.txt is empty"),
    ],
)
def test_errors_name_the_field_and_what_was_expected(
    corpus: Path, source: str, message: str
) -> None:
    (corpus / "empty").mkdir()
    (corpus / "void.txt").touch()
    with pytest.raises(DataError, match=message):
        find_files([str(corpus / source)], "data.train")


def test_a_data_set_name_is_told_how_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"write \{dataset: roneneldan/TinyStories\}"):
        find_files(["roneneldan/TinyStories"], "data.train")


def test_standard_library_is_the_library_alone() -> None:
    files = standard_library_files()
    names = {path.name for path in files}
    assert {"argparse.py", "dataclasses.py", "typing.py"} <= names
    assert files == find_files(["stdlib"], "data.train")
    for path in files:
        assert not {"site-packages", "test", "tests", "lib2to3"} & set(path.parts[-4:-1])
    beside = Path(os.__file__).parent
    assert all(path.is_relative_to(beside) for path in files)


def test_longest_suffix_decides_the_kind() -> None:
    assert file_kind(Path("x.jsonl.gz")) == ".jsonl.gz"
    assert file_kind(Path("x.JSON")) == ".json"
    assert file_kind(Path("x.gz")) is None
