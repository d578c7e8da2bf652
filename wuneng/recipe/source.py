"""A recipe's YAML text as plain data, with the place in the file of every field.

PyYAML follows YAML 1.1, where ``1e-3`` is text, ``1:30`` is ninety and the second of two equal
keys silently wins. Recipes are read through its node tree instead, so that numbers are numbers,
repeated keys are refused, and a message about a field can name its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from wuneng.errors import RecipeError, reason, shortened
from wuneng.foreign.files import check_link
from wuneng.foreign.regular import open_regular

__all__ = ["FieldPath", "Source", "dotted", "parse_value", "parse_yaml", "read_yaml"]

FieldPath = tuple[str | int, ...]

#: No recipe that a person means comes near these; a file beyond them is refused at once.
LARGEST_FILE = 1 << 20
MOST_VALUES = 20_000
DEEPEST = 40
MOST_DIGITS = 60

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("str", "int", "float", "bool", "null")}


class _RecipeLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers; dates stay text. Composes so many nodes and no more."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.file = name
        self.depth = 0
        self.count = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        self.count += 1
        where = f"{self.file}, line {self.peek_event().start_mark.line + 1}"
        if self.depth > DEEPEST:
            raise RecipeError(f"{where}: nested more than {DEEPEST} deep")
        if self.count > MOST_VALUES:
            raise RecipeError(f"{where}: more than {MOST_VALUES:,} values")
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_RecipeLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] in ("bool", "null", "merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?\d[\d_]*$"), list("-+0123456789")
)
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$|[-+]?\.inf$|\.nan$"),
    list("-+.0123456789"),
)


@dataclass
class Source:
    """Plain data and where each part of it was written (``"text.yaml, line 3"``)."""

    data: Any
    places: dict[FieldPath, str] = field(default_factory=dict)

    def place(self, path: FieldPath) -> str:
        """Where the field, or the nearest thing around it, was written."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return "the recipe"


def read_yaml(path: Path) -> Source:
    """Read a YAML file. RecipeError when it cannot be read, is a link elsewhere or is not YAML."""
    check_link(path)
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from None
    try:
        _check_size(content, str(path))
        return parse_yaml(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}, line {line}: expected UTF-8 text, got other bytes") from None


def parse_yaml(text: str, name: str) -> Source:
    """Parse YAML text; ``name`` is what messages call it. RecipeError with the line."""
    _check_size(text, name)
    source = Source(data=None, places={(): name})
    loader = None
    try:
        loader = _RecipeLoader(text, name)
        root = loader.get_single_node()
        if root is not None:
            source.data = _Construction(loader, source, name).value(root, ())
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise RecipeError(f"{name}, line {line}: not valid YAML: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_syntax_message(error, text, name)) from None
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        # PyYAML checks neither that an escaped character exists nor how long a version number is.
        line = 1 if loader is None else loader.line + 1
        raise RecipeError(f"{name}, line {line}: not valid YAML: {reason(error)}") from None
    return source


def _check_size(content: bytes | str, name: str) -> None:
    if len(content) > LARGEST_FILE:
        raise RecipeError(f"{name}: more than {LARGEST_FILE >> 20} MiB, which no recipe needs")


def parse_value(text: str) -> Any:
    """The value part of an override, read exactly as if it stood in the file."""
    return parse_yaml(text, "value").data


def dotted(path: FieldPath) -> str:
    """``("data", "tasks", 0, "pairs")`` as ``data.tasks.0.pairs``; very long names shortened."""
    return shortened(".".join(shortened(str(part)) for part in path), 200)


def _syntax_message(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    written = lines[line - 1] if line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())] or r"'\t'" in str(error.problem):
        return f"{name}, line {line}: a tab; YAML is indented with blanks"
    return f"{name}, line {line}: not valid YAML: {error.problem or error.context}"


