"""Bytes and FLOPs, counted by hand; exponents of known laws."""

from __future__ import annotations

import pytest

from wuneng.bench.exponents import fit_exponent, growth
from wuneng.bench.machine import Rates
from wuneng.bench.record import Row
from wuneng.bench.roofline import (
    Work,
    attention,
    attention_step,
    decode,
    prefill,
    ssd,
    ssd_step,
    training_step,
    wkv7,
    wkv7_step,
)
from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.model import WuNengConfig
from wuneng.model.cache_bytes import cache_bytes


def test_wkv7_by_hand() -> None:
    """B 8, T 4096, H 32, N 64 in bf16: a tensor is 134 MB, the forward moves seven."""
    tensor = 8 * 4096 * 32 * 64 * 2
    state = 8 * 32 * 64 * 64 * 4
    forward = wkv7(8, 4096, 32, 64, 2, backward=False)
    assert forward.bytes == 7 * tensor + state
    assert forward.flops == 8 * 64**2 * 8 * 4096 * 32
    both = wkv7(8, 4096, 32, 64, 2, backward=True)
    assert both.bytes == 20 * tensor + 2 * state
    assert both.flops == 3 * forward.flops


def test_steps_by_hand() -> None:
    step = wkv7_step(2, 4, 64, 4)
    assert step.bytes == 2 * (2 * 4 * 64 * 64 * 4) + 7 * (2 * 4 * 64 * 4)
    attend = attention_step(2, 1000, 4, 64, 4)
    assert attend.bytes == 2 * (2 * 1000 * 4 * 64 * 4) + 2 * (2 * 4 * 64 * 4)
    assert attend.flops == 4 * 64 * 2 * 4 * 1000


def test_the_state_space_recurrence_by_hand() -> None:
    """B 2, T 3, H 4, N 8, one group of heads, bf16: x and y of 384 B, B and C of 96 B, dt 48 B."""
    wide, shared, rate, state = 2 * 3 * 4 * 8 * 2, 2 * 3 * 8 * 2, 2 * 3 * 4 * 2, 2 * 4 * 8 * 8 * 4
    assert (wide, shared, rate) == (384, 96, 48)
    forward = ssd(2, 3, 4, 8, 1, 2, backward=False)
    assert forward.bytes == 2 * wide + 2 * shared + rate + state
    assert forward.flops == 6 * 8**2 * 2 * 3 * 4
    both = ssd(2, 3, 4, 8, 1, 2, backward=True)
    # and again: x, dy, dx; B, C, dB, dC; dt and its gradient
    assert both.bytes == forward.bytes + 3 * wide + 4 * shared + 2 * rate + state
    assert both.flops == 3 * forward.flops
    step = ssd_step(2, 4, 8, 1, 2)
    assert step.bytes == 2 * state + (2 * wide + 2 * shared + rate) / 3
    assert step.flops == 6 * 8**2 * 2 * 4


def test_attention_by_hand() -> None:
    work = attention(1, 3, 1, 2, 4, backward=False)
    assert work.flops == 4 * 2 * (1 + 2 + 3)  # pairs that a causal mask leaves
    assert work.bytes == 4 * (3 * 2 * 4)


def test_the_binding_roof_decides() -> None:
    rates = Rates(bandwidth=10.0, matmul=100.0)
    assert Work(bytes=20.0, flops=100.0).bound(rates) == "memory"
    assert Work(bytes=20.0, flops=100.0).floor_seconds(rates) == 2.0
    assert Work(bytes=1.0, flops=300.0).bound(rates) == "compute"
    assert Work(bytes=1.0, flops=300.0).floor_seconds(rates) == 3.0


def test_models_by_hand() -> None:
    """One layer of plain attention: D 8, two heads of 4, feed-forward 16, vocabulary 10."""
    config = WuNengConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_state_heads=0,
    )
    weights = 4 * 8 * 8 + 3 * 8 * 16  # q, k, v, o; gate, up, down
    head = 10 * 8
    parameters = 1000
    kv = 2 * 2 * 4 * 4  # bytes of a token's keys and values in float32

    step = decode(config, parameters, batch=2, context=5, element=4)
    assert step.bytes == parameters * 4 + 2 * 5 * kv
    # keys 1..5 and the token itself: 4 N FLOPs each and head
    assert step.flops == 2 * (2 * (weights + head) + 4 * 2 * 4 * (5 + 1))

    first = prefill(config, parameters, batch=1, tokens=3, element=4)
    assert first.bytes == parameters * 4 + 3 * kv
    assert first.flops == 3 * 2 * weights + 2 * head + 4 * 2 * 4 * (1 + 2 + 3)

    trained = training_step(config, parameters, batch=1, tokens=3)
    assert trained.flops == 3 * (3 * 2 * (weights + head) + 4 * 2 * 4 * (1 + 2 + 3))
    assert trained.bytes == 40 * parameters


def test_cache_bytes_by_hand() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_state_heads": 1}
    config = WuNengConfig(vocab_size=10, num_hidden_layers=2, **(MIDDLE_WIRING | sizes))
    counted = cache_bytes(config, batch=3, tokens=7, element=2)
    assert counted["kv_bytes"] == 3 * 2 * (2 * 2 * 32 * 7 * 2)
    # a float32 state of 32 x 32, and the last token's r, k and v
    assert counted["state_bytes"] == 3 * 2 * (32 * 32 * 4 + 3 * 32 * 2)
    # and attention's keys and values of the last token, which it is shifted by
    shifted = cache_bytes(config.changed({"attention_token_shift": True}), 3, 7, 2)
    assert sum(shifted.values()) - sum(counted.values()) == 3 * 2 * (2 * 2 * 32 * 2)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_exponents_of_power_laws(power: float) -> None:
    lengths = [1024, 2048, 4096, 8192]
    assert fit_exponent(lengths, [3.0 * n**power for n in lengths]) == pytest.approx(power)


def test_exponents_need_lengths_and_positive_values() -> None:
    with pytest.raises(ValueError, match="two different lengths"):
        fit_exponent([1024, 1024], [1.0, 2.0])
    with pytest.raises(ValueError, match="positive"):
        fit_exponent([1024, 2048], [1.0, 0.0])


def test_growth_leaves_out_rows_without_figures() -> None:
    def row(length: int, ms: float | None) -> Row:
        return Row("train", "step", "mha", length, 1, "fp32", median_ms=ms)

    entries = growth([row(4096, 90.0), row(1024, 10.0), row(2048, 30.0), row(8192, None)])
    assert len(entries) == 1
    assert entries[0]["quantity"] == "time"
    assert entries[0]["seq_lens"] == [1024, 2048, 4096]
    assert entries[0]["exponent"] == pytest.approx(1.585, abs=1e-3)  # threefold per doubling
    assert entries[0]["last_exponent"] == pytest.approx(1.585, abs=1e-3)
