"""The modelling code of an exported directory: our own modules, flattened into its folder.

transformers runs such files with ``trust_remote_code=True``. They are this package's source text:
imports of ``wuneng`` become relative ones and nothing else changes, so there is one implementation.
Needs torch and transformers; Triton kernels travel too and are used where Triton and CUDA are.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from wuneng.kinds import Room, kind_names

__all__ = ["AUTO_MAP", "foreign_kind", "modelling_files", "write_modelling_code"]

_ENTRIES = {
    "wuneng.model.configuration": "configuration_wuneng",
    "wuneng.model.modeling": "modeling_wuneng",
}
AUTO_MAP = {
    "AutoConfig": "configuration_wuneng.WuNengConfig",
    "AutoModel": "modeling_wuneng.WuNengModel",
    "AutoModelForCausalLM": "modeling_wuneng.WuNengForCausalLM",
}
_HEADER = "# Written by `wuneng convert --to transformers` from the package wuneng (Apache-2.0).\n"
#: torch operators are registered under another namespace, beside an installed package's own.
_OPERATORS = {
    "wuneng::": "wuneng_exported::",
    "torch.ops.wuneng.": "torch.ops.wuneng_exported.",
}


@dataclass(frozen=True)
class _Edit:
    """Source lines ``first`` to ``last`` (from 1) or a span of columns, and what replaces them."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def write_modelling_code(directory: Path) -> None:
    """Write the files of :func:`modelling_files`."""
    for name, text in modelling_files().items():
        (directory / name).write_text(text, encoding="utf-8", newline="\n")


def modelling_files() -> dict[str, str]:
    """File name to content of every module that the model imports, directly or not.

    Raises:
        ValueError: a module imports the package in a way that cannot be made relative.
    """
    files: dict[str, str] = {}
    waiting = list(_ENTRIES)
    while waiting:
        module = waiting.pop()
        name = f"{_flat(module)}.py"
        if name in files:
            continue
        text, needs = _relative(module)
        files[name] = text
        waiting += needs
    return files


def _kinds(source: str) -> tuple[str, list[str]]:
    """``wuneng.kinds`` for a folder of files: the kinds that there are now, in files beside it."""
    names = {room: _own_kinds(room) for room in get_args(Room)}
    replaced = {
        "_module_of": 'return f"{__package__}.layers_{room}_{name}"',
        "_files": f"return {names!r}[room]",
    }
    edits = [
        _Edit(
            (node.body[0].lineno, node.body[0].col_offset),
            (node.body[-1].end_lineno or 0, node.body[-1].end_col_offset or 0),
            replaced[node.name],
        )
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name in replaced
    ]
    needs = [f"wuneng.layers.{room}.{name}" for room, some in names.items() for name in some]
    return _apply(source, edits), needs


def foreign_kind(config: Any) -> str | None:
    """The configuration's kind of state or middle heads that another package registered, if any,
    as ``state kind NAME``."""
    for room, name in (("state", config.state_kind), ("middle", config.cross_head)):
        if name not in _own_kinds(room):  # type: ignore[arg-type]
            return f"{room} kind {name}"
    return None


def _own_kinds(room: Room) -> list[str]:
    """Those that are files of this package, not registered by another."""
    place = f"wuneng.layers.{room}"
    return [name for name in kind_names(room) if importlib.util.find_spec(f"{place}.{name}")]


def _flat(module: str) -> str:
    """``wuneng.ops.wkv7.step`` to ``ops_wkv7_step``."""
    return _ENTRIES.get(module) or module.removeprefix("wuneng.").replace(".", "_")


def _relative(module: str) -> tuple[str, list[str]]:
    """A module's source with relative imports, and the modules that it needs."""
    source = _path(module).read_text(encoding="utf-8")
    edits: list[_Edit] = []
    needs: list[str] = []
    late: list[str] = []
    if module == "wuneng.kinds":
        source, late = _kinds(source)
        needs += late
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module):
            pairs = [(alias, *_origin(str(node.module), alias.name)) for alias in node.names]
            needs += [origin for _, origin, _ in pairs]
            lines = [_import_line(alias, origin, name) for alias, origin, name in pairs]
            edits.append(_edit(node, f"\n{' ' * node.col_offset}".join(lines)))
        elif isinstance(node, ast.Import) and any(_is_ours(a.name) for a in node.names):
            raise ValueError(f"{module}, line {node.lineno}: `import wuneng...` cannot be exported")
        elif _is_late_import(node):
            target = node.args[0].value  # type: ignore[attr-defined]
            needs.append(target)
            late.append(target)
            edits.append(_edit(node.args[0], f'f"{{__package__}}.{_flat(target)}"'))  # type: ignore[attr-defined]
    text = _apply(source, edits)
    for ours, exported in _OPERATORS.items():
        text = text.replace(ours, exported)
    # transformers copies the files that it sees imported; what is imported late it has to be told.
    for target in late:
        text += "\n\nif False:  # never runs: names a file that has to travel\n"
        text += f"    from .{_flat(target)} import __doc__\n"
    return _HEADER + text, needs


def _import_line(alias: ast.alias, origin: str, name: str | None) -> str:
    bound = alias.asname or alias.name
    if name is None:  # a module: the first line is the form of import that transformers looks for
        flat = _flat(origin)
        return f"from .{flat} import __name__ as _{flat}; from . import {flat} as {bound}"
    renamed = "" if bound == name else f" as {bound}"
    return f"from .{_flat(origin)} import {name}{renamed}"


def _origin(module: str, name: str) -> tuple[str, str | None]:
    """The module that defines ``name`` of ``module``; no name where it is a module itself.

    A package's re-export comes first: ``wuneng.ops`` offers the operator ``wkv7`` beside its
    subpackage of that name.
    """
    if not _is_package(module):
        return module, name
    for node in ast.parse(_path(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _origin(str(node.module), alias.name)
    if importlib.util.find_spec(f"{module}.{name}") is None:
        raise ValueError(f"{module} does not say where {name} comes from")
    return f"{module}.{name}", None


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == "wuneng"


def _is_package(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def _path(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"module {module} has no source file")
    return Path(spec.origin)


def _is_late_import(node: ast.AST) -> bool:
    """``importlib.import_module("wuneng...")``."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    if node.func.attr != "import_module" or not node.args:
        return False
    first = node.args[0]
    return isinstance(first, ast.Constant) and _is_ours(str(first.value))


def _edit(node: Any, text: str) -> _Edit:
    start = (node.lineno, node.col_offset)
    return _Edit(start, (node.end_lineno, node.end_col_offset), text)


def _apply(source: str, edits: list[_Edit]) -> str:
    """The source with every span replaced, from the end so that positions hold."""
    lines = [line.encode("utf-8") for line in source.splitlines(keepends=True)]
    for edit in sorted(edits, key=lambda e: e.start, reverse=True):
        (first, left), (last, right) = edit.start, edit.end
        before, after = lines[first - 1][:left], lines[last - 1][right:]
        lines[first - 1 : last] = [before + edit.text.encode("utf-8") + after]
    return b"".join(lines).decode("utf-8")