class _Construction:
    """Turns nodes into data, noting the line of each path on the way."""

    def __init__(self, loader: _RecipeLoader, source: Source, name: str) -> None:
        self.loader = loader
        self.source = source
        self.name = name
        self.open_nodes: list[Node] = []
        self.count = 0

    def value(self, node: Node, path: FieldPath) -> Any:
        self.count += 1  # an alias stands for all that it repeats
        if self.count > 2 * MOST_VALUES:
            raise RecipeError(
                f"{self.place(node)}: with its aliases written out, more than "
                f"{2 * MOST_VALUES:,} values"
            )
        if any(node is outer for outer in self.open_nodes):
            raise RecipeError(f"{self.place(node)}: an alias that contains itself")
        if path:
            self.source.places.setdefault(path, self.place(node))
        self.open_nodes.append(node)
        try:
            if isinstance(node, MappingNode):
                self.check_tag(node, {_TAG + "map"})
                return self.mapping(node, path)
            if isinstance(node, SequenceNode):
                self.check_tag(node, {_TAG + "seq"})
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
            return self.scalar(node)
        finally:
            self.open_nodes.pop()

    def mapping(self, node: MappingNode, path: FieldPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged.update(self.merged(value_node, path))
                continue
            key = self.key(key_node)
            if key in result:
                first = self.source.places[(*path, key)].rpartition("line ")[2]
                raise RecipeError(
                    f"{self.place(key_node)}: {dotted((*path, key))} is given twice "
                    f"(first on line {first})"
                )
            self.source.places[(*path, key)] = self.place(key_node)
            result[key] = self.value(value_node, (*path, key))
        return {**merged, **result}

    def merged(self, node: Node, path: FieldPath) -> dict[str, Any]:
        """The mapping that ``<<: *anchor`` brings in."""
        if not isinstance(node, MappingNode):
            raise RecipeError(f"{self.place(node)}: << expects one mapping to merge")
        return dict(self.value(node, path))

    def key(self, node: Node) -> str:
        value = self.value(node, ()) if isinstance(node, ScalarNode) else None
        if isinstance(value, bool) or not isinstance(value, str | int):
            plain = isinstance(node, ScalarNode)
            written = f"{shortened(node.value)!r}; quote it" if plain else "a collection"
            raise RecipeError(f"{self.place(node)}: expected a name as key, got {written}")
        return str(value)

    def scalar(self, node: Node) -> Any:
        self.check_tag(node, _SCALARS)
        try:
            value = self._scalar(node.tag.removeprefix(_TAG), node)
        except Exception as error:
            # A tag may ask for what the text is not: `!!bool foo`.
            kind = node.tag.replace(_TAG, "!!")
            text = shortened(node.value)
            raise RecipeError(f"{self.place(node)}: {text!r} is no {kind} ({reason(error)})") from (
                error
            )
        if isinstance(value, str) and not _is_text(value):
            raise RecipeError(
                f"{self.place(node)}: {shortened(ascii(value))} holds a zero byte or half a "
                "surrogate pair, which is no text"
            )
        return value

    def _scalar(self, kind: str, node: Node) -> Any:
        # SafeLoader would read 010 as octal; here it is ten.
        if kind == "int":
            digits = node.value.replace("_", "")
            if len(digits) > MOST_DIGITS:
                raise ValueError(f"{len(digits):,} digits, expected at most {MOST_DIGITS}")
            return int(digits)
        if kind == "float":
            return float(node.value.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        return self.loader.construct_object(node)

    def check_tag(self, node: Node, allowed: set[str]) -> None:
        if node.tag not in allowed:
            kind = shortened(node.tag.replace(_TAG, "!!"))
            raise RecipeError(
                f"{self.place(node)}: {kind} is not used in recipes; expected text, a number, true "
                "or false, a list or a mapping"
            )

    def place(self, node: Node) -> str:
        return f"{self.name}, line {node.start_mark.line + 1}"


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in value
