"""Imports run downward only, between the floors stated here, and never in a circle."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: From top to bottom. A room may import rooms of lower floors, and rooms beside it.
FLOORS: list[set[str]] = [
    {"wuneng_cli"},
    {"wuneng.bench", "wuneng.evaluate", "wuneng.convert", "wuneng.report", "wuneng.inspect"},
    {"wuneng.study"},
    {"wuneng.train"},
    {"wuneng.controls", "wuneng.data", "wuneng.synthetic"},
    {"wuneng.model"},
    {"wuneng.layers"},
    {"wuneng.ops"},
    {"wuneng.tables", "wuneng.pictures", "wuneng.distributed"},
    {
        "wuneng.recipe",
        "wuneng.records",
        "wuneng.statistics",
        "wuneng.device",
        "wuneng.errors",
        "wuneng.foreign",
        "wuneng.hub",
        "wuneng.built_in_arms",
        "wuneng.default_wiring",
        "wuneng.head_counts",
        "wuneng.kinds",
        "wuneng.layer_pattern",
        "wuneng.limits",
        "wuneng.older_files",
    },
]

#: Rooms whose modules must be importable without these.
LIGHT_ROOMS = (
    *("wuneng.tables", "wuneng.pictures"),
    *sorted(FLOORS[-1] - {"wuneng.statistics", "wuneng.device"}),
)
HEAVY = ("torch", "transformers", "numpy", "datasets", "lm_eval")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    found = [p for package in ("wuneng", "wuneng_cli") for p in (ROOT / package).rglob("*.py")]
    return {module_name(path): path for path in sorted(found)}


def imports(
    path: Path, modules: dict[str, Path], *, for_types: bool = False
) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether it runs when the file is imported) of every import that runs, and with
    ``for_types`` of those that only a type checker sees."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")).body, True, modules, for_types)


def _imports(
    body: list[ast.stmt], at_import: bool, modules: dict[str, Path], for_types: bool
) -> Iterator[tuple[str, int, bool]]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, at_import
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import on line {node.lineno}"
            for alias in node.names:
                # `from package import module` depends on the module, not only on the package.
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in modules else str(node.module)), node.lineno, at_import
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(node.body, False, modules, for_types)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            if for_types:
                yield from _imports(node.body, False, modules, for_types)
            yield from _imports(node.orelse, at_import, modules, for_types)
        else:
            for field in ("body", "orelse", "finalbody"):
                yield from _imports(getattr(node, field, []), at_import, modules, for_types)
            for handler in getattr(node, "handlers", []):
                yield from _imports(handler.body, at_import, modules, for_types)


def room(module: str) -> str | None:
    """The room that a module belongs to; None for ``wuneng`` itself and for other packages."""
    for floor in FLOORS:
        for name in floor:
            if module == name or module.startswith(f"{name}."):
                return name
    return None


def floor_of(name: str) -> int:
    return next(index for index, floor in enumerate(FLOORS) if name in floor)


def upward_imports(modules: dict[str, Path]) -> list[str]:
    wrong = []
    for module, path in modules.items():
        own = room(module)
        if own is None:
            continue
        for target, line, _ in imports(path, modules):
            other = room(target)
            if target == "wuneng" and own != "wuneng_cli":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports the package as a whole")
            elif other is not None and floor_of(other) < floor_of(own):
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({own}) imports {target} upward")
    return wrong


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A circle in the graph, as the list of its nodes, or None."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph.get(node, ())):
            found = visit(target, [*trail, node])
            if found:
                return found
        done.add(node)
        return None

    for node in sorted(graph):
        found = visit(node, [])
        if found:
            return found
    return None


def test_every_module_has_a_floor() -> None:
    homeless = [m for m in sources() if room(m) is None and m != "wuneng"]
    assert not homeless, f"no floor stated for {homeless}"


def test_imports_run_downward() -> None:
    wrong = upward_imports(sources())
    assert not wrong, "\n".join(wrong)


def module_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Every module with the modules of the project that it imports, for types too."""
    graph = {
        module: {t for t, _, _ in imports(path, modules, for_types=True) if t in modules}
        for module, path in modules.items()
    }
    # The package itself is imported by importing anything in it; what it imports is no circle.
    for module, targets in graph.items():
        targets -= {"wuneng", module}
    return graph


