"""What a benchmark can be asked for, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from wuneng.bench.request import BenchRequest, make_request, parse_percent
from wuneng.errors import InputError


def test_one_length_is_measured_at_shorter_ones_too() -> None:
    assert make_request(seq_len="8k").seq_lens == (1024, 2048, 4096, 8192)
    assert make_request(seq_len="256").seq_lens == (128, 256)
    assert make_request(seq_len="4k,512").seq_lens == (512, 4096)


def test_what_is_left_out_is_the_earlier_requests() -> None:
    old = make_request(seq_len="1k,2k", what="decode", preset="130m", threads=2)
    assert make_request(base=old) == old
    changed = make_request(base=old, what="train", model="recipes/text.yaml")
    assert (changed.seq_lens, changed.what, changed.threads) == ((1024, 2048), ("train",), 2)
    assert (changed.model, changed.preset) == ("recipes/text.yaml", None)


def test_a_request_survives_json() -> None:
    request = make_request(seq_len="1k,2k", against="none", batch="1,4")
    assert BenchRequest.from_json({**request.to_json(), "added_later": 1}) == request
    assert request.against == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": "8q"}, "--seq-len: expected numbers .* got '8q'"),
        ({"seq_len": "8"}, "at least 16, got '8'"),
        ({"batch": "0"}, "--batch: expected"),
        ({"what": "ops,trian"}, "--what: .* got 'trian'. Did you mean 'train'"),
        ({"against": "mah"}, "--against: .* Did you mean 'mha'"),
        ({"dtype": "fp8"}, "--dtype: expected auto, fp32, bf16, fp16"),
        ({"threads": 0}, "--threads: expected 1 or more, got 0"),
        ({"batch": "9" * 23}, r"at most 2\*\*62 and at least 1, got '99999"),
        ({"seq_len": "9" * 5000}, "--seq-len: expected numbers such as 16 or 8k"),
        ({"threads": 99999999999}, "--threads: expected at most 16384, got 99999999999"),
        ({"heads": 10**30}, "--heads: expected at most 4611686018427387904, got 1000"),
        ({"model": "a", "preset": "7b"}, "--model and --preset"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_request(**options)


def test_percentages() -> None:
    assert parse_percent("--fail-over", "10%") == pytest.approx(0.1)
    assert parse_percent("--fail-over", "2.5") == pytest.approx(0.025)
    with pytest.raises(InputError, match="--fail-over: expected a percentage"):
        parse_percent("--fail-over", "ten")


def test_a_record_that_names_an_unknown_arm() -> None:
    written = make_request(seq_len="1k", against="mha").to_json()
    assert BenchRequest.from_json(written).against == ("mha",)
    with pytest.raises(InputError, match=r"request.against of the record: .*Did you mean 'mha'"):
        BenchRequest.from_json({**written, "against": ["mhaa"]})
