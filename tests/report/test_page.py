"""The page itself: one file, well formed, with words for every picture, and nothing obeyed."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.made_up import write_run
from wuneng.errors import DataError, InputError
from wuneng.report import build_report, write_report
from wuneng.report.records import read_records

_VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)> $x^2$ \x1b[2J \u202e"


class Page(HTMLParser):
    """Every tag with its attributes; fails on one that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(place: Path) -> str:
    return (place / "report.html").read_text(encoding="utf-8")


def check_page(text: str) -> Page:
    """Well formed, ids that are its own and lead somewhere, no script and no way out."""
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "object", "embed", "image"} & set(names)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        assert not any(key.startswith("on") for key in attrs)
        for key in ("href", "src", "xlink:href", "srcset", "data", "action"):
            assert key not in attrs or str(attrs[key]).removeprefix("#") in ids
    assert not re.search(r"https?:|//\w|@import|javascript:", text)
    assert {found[1] for found in re.finditer(r"url\((#?)", text)} <= {"#"}
    return page


def test_it_is_one_file_that_asks_for_nothing(reported: Path) -> None:
    text = page_of(reported)
    check_page(text)
    assert text.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "width=device-width" in text
    assert "Not in these records" not in text


def test_every_picture_has_words(reported: Path) -> None:
    page = check_page(page_of(reported))
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    [part] = json.loads((reported / "report.json").read_text())["parts"]
    alts = [picture["alt"] for section in part["sections"] for picture in section["pictures"]]
    assert len(pictures) == len(alts) > 12
    titles = re.findall(r'<title id="([^"]+)">([^<]+)</title>', page_of(reported))
    assert [title for title, _ in titles] == [attrs["aria-labelledby"] for attrs in pictures]
    assert all(attrs["role"] == "img" for attrs in pictures)
    assert all(len(words) > 20 for _, words in titles)


def test_series_follow_the_theme(reported: Path) -> None:
    text = page_of(reported)
    used = set(re.findall(r"var\(--(c\w{6})\)", text))
    assert {"c0072b2", "cd55e00", "c111111"} <= used
    for name in used:
        assert text.count(f"--{name}: #") == 3, "light, dark and print"
    assert not re.search(r'style="[^"]*#0072b2', text, re.IGNORECASE)


def test_what_others_wrote_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    place = write_run(tmp_path / "run", name=HOSTILE)
    for file in ("results.json", "eval.json", "controls.json", "bench.json"):
        record = json.loads((place / file).read_text())
        text = json.dumps(record).replace('"mha"', json.dumps(HOSTILE))
        for name in ("copa", "parity", "zero", "my recipe"):
            text = text.replace(f'"{name}"', json.dumps(f"{name} {HOSTILE}"))
        (place / file).write_text(text)
    records = read_records(place)
    assert HOSTILE in records.arms
    report = build_report([records])
    write_report(report, place)
    text = page_of(place)
    check_page(text)
    assert "&lt;script&gt;" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    written = write_report(report, place, "md").read_text(encoding="utf-8")
    assert "\\<script\\>" in written
    assert not re.search(r"(?<!\\)<script", written)


@pytest.mark.parametrize("form", ["html", "md"])
def test_half_a_surrogate_pair_in_a_record_is_no_reason_to_fail(tmp_path: Path, form: str) -> None:
    """JSON can spell it, UTF-8 cannot: a finished command ended in a traceback over its page."""
    place = write_run(tmp_path / "run")
    half = "3\ud800"
    for file in ("environment.json", "bench.json"):
        record = json.loads((place / file).read_text())
        record["python"] = half
        for row in record.get("rows") or ():
            row["arm"] = half
        (place / file).write_text(json.dumps(record))
    page = write_report(build_report([read_records(place)]), place, form)
    assert "ud800" in page.read_text(encoding="utf-8")


def test_what_is_not_recorded_is_left_out_and_said(tmp_path: Path) -> None:
    place = write_run(tmp_path / "run", seeds=(7,))
    for file in ("eval.json", "controls.json", "bench.json"):
        (place / file).unlink()
    report = build_report([read_records(place)])
    write_report(report, place)
    text = page_of(place)
    assert "one seed, so no verdict can be given" in text
    assert "One seed: there is no interval over seeds." in text
    assert "Not in these records: paired differences, evaluation tasks, controls, a map of" in text
    keys = {section.key for section in report.parts[0].sections}
    assert not keys & {"differences", "tasks", "controls", "heads", "speed", "ablations"}
    [row] = next(s for s in report.parts[0].sections if s.key == "answer").rows
    assert (row["low"], row["high"]) == (None, None)


def test_a_run_that_is_not_finished_has_its_curves(tmp_path: Path) -> None:
    place = write_run(tmp_path / "run")
    for file in place.glob("*.json"):
        file.unlink()
    report = build_report([read_records(place)])
    sections = {section.key: section for section in report.parts[0].sections}
    assert set(sections) == {"answer", "curves", "tokens-saved", "settings"}
    assert "The run is not finished" in sections["answer"].text[0]


def test_a_run_of_an_earlier_version(repository: Path, tmp_path: Path) -> None:
    report = build_report([read_records(repository / "tests" / "fixtures" / "run")])
    write_report(report, tmp_path)
    check_page(page_of(tmp_path))
    assert "no verdict can be given" in page_of(tmp_path)


def test_several_directories_on_one_page(tmp_path: Path) -> None:
    first, other = (write_run(tmp_path / name, name=name, seeds=(1,)) for name in ("one", "two"))
    for place in (first, other):
        for file in ("controls.json", "bench.json", "results.json"):
            (place / file).unlink()
    report = build_report([read_records(first), read_records(other)])
    out = tmp_path / "both"
    out.mkdir()
    write_report(report, out)
    check_page(page_of(out))
    names = {file.name for file in (out / "report-data").iterdir()}
    assert {"1-curves.csv", "2-curves.csv"} <= names


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", "[]", "expected an object, got list"),
        ("results.json", '{"arms": 3}', "has no arms"),
        ("results.json", '{"kind": "study", "arms": {}}', "has no rungs"),
        ("results.json", '{"kind": "other", "arms": {}}', "has no known kind"),
        ("results.json", '{"kind": "study", "rungs": [1]}', "records are not as this version"),
        ("results.json", '{"arms": {"mha": {"quality": 3}}}', "records are not as this version"),
        ("eval.json", '{"tasks": {"copa": {}}}', "records are not as this version"),
        ("bench.json", "{", "not valid JSON"),
        ("controls.json", '{"tasks": {"a": {"metrics": 1}}}', "records are not as this version"),
    ],
)
def test_a_damaged_record_is_one_message(
    file: str, content: str, message: str, tmp_path: Path
) -> None:
    place = write_run(tmp_path / "run")
    (place / file).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        write_report(build_report([read_records(place)]), place)
    assert str(place) in str(error.value)


def test_a_linked_directory_of_numbers_is_not_written_through(tmp_path: Path) -> None:
    place = write_run(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.csv").write_text("kept")
    (place / "report-data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        write_report(build_report([read_records(place)]), place)
    assert (tmp_path / "elsewhere" / "mine.csv").read_text() == "kept"


def test_numbers_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    place = write_run(tmp_path / "run")
    write_report(build_report([read_records(place)]), place, "md")
    assert (place / "report-data" / "controls.csv").exists()
    (place / "controls.json").unlink()
    write_report(build_report([read_records(place)]), place, "md")
    assert not (place / "report-data" / "controls.csv").exists()


def test_curves_lie_in_the_run(reported: Path) -> None:
    assert (reported / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (reported / "curves.svg").read_bytes()
