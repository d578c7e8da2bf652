"""Which beginnings are shared, and how rows are cut into calls: against brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from wuneng.evaluate.request_plan import (
    SharedPrefix,
    batches,
    common_length,
    pools,
    shared_prefixes,
)


def test_common_length() -> None:
    assert common_length([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_length([1, 2], [1, 2, 3]) == 2
    assert common_length([], [1]) == 0
    assert common_length([2], [1]) == 0


def test_answers_to_one_question_share_it() -> None:
    first, second = list(range(100)), list(range(50, 150))
    inputs = [[*first, 200], [*second, 200], [*first, 201, 202], [*second, 203], [7, 8]]
    groups, alone = shared_prefixes(inputs)
    assert set(groups) == {SharedPrefix((0, 2), 100), SharedPrefix((1, 3), 100)}
    assert alone == [4]


def test_what_saves_most_is_shared() -> None:
    """Solved examples before many questions, or a few answers to each question."""
    examples = list(range(500))
    questions = [[*examples, 1000 + q, *range(40)] for q in range(30)]
    answers = [[*question, 2000 + a] for question in questions for a in range(2)]
    assert [group.length for group in shared_prefixes(answers)[0]] == [500]
    short = [[*range(20), 1000 + q, *range(200), a] for q in range(3) for a in range(4)]
    groups, _ = shared_prefixes(short)
    assert sorted((group.length, len(group.members)) for group in groups) == [(221, 4)] * 3


def test_too_little_is_not_shared() -> None:
    assert shared_prefixes([[1, 2, 3], [1, 2, 4]]) == ([], [0, 1])
    assert shared_prefixes([]) == ([], [])
    assert shared_prefixes([[]]) == ([], [0])


def test_an_input_may_be_the_beginning_of_another() -> None:
    groups, alone = shared_prefixes([list(range(40)), list(range(30)), list(range(50))])
    assert (groups, alone) == ([SharedPrefix((0, 1, 2), 30)], [])


def test_every_input_is_in_one_place_and_begins_as_its_group_says() -> None:
    chosen = random.Random(0)
    for _ in range(50):
        unique = {tuple(chosen.choices((0, 1), k=chosen.randint(0, 60))) for _ in range(40)}
        stems = [tuple(chosen.choices((0, 1), k=40)) for _ in range(5)]
        unique |= {(*stem[: chosen.randint(20, 40)], 2, i) for i, stem in enumerate(stems * 4)}
        inputs = [list(one) for one in unique]
        groups, alone = shared_prefixes(inputs)
        members = [member for group in groups for member in group.members]
        assert sorted([*members, *alone]) == list(range(len(inputs)))
        for group in groups:
            assert len({tuple(inputs[one][: group.length]) for one in group.members}) == 1
            assert group.length * (len(group.members) - 1) > 16


def cost(parts: list[list[int]], lengths: list[int], price: int, uneven: float) -> float:
    total = 0.0
    for part in parts:
        own = [lengths[i] for i in part]
        total += price + len(own) * max(own) * (1 + uneven * (min(own) != max(own)))
    return total


@pytest.mark.parametrize(("price", "uneven"), [(0, 0.0), (5, 0.0), (30, 0.1), (1000, 0.1)])
def test_batches_cost_least(price: int, uneven: float) -> None:
    chosen = random.Random(price)
    for _ in range(20):
        lengths = [chosen.randint(1, 12) for _ in range(9)]
        found = batches(lengths, most_rows=4, most_tokens=30, call_price=price, uneven_price=uneven)
        assert sorted(i for part in found for i in part) == list(range(9))
        assert all(len(part) <= 4 for part in found)
        assert all(len(p) * max(lengths[i] for i in p) <= 30 or len(p) == 1 for p in found)
        order = sorted(range(9), key=lambda i: -lengths[i])
        least = min(
            cost(parts, lengths, price, uneven)
            for parts in _cuts(order)
            if all(len(p) <= 4 and len(p) * lengths[p[0]] <= 30 for p in parts)
        )
        assert cost(found, lengths, price, uneven) == pytest.approx(least)


def _cuts(order: list[int]) -> list[list[list[int]]]:
    """Every way to cut a sequence."""
    found = []
    for ends in itertools.product((False, True), repeat=len(order) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(ends) if cut), len(order)]
        found.append([order[a:b] for a, b in itertools.pairwise(places)])
    return found


def test_the_longest_come_first_and_a_long_row_runs_alone() -> None:
    lengths = [3, 100, 5, 90, 4]
    found = batches(lengths, most_rows=8, most_tokens=50, call_price=1000)
    assert found == [[1], [3], [2, 4, 0]]


def test_one_row_at_a_time() -> None:
    assert batches([2, 3, 1], most_rows=1, most_tokens=50, call_price=9) == [[1], [0], [2]]
    assert batches([], most_rows=1, most_tokens=50, call_price=9) == []
    assert batches([0, 0], most_rows=4, most_tokens=50, call_price=9) == [[0, 1]]


def test_many_equal_rows_are_cut_evenly_enough() -> None:
    found = batches([7] * 1000, most_rows=64, most_tokens=10**6, call_price=48)
    assert max(map(len, found)) <= 64
    assert len(found) <= 17


def planned(*lengths: int) -> list[list[SharedPrefix]]:
    """Batches of 16 beginnings of each length."""
    return [[SharedPrefix((0, 1), length)] * 16 for length in lengths]


def test_a_pool_ends_where_it_is_full() -> None:
    found = list(pools(planned(90, 80, 70, 60, 50), lambda width: 48 if width > 80 else 20))
    assert [[batch[0].length for batch in pool] for pool in found] == [[90, 80, 70], [60], [50]]
    assert list(pools(planned(90, 80), lambda width: 1)) == [[one] for one in planned(90, 80)]
    assert list(pools([], lambda width: 9)) == []


def test_a_pool_of_many_leaves_much_shorter_ones_to_the_next() -> None:
    few, many = planned(90, 20, 10), planned(90, 80, 70, 60, 20, 10)
    assert [len(pool) for pool in pools(few, lambda width: 999)] == [3]
    assert [len(pool) for pool in pools(many, lambda width: 999)] == [4, 2]
