"""Reading documents out of each kind of file, and what is said when one is broken."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from wuneng.data.documents import read_documents
from wuneng.errors import DataError


def read(path: Path, text_field: str = "text") -> list[str]:
    return list(read_documents(path, text_field))


def test_text_file_is_one_document_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n\ntwo \xc3\xa9\n")
    assert read(path) == ["one\r\n\r\n\ntwo é\n"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    lines = '\ufeff{"text": "one\\ntwo"}\n\n  \n{"id": 3, "text": "é\u2028x"}\n{"text": ""}'
    content = lines.encode("utf-8")
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    # U+2028 ends a line for str.splitlines, but not in a JSON lines file.
    assert read(path) == ["one\ntwo", "é\u2028x"]


#: What text from elsewhere holds: line ends of every kind, NUL, a mark inside, letters outside BMP.
ODD = "a\r\nb\rc\x00d\u2028e\u2029f\x85g\x0bh\x0ci\ufeffj\x1ck\U0001f600l\ufffdm\x7f"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("escaped", [False, True])
def test_odd_characters_and_windows_lines(
    tmp_path: Path, mark: str, end: str, escaped: bool
) -> None:
    """Only a line feed ends a row, whatever str.splitlines thinks; the text stays as it is."""
    texts = [ODD, "second", ODD + "third\n"]
    rows = (json.dumps({"text": text}, ensure_ascii=escaped) for text in texts)
    path = tmp_path / "a.jsonl"
    path.write_bytes((mark + "".join(row + end for row in rows)).encode())
    assert read(path) == texts


def test_odd_characters_in_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(("\ufeff" + ODD + "\r\n").encode())
    assert read(path) == [ODD + "\r\n"]


def test_odd_characters_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": [ODD, "\ufeff" + ODD]}), path)
    assert [text.removeprefix("\ufeff") for text in read(path)] == [ODD, ODD]


def test_a_raw_nul_in_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a\x00b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: not valid JSON"):
        read(path)


def test_parquet_in_batches(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(1000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": texts, "n": range(1000)}), path, row_group_size=300)
    assert read(path, "body") == texts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"a\.jsonl, line 3: not valid JSON: Expecting ',' delimiter"),
        (b"[1, 2]", r"line 3: expected one JSON object a line, got list \[1, 2\]"),
        (b'{"txt": "x"}', r"line 3: no field 'text'; the fields are 'txt'\. Did you mean 'txt'\?"),
        (b"{}", r"line 3: no field 'text'; the fields are none\."),
        (b'{"text": 7}', r"line 3: field 'text' should be text, got int 7"),
        (b'{"text": null}', r"line 3: field 'text' should be text, got NoneType None"),
        (b'{"text": "\xff"}', r"line 3: expected UTF-8 text, got byte 0xff at offset 28$"),
        (b'{"text": "\\ud83d"}', r"line 3: field 'text' holds half a surrogate pair"),
        (b'{"text": 1,}', r"line 3: not valid JSON: [^:]* at column 1[12]$"),
        (b"[" * 100_000, r"line 3: not valid JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", r"line 3: not valid JSON: Exceeds the limit"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n\n' + line + b'\n{"text": "last"}\n')
    if b"\xff" in line:
        assert path.read_bytes().index(b"\xff") == 29
        message = message.replace("28", "29")
    with pytest.raises(DataError, match=message):
        read(path)


def test_text_that_is_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\nna\xefve\n")
    with pytest.raises(
        DataError, match=r"latin\.txt, line 3: expected UTF-8 text, got byte 0xef at offset 13"
    ):
        read(path)


def test_cut_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress("".join(json.dumps({"text": f"{i}"}) + "\n" for i in range(999)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: damaged or cut gzip file"):
        read(path)
    path.write_bytes(b"no archive at all")
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: damaged or cut gzip file"):
        read(path)


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "gone.txt"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read: No such file"):
        read(path)


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"content": ["x"], "n": [1]}), path)
    with pytest.raises(DataError, match=r"no field 'contents'; .*Did you mean 'content'\?"):
        read(path, "contents")
    with pytest.raises(DataError, match=r"a\.parquet, row 1: field 'n' should be text, got int 1"):
        read(path, "n")
    path.write_bytes(b"PAR1 but nothing else")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable parquet file"):
        read(path)


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    offsets = arrow.array([0, 3, 5], arrow.int32()).buffers()[1]
    text = arrow.Array.from_buffers(
        arrow.string(), 2, [None, offsets, arrow.py_buffer(b"one\xff\xfe")]
    )
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": text}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 2: expected UTF-8 text, got other bytes"):
        read(path)


def test_a_packed_line_of_three_gigabytes(tmp_path: Path) -> None:
    """Three thousand members of a megabyte each, three megabytes in all, and no end of a line."""
    member = gzip.compress(b"x" * (1 << 20), 9, mtime=0)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(member * 3000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.jsonl\.gz, line 1: longer than 128 MiB"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 30
    finally:
        tracemalloc.stop()