def test_no_module_imports_in_a_circle() -> None:
    """Imports inside functions and for types alone count too: they hide a circle, they do not break
    it. Two files whose types need each other are one thing in two files."""
    found = cycle(module_graph(sources()))
    assert found is None, " -> ".join(found or [])


def test_no_room_imports_in_a_circle() -> None:
    """Rooms on the same floor may use each other, in one direction."""
    modules = sources()
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        own = room(module)
        if own is not None:
            others = {room(target) for target, _, _ in imports(path, modules)}
            graph.setdefault(own, set()).update(o for o in others if o and o != own)
    found = cycle(graph)
    assert found is None, " -> ".join(found or [])


def test_light_rooms_import_nothing_heavy() -> None:
    modules = sources()
    heavy = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for module, path in modules.items()
        if room(module) in LIGHT_ROOMS
        for target, line, _ in imports(path, modules)
        if target.partition(".")[0] in HEAVY
    ]
    assert not heavy, "\n".join(heavy)


def test_statistics_need_numpy_alone() -> None:
    modules = sources()
    outside = {
        target.partition(".")[0]
        for module, path in modules.items()
        if room(module) == "wuneng.statistics"
        for target, _, _ in imports(path, modules)
        if room(target) != "wuneng.statistics"
    }
    assert outside <= {"numpy", *sys.stdlib_module_names}


def test_a_report_reads_records_and_nothing_else() -> None:
    modules = sources()
    rooms = {
        room(target)
        for module, path in modules.items()
        if room(module) == "wuneng.report"
        for target, _, _ in imports(path, modules, for_types=True)
    }
    light = {"wuneng.records", "wuneng.errors", "wuneng.foreign", "wuneng.recipe"}
    assert rooms - {None, "wuneng.report"} <= light | {"wuneng.statistics", "wuneng.pictures"}


def test_commands_import_nothing_heavy_at_the_top() -> None:
    """A command's own floor aside, only light rooms are imported before a command runs."""
    modules = sources()
    heavy = []
    for module, path in modules.items():
        if room(module) != "wuneng_cli" and room(module) not in (*LIGHT_ROOMS, "wuneng.device"):
            continue
        for target, line, at_import in imports(path, modules):
            allowed = room(target) in (None, "wuneng_cli", "wuneng.device", *LIGHT_ROOMS)
            if at_import and (target.partition(".")[0] in HEAVY or not allowed):
                heavy.append(f"{path.relative_to(ROOT)}:{line} imports {target} at the top")
    assert not heavy, "\n".join(heavy)


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, None),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
    ],
)
def test_circles_are_found(graph: dict[str, set[str]], expected: list[str] | None) -> None:
    assert cycle(graph) == expected


def test_upward_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    low = tmp_path / "wuneng" / "layers" / "attention.py"
    low.parent.mkdir(parents=True)
    low.write_text("def f():\n    from wuneng.train import run\n", encoding="utf-8")
    assert upward_imports({"wuneng.layers.attention": low}) == [
        "wuneng/layers/attention.py:2 (wuneng.layers) imports wuneng.train upward"
    ]


@pytest.mark.parametrize(
    "hidden",
    [
        "def f():\n    from wuneng.data.one import x\n",
        "if TYPE_CHECKING:\n    from wuneng.data.one import x\n",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from wuneng.data import one\n",
        "try:\n    import json\nexcept ImportError:\n    from wuneng.data.one import x\n",
    ],
    ids=["in a function", "for types", "but not for types", "in a handler"],
)
def test_circles_inside_a_package_are_found(hidden: str, tmp_path: Path) -> None:
    """However the import is hidden."""
    texts = {"one": "from wuneng.data.other import y\n", "other": hidden}
    modules = {f"wuneng.data.{name}": tmp_path / f"{name}.py" for name in texts}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    ring = ["wuneng.data.one", "wuneng.data.other", "wuneng.data.one"]
    assert cycle(module_graph(modules)) == ring
