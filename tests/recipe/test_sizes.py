"""Numbers as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wuneng.errors import InputError
from wuneng.recipe.sizes import parse_real, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("8192", 8192),
        ("8k", 8192),
        ("8K", 8192),
        ("8 k", 8192),
        ("1M", 1024**2),
        ("2.5G", 2684354560),
        ("1_000", 1000),
        ("1e3", 1000),
        (1e3, 1000),
        (12, 12),
    ],
)
def test_sizes(text: str | float, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "8q", "1.5", 1.5, "-3", "8kk", "0x10", True, "nan"])
def test_what_is_no_size(text: str | float) -> None:
    with pytest.raises(InputError, match="expected a whole number"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "x", "inf", "nan", float("nan"), True])
def test_what_is_no_number(text: str | float) -> None:
    with pytest.raises(InputError, match="expected a number"):
        parse_real(text)


@given(st.integers(0, 10**6), st.sampled_from(["k", "M", "G"]))
def test_suffixes_are_powers_of_1024(number: int, suffix: str) -> None:
    assert parse_size(f"{number}{suffix}") == number * 1024 ** ("kMG".index(suffix) + 1)
