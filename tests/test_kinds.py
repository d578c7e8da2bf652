"""Every kind and every built-in arm can be looked up: by the program, and in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wuneng.built_in_arms import BUILT_IN_ARMS
from wuneng.kinds import check_kind, kind_names, load_kind, register

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "kinds.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = PAGE.split(f"## {heading}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]


HEADINGS = {"state": "State heads", "middle": "Middle heads"}


@pytest.mark.parametrize("room", HEADINGS)
def test_every_kind_is_documented(room: str) -> None:
    documented = {row[0] for row in rows(HEADINGS[room])}
    assert documented == set(kind_names(room))  # type: ignore[arg-type]
    for name in documented:
        assert load_kind(room, name).__doc__  # type: ignore[arg-type]


def test_every_arm_is_documented() -> None:
    known = [[name, arm.meaning, arm.match] for name, arm in BUILT_IN_ARMS.items()]
    assert rows("Arms") == known


def test_names_are_checked() -> None:
    assert check_kind("state", "rwkv7") is None
    assert re.search(
        r"must be one of .*rwkv7, got 'rwkv6'.*Did you mean", check_kind("state", "rwkv6") or ""
    )
    with pytest.raises(ValueError, match="middle kind must be one of additive, concat"):
        load_kind("middle", "mean")
    with pytest.raises(ValueError, match=r"'gated' is wuneng\.layers\.middle\.gated already"):

        @register("middle", "gated")
        class Another:
            pass
