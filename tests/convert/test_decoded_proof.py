"""A conversion's proof decodes as users do: by one call of C, which rounds in another order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.convert.sources import save_source
from wuneng.convert import Request, convert
from wuneng.ops import native, using

WHOLE = ("full forward", "left padding")


@pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")
def test_whole_texts_are_the_sources_to_the_bit_and_decoded_ones_to_rounding(
    tmp_path: Path,
) -> None:
    fields = {"sliding_window": None, "num_attention_heads": 3, "num_key_value_heads": 3}
    source = save_source(tmp_path / "source", kind="mistral", **fields)
    found = {}
    for way in ("native", "chunked"):
        with using(way):
            outcome = convert(Request(str(source), tmp_path / way))
        assert all(check.passed for check in outcome.checks)
        found[way] = {
            (check.name, check.dtype): check.max_abs_logit_difference for check in outcome.checks
        }
    assert set(found["chunked"].values()) == {0.0}
    off = {check for check, difference in found["native"].items() if difference}
    assert {name for name, _ in off} == {"cache, token by token", "generate()"}
    assert {dtype for _, dtype in off} == {"float32"}
    assert len(found["native"]) > len(off)
    assert all((name, "float32") in found["native"] for name in WHOLE)
