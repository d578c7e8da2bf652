"""What the code and its texts name is there: modules and what they define, documents."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.test_import_direction import FLOORS, ROOT, sources

_DOTTED = re.compile(r"``?(wuneng(?:_cli)?(?:\.\w+)+)(?:\(\))?``?")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
_DOCUMENT = re.compile(r"\b[\w/-]+\.md\b")
#: Documents of other projects, and those that a program writes beside a model or a result.
_ELSEWHERE = ("README.md", "README-source.md", "README-source-2.md", "README-source-3.md")


def texts() -> Iterator[tuple[Path, int, str]]:
    """(file, line number, line) of the package, its tests and its documents."""
    folders = ("wuneng", "wuneng_cli", "tests", "benchmarks", "docs")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    for path in [*found, *ROOT.glob("*.md")]:
        if path.suffix in (".py", ".md") and path != Path(__file__):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                yield path.relative_to(ROOT), number, line


@cache
def defined(module: str) -> frozenset[str]:
    """Names that a module defines or imports, and ``Class.attribute`` of its classes."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(sources()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return frozenset(names)


def is_there(name: str, modules: dict[str, Path]) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if module in modules:
            return all(part in defined(module) for part in parts[length:])
    return False


def test_every_floor_has_its_rooms() -> None:
    modules = sources()
    gone = [name for floor in FLOORS for name in floor if name not in modules]
    assert not gone, f"floors stated for rooms that are not there: {gone}"


def test_modules_and_names_that_texts_mention_exist() -> None:
    modules = sources()
    dead = [
        f"{path}:{line}: {name}"
        for path, line, text in texts()
        for name in _DOTTED.findall(text)
        if not is_there(name, modules)
    ]
    assert not dead, "\n".join(dead)


def test_documents_that_texts_mention_exist() -> None:
    dead = [
        f"{path}:{line}: {name}"
        for path, line, text in texts()
        for name in _DOCUMENT.findall(text)
        if name not in _ELSEWHERE
        and path.parts[0] != "tests"  # tests write files of their own
        and not any((place / name).is_file() for place in (ROOT, ROOT / "docs", ROOT / path.parent))
    ]
    assert not dead, "\n".join(dead)


def test_what_is_not_there_is_found() -> None:
    modules = sources()
    assert is_there("wuneng.records.find_model", modules)
    assert is_there("wuneng.train.run.Results", modules)
    assert not is_there("wuneng.no_such_room", modules)
    assert not is_there("wuneng.train.run.no_such_name", modules)


def test_every_promise_names_tests_that_exist() -> None:
    """In the tables of docs/reliability.md, as ``tests/file.py::test_name``."""
    rows = [
        line
        for line in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| promise")
    ]
    assert len(rows) > 30
    for row in rows:
        named = _TEST.findall(row)
        assert named, f"no test: {row}"
        for file, name in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            assert name in found, f"{file} has no {name}"
