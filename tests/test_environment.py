"""Every environment variable that the sources read or set is explained in docs/environment.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from wuneng.ops.backend import BACKENDS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
#: Names of ours, and of others where a file has to do with the environment at all.
OURS = re.compile(r"WUNENG_[A-Z0-9_]+")
NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


def documented() -> set[str]:
    cells = (line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `"))
    return {name for cell in cells for name in re.findall(r"`([A-Z0-9_]+)`", cell)}


def names_in(source: str) -> set[str]:
    """Variables in Python source: in what asks ``os.environ``, and texts that look like one."""
    tree = ast.parse(source)
    texts = set(_texts(tree))
    asks = re.search(r"\bos\.(environ|getenv)\b", source)
    pattern = NAME if asks else OURS
    return {text for text in texts if pattern.fullmatch(text)} | set(_asked(tree))


def _texts(node: ast.AST) -> Iterator[str]:
    """All texts but the names of constants in ``__all__`` and what ``os.sysconf`` is asked for."""
    others = isinstance(node, ast.Assign | ast.Call | ast.Compare) and ast.unparse(node)
    if others and (
        others.startswith("__all__ =") or re.search(r"^os\.sysconf|os\.sysconf_names$", others)
    ):
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from _texts(child)


def _asked(tree: ast.AST) -> Iterator[str]:
    """``os.environ["CC"]``, ``os.environ.get("CC")``, ``"CC" in os.environ``, ``os.getenv``."""
    for node in ast.walk(tree):
        keys: list[ast.expr] = []
        if isinstance(node, ast.Subscript):
            owner, keys = node.value, [node.slice]
        elif isinstance(node, ast.Call):
            owner, keys = node.func, node.args[:1]
        elif isinstance(node, ast.Compare):
            owner, keys = node.comparators[-1], [node.left]
        else:
            continue
        if re.search(r"\bos\.(environ|getenv)\b", ast.unparse(owner)):
            yield from (str(key.value) for key in keys if isinstance(key, ast.Constant))


def found(*rooms: str) -> dict[str, str]:
    paths = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    return {
        name: str(path.relative_to(ROOT))
        for path in paths
        for name in names_in(path.read_text(encoding="utf-8"))
    }


def test_every_variable_is_documented() -> None:
    missing = {k: v for k, v in found("wuneng", "wuneng_cli").items() if k not in documented()}
    assert missing == {}, "explain it in docs/environment.md"


def test_variables_of_tests_and_benchmarks_are_documented() -> None:
    names = {name for name in found("tests", "benchmarks") if OURS.fullmatch(name)}
    assert names - {"WUNENG_SAMPLE"} - documented() == set()


def test_c_sources_read_no_variable() -> None:
    sources = [*ROOT.glob("wuneng/**/*.c"), *ROOT.glob("wuneng/**/*.h")]
    assert sources
    assert [path for path in sources if "getenv" in path.read_text(encoding="utf-8")] == []


def test_every_documented_variable_is_in_the_sources() -> None:
    assert documented() - set(found("wuneng", "wuneng_cli", "tests")) == set()
    assert len(documented()) > 15, "the rows of the page are found"


def test_the_row_of_the_backend_names_every_one() -> None:
    [row] = [line for line in PAGE.splitlines() if line.startswith("| `WUNENG_BACKEND`")]
    assert [name for name in BACKENDS if f"`{name}`" not in row] == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('import os\nos.environ.get("CC")', {"CC"}),
        ('import os\nx = os.environ["HOME"]', {"HOME"}),
        ('import os\n"CC" in os.environ', {"CC"}),
        ('import os\nos.getenv("SHELL", "")', {"SHELL"}),
        ('import os\nNAMES = ("WORLD_SIZE",)\n[os.environ[n] for n in NAMES]', {"WORLD_SIZE"}),
        ('import os\nos.environ.setdefault("A_B", "1")', {"A_B"}),
        ('NAME = "WUNENG_SAMPLE"', {"WUNENG_SAMPLE"}),
        ('NAME = "NOT_ONE"', set()),
        ('import os\n__all__ = ["A_B"]\nos.environ["C_D"] = os.sysconf("E_F")', {"C_D"}),
    ],
)
def test_variables_are_found_however_they_are_read(source: str, names: set[str]) -> None:
    assert names_in(source) == names
