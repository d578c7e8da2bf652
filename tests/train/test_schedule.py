"""The learning rate at the steps where a schedule is easy to get wrong."""

import pytest

from tests.train.tiny import tiny_training
from wuneng.train.schedule import learning_rate_at, shape_factor


def factors(kind: str, total: int = 100, warmup: int = 10) -> list[float]:
    return [
        shape_factor(
            step,
            total,
            kind=kind,
            warmup_steps=warmup,
            minimum_ratio=0.1,
            decay_fraction=0.2,
        )
        for step in range(total)
    ]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warm_up_is_linear_and_starts_above_zero(kind: str) -> None:
    assert factors(kind)[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])


def test_cosine_is_half_way_in_the_middle_and_ends_at_the_minimum() -> None:
    values = factors("cosine")
    assert values[54] == pytest.approx(0.55)
    assert values[99] == pytest.approx(0.1)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_wsd_stays_up_and_then_falls_in_a_line() -> None:
    values = factors("wsd")
    assert values[10:80] == [1.0] * 70
    assert values[89] == pytest.approx(0.55)
    assert values[99] == pytest.approx(0.1)


def test_constant_stays_up() -> None:
    assert set(factors("constant")[10:]) == {1.0}


def test_warm_up_longer_than_the_run_never_divides_by_zero() -> None:
    for kind in ("cosine", "wsd", "constant"):
        assert factors(kind, total=4, warmup=8) == pytest.approx([0.125, 0.25, 0.375, 0.5])
        assert factors(kind, total=1, warmup=0)[0] > 0


def test_the_recipe_sets_peak_and_shape() -> None:
    training = tiny_training(steps=10, warmup_steps=2, schedule="constant", learning_rate=0.5)
    assert [learning_rate_at(step, 10, training) for step in (0, 1, 9)] == [0.25, 0.5, 0.5]


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="cosine, wsd or constant, got 'linear'"):
        factors("linear", warmup=0)
