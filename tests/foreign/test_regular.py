"""A pipe in the place of a file is refused by every reader; none waits for somebody to write."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wuneng.errors import DamagedError, DataError, ModelError, RecipeError, WuNengError
from wuneng.foreign import check_index, code_reference
from wuneng.foreign.regular import open_regular, read_regular_text
from wuneng.records import CHECKSUMS, read_json, read_jsonl, verify
from wuneng_cli.main import app

RUN = Path(__file__).parents[1] / "fixtures" / "run"


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """A reader that waits fails the test instead of the suite."""

    def late(*_: object) -> None:
        raise TimeoutError("a reader waits for somebody to write into the pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_what_a_regular_file_holds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("dé\n".encode())
    (tmp_path / "link").symlink_to("a")
    assert read_regular_text(tmp_path / "link") == "dé\n"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "b")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="expected a regular file"):
        open_regular(Path("/dev/zero"))


def _checks(path: Path) -> bool:
    return verify(path.parent)


def _listed(path: Path) -> bool:
    written = {path.name: {"sha256": "0", "bytes": 0}}
    (path.parent / CHECKSUMS).write_text(json.dumps({"schema": 1, "files": written}))
    return verify(path.parent)


def _recipe(path: Path) -> object:
    from wuneng.recipe import load_recipe

    return load_recipe(path)


def _documents(path: Path) -> object:
    from wuneng.data.documents import read_documents

    return list(read_documents(path, "text"))


def _source(path: Path) -> object:
    from wuneng.data.sources import open_source

    (path.parent / "other.txt").write_text("words")
    return open_source([str(path.parent)], "data.train", "text", None).content_key()


def _named(path: Path) -> object:
    from wuneng.data.files import find_files

    return find_files([str(path)], "data.train")


def _vocabulary(path: Path) -> object:
    from wuneng.convert.rwkv_tokenizer import read_vocabulary

    return read_vocabulary(path)


def _object(path: Path) -> object:
    from wuneng.convert.tensor_files import read_json_object

    return read_json_object(path)


READERS: dict[str, tuple[str, Callable[[Path], object], type[WuNengError]]] = {
    "a record": ("eval.json", read_json, DataError),
    "metrics": ("metrics.jsonl", read_jsonl, DataError),
    "checksums": (CHECKSUMS, _checks, DamagedError),
    "a file with a checksum": ("empty.txt", _listed, DamagedError),
    "a recipe": ("r.yaml", _recipe, RecipeError),
    "text": ("a.txt", _documents, DataError),
    "lines": ("a.jsonl", _documents, DataError),
    "packed lines": ("a.jsonl.gz", _documents, DataError),
    "a text among others": ("a.txt", _source, DataError),
    "a text by name": ("a.txt", _named, DataError),
    "a vocabulary": ("rwkv_vocab_v1.txt", _vocabulary, ModelError),
    "a configuration": ("config.json", _object, ModelError),
    "weights": ("model.safetensors", lambda path: check_index(path.parent), ModelError),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_refused(reader: str, tmp_path: Path) -> None:
    name, read, error = READERS[reader]
    os.mkfifo(tmp_path / name)
    with pytest.raises(error, match=name) as caught:
        read(tmp_path / name)
    said = str(caught.value)
    assert "regular file" in said or "bytes" in said or "holds no checksums" in said
    assert "does not exist" not in said


def test_files_that_only_tell_more_are_passed_over(tmp_path: Path) -> None:
    from wuneng.evaluate.loading import without_tokenizer

    for name in ("convert.json", "config.json", "model.safetensors.index.json"):
        os.mkfifo(tmp_path / name)
    assert "has no tokenizer (tokenizer.json)" in without_tokenizer(tmp_path)
    assert code_reference(tmp_path) is None
    check_index(tmp_path)


def test_a_conversion_record_nested_without_end_says_nothing(tmp_path: Path) -> None:
    from wuneng.evaluate.loading import without_tokenizer

    (tmp_path / "convert.json").write_text("[" * 100_000)
    assert "has no tokenizer (tokenizer.json)" in without_tokenizer(tmp_path)


def test_a_piped_environment_never_blocks_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RUN, "run")
    Path("run/environment.json").unlink(missing_ok=True)
    os.mkfifo("run/environment.json")
    done = CliRunner().invoke(app, ["train", "run/recipe.yaml", "--resume", "run", "-q"])
    assert done.exit_code == 0, done.output
    assert "python" in read_json(Path("run/environment.json"))


def test_a_checksum_of_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("\ud800", "a\0b"):
        written = {name: {"sha256": "0", "bytes": 1}}
        (tmp_path / CHECKSUMS).write_text(json.dumps({"schema": 1, "files": written}))
        with pytest.raises(DamagedError, match="it holds no checksums any more"):
            verify(tmp_path)
    os.rename(tmp_path / CHECKSUMS, tmp_path / "old")
    name = os.fsdecode(b"caf\xe9.txt")  # bytes that are not UTF-8 are a name all the same
    written = {name: {"sha256": "0", "bytes": 1}}
    (tmp_path / CHECKSUMS).write_text(json.dumps({"schema": 1, "files": written}))
    with pytest.raises(DamagedError, match="missing"):
        verify(tmp_path)
