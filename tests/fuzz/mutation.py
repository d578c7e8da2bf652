"""Mutants of files: bytes, text and JSON, changed at random places into what readers dislike."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

__all__ = ["mutated_bytes", "mutated_json", "mutated_text", "value_text"]

_NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 255, 256, 1000, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63),
    *(2**64, 10**30, -(10**30), 0.5, -0.0, 1e-400, 1e308, 1e400, float("nan"), -1e400, 1.5),
)
_TEXTS = (
    *(
        "",
        " ",
        "a",
        "0",
        "auto",
        "none",
        "null",
        "true",
        "NaN",
        "llama",
        "wuneng",
        "\0",
        "\x1b[31m",
    ),
    *("\ud800", "\u2028", "é" * 50, "x" * 300, "x" * 5000, "../x", "/etc/passwd", "a/b", ".", ".."),
    *(
        "model.safetensors",
        "m" * 300 + ".safetensors",
        "%s{0}{x}",
        "[/]",
        "[red]",
        "(",
        "(?P<a>",
        "\\",
        "\n",
        "1e5",
        "8k",
        "٣",
    ),
)
_YAML = (
    *("!!int abc", "!!float x", "!!bool foo", "!!timestamp 2020-99-99", "!!null x", "!!binary x"),
    *(
        "!!python/object:os.system x",
        "!x y",
        "&a [*a]",
        "*missing",
        "&a x",
        "<<: {a: 1}",
        "? x",
        "|",
    ),
    *("9" * 5000, "1" + "0" * 400 + ".0", "0x1F", "010", "1_000", "1:30", ".inf", "-.inf", ".nan"),
    *(
        "[" * 1000,
        "{a: " * 60,
        "- " * 60,
        "[]",
        "{}",
        "[[]]",
        "{a: {b: {c: 1}}}",
        "1.5M",
        "8q",
        "-3",
    ),
    *('"\\UFFFFFFFF"', "%YAML " + "1" * 5000 + ".1", "%YAML 1." + "1" * 5000),
    *("'", '"', '"\\ud800"', '"\\0"', "@", "`", "%TAG", "---", "...", "\t", "#", "~", "yes", "No"),
    *(
        "[recall]",
        "{task: [1]}",
        "{kind: []}",
        "mod_99999999",
        "5",
        "parity",
        "[a, a]",
        "text",
        "bytes",
    ),
)


def mutated_bytes(random: Random, content: bytes, changes: int = 3) -> bytes:
    """``content`` with one to ``changes`` local changes: bits, runs, cuts, repetitions."""
    data = bytearray(content)
    for _ in range(_few(random, changes)):
        random.choice(_BYTE_CHANGES)(random, data)
    return bytes(data)


def mutated_text(random: Random, text: str, changes: int = 3) -> str:
    """YAML-like text with lines moved, doubled, cut, reindented, or a value replaced."""
    lines = text.split("\n")
    for _ in range(_few(random, changes)):
        random.choice(_LINE_CHANGES)(random, lines)
    return "\n".join(lines)


def _few(random: Random, most: int) -> int:
    """One more often than many: the first mistake that a reader meets hides the others."""
    return min(random.randint(1, most), random.randint(1, most))


def value_text(random: Random) -> str:
    """What might stand behind the colon in YAML."""
    kind = random.randrange(3)
    if kind == 0:
        return repr(random.choice(_NUMBERS))
    return random.choice(_YAML) if kind == 1 else json.dumps(random.choice(_TEXTS))


def mutated_json(random: Random, value: Any, changes: int = 3) -> Any:
    """A copy of a JSON value with one to ``changes`` nodes replaced, removed, renamed or nested."""
    root = [copy.deepcopy(value)]
    for _ in range(_few(random, changes)):
        places: list[tuple[Any, Any]] = [(root, 0)]
        for container, key in places:
            inner = container[key]
            keys: Any = (
                inner
                if isinstance(inner, dict)
                else range(len(inner))
                if isinstance(inner, list)
                else ()
            )
            places += [(inner, k) for k in list(keys)[:400]]
        container, key = random.choice(places)
        _change_node(random, container, key)
    return root[0]


def _change_node(random: Random, container: Any, key: Any) -> None:
    kind = random.randrange(10)
    if kind < 5:
        container[key] = _any_value(random)
    elif kind == 5 and isinstance(container, dict):
        del container[key]
    elif kind == 6 and isinstance(container, dict):
        container[random.choice(_TEXTS)] = container[key]
    elif kind == 7:
        container[key] = [container[key]] * random.choice((0, 1, 2, 50))
    elif kind == 8:
        container[key] = {random.choice(_TEXTS): container[key]}
    elif isinstance(container[key], str):
        container[key] = mutated_bytes(
            random, container[key].encode("utf-8", "surrogatepass"), 1
        ).decode("utf-8", "replace")
    elif isinstance(container[key], int | float) and not isinstance(container[key], bool):
        container[key] = random.choice(
            (container[key] + 1, -container[key], container[key] * 2, str(container[key]))
        )


def _misspelt(random: Random, text: str) -> str:
    content = mutated_bytes(random, text.encode("utf-8", "surrogatepass"))
    return content.decode("utf-8", "replace")


def _any_value(random: Random) -> Any:
    kind = random.randrange(8)
    if kind < 3:
        return random.choice(_NUMBERS)
    if kind < 6:
        return random.choice(_TEXTS)
    if kind == 6:
        return random.choice((None, True, False, [], {}, [None], {"a": 1}, [[1]], [{}], [1, 2, 3]))
    deep: Any = 0
    for _ in range(random.choice((5, 60, 500))):
        deep = [deep] if random.random() < 0.5 else {"a": deep}
    return deep


def _flip(random: Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _overwrite(random: Random, data: bytearray) -> None:
    if data:
        start = random.randrange(len(data))
        end = min(len(data), start + random.choice((1, 4, 8, 64)))
        data[start:end] = bytes([random.choice((0, 255, 0x7F, 32, random.randrange(256)))]) * (
            end - start
        )


def _insert(random: Random, data: bytearray) -> None:
    start = random.randint(0, len(data))
    data[start:start] = random.choice(
        (
            b"\0",
            b"\xff",
            b"\xed\xa0\x80",
            b"\xef\xbb\xbf",
            b"[" * 2000,
            b'"',
            b"9" * 100,
            random.randbytes(9),
        )
    )


def _cut(random: Random, data: bytearray) -> None:
    if data:
        start = random.randrange(len(data))
        del data[start : start + random.choice((1, 3, 20, len(data)))]


def _repeat(random: Random, data: bytearray) -> None:
    if data:
        start = random.randrange(len(data))
        data[start:start] = data[start : start + random.choice((1, 16, 200))] * random.choice(
            (1, 2, 40)
        )


def _number(random: Random, data: bytearray) -> None:
    """A number in the text, or eight bytes, become another number."""
    start = random.randint(0, max(0, len(data) - 8))
    if random.random() < 0.5:
        data[start : start + 8] = random.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(
            8, "little"
        )
        return
    digits = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte < 58]
    if digits:
        at = random.choice(digits)
        data[at : at + 1] = random.choice(
            (b"0", b"9", b"-1", b"1e9", b"99999999999999999999", b'"x"', b"[]")
        )


_BYTE_CHANGES: tuple[Callable[[Random, bytearray], None], ...] = (
    *(_flip, _flip, _overwrite, _insert, _cut, _repeat, _number),
)


def _replace_value(random: Random, lines: list[str]) -> None:
    at = random.randrange(len(lines))
    head, colon, _ = lines[at].partition(":")
    lines[at] = f"{head}{colon} {value_text(random)}" if colon else value_text(random)


def _replace_inline(random: Random, lines: list[str]) -> None:
    at = random.randrange(len(lines))
    pieces = lines[at].replace("}", ",").split(",")
    if len(pieces) > 1:
        pieces[random.randrange(len(pieces))] = f"x: {value_text(random)}"
        lines[at] = ",".join(pieces)


def _rename_key(random: Random, lines: list[str]) -> None:
    at = random.randrange(len(lines))
    head, colon, rest = lines[at].partition(":")
    indent = head[: len(head) - len(head.lstrip())]
    names = (head.strip() + "s", value_text(random), "model", "data", "task")
    lines[at] = f"{indent}{random.choice(names)}{colon}{rest}"


def _move(random: Random, lines: list[str]) -> None:
    lines.insert(random.randint(0, len(lines)), lines.pop(random.randrange(len(lines))))
    if random.random() < 0.5:
        lines.insert(random.randint(0, len(lines)), random.choice(lines))


def _indent(random: Random, lines: list[str]) -> None:
    at = random.randrange(len(lines))
    lines[at] = random.choice(("  ", "\t", " ", "- ", "      ")) + lines[at]


def _delete(random: Random, lines: list[str]) -> None:
    del lines[random.randrange(len(lines))]
    if not lines:
        lines.append("")


def _bytes_of_line(random: Random, lines: list[str]) -> None:
    at = random.randrange(len(lines))
    lines[at] = mutated_bytes(random, lines[at].encode("utf-8", "surrogatepass")).decode(
        "utf-8", "replace"
    )


def _many(random: Random, lines: list[str]) -> None:
    at = random.randrange(len(lines))
    lines[at:at] = [f"k{i}: {i}" for i in range(random.choice((3, 300)))]


def _laughs(random: Random, lines: list[str]) -> None:
    lines[0:0] = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines[1:1] = [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, random.randint(2, 9))
    ]


_LINE_CHANGES: tuple[Callable[[Random, list[str]], None], ...] = (
    *(_replace_value, _replace_value, _replace_value, _replace_inline, _rename_key),
    *(_move, _indent, _delete, _bytes_of_line, _many, _laughs),
)
