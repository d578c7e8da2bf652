"""How shared scoring calls the model: how often, with how many rows and tokens, in what memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.evaluate.scoring_cases import AUTO, MAX_LENGTH, Request, assert_equal, requests
from wuneng.evaluate.answers import Answers
from wuneng.evaluate.prefix_cache import CacheShapes, PrefixPool
from wuneng.evaluate.scoring import CallLimits, score_answers
from wuneng.model.call_arguments import cache_of

Make = Callable[..., Any]


def count_tokens(model: Any, asked: list[Request], limits: CallLimits = AUTO) -> int:
    counts: list[int] = []
    score_answers(model, asked, MAX_LENGTH, limits, on_tokens=counts.append)
    return sum(counts)


def test_common_beginnings_are_computed_once(random_wuneng: Make) -> None:
    model = random_wuneng(num_hidden_layers=1)
    question = list(range(60))
    asked = [(question, [200 + i] * 10) for i in range(4)]
    assert count_tokens(model, asked) == 60 + 4 * 9
    one_token = [(question, [200 + i]) for i in range(4)]
    assert count_tokens(model, one_token) == 60
    unrelated = [([i] * 30, [1, 2]) for i in range(8)]
    assert count_tokens(model, unrelated) == 8 * 31


def test_a_batch_size_is_kept_to(random_wuneng: Make) -> None:
    model = random_wuneng(num_hidden_layers=1)
    rows: list[int] = []
    model.model.register_forward_pre_hook(lambda _, ids: rows.append(len(ids[0])))
    asked = requests()
    score_answers(model, asked, MAX_LENGTH, CallLimits.on(torch.device("cpu"), 5))
    assert max(rows) == 5
    rows.clear()
    score_answers(model, asked, MAX_LENGTH, CallLimits.on(torch.device("cpu"), 1))
    assert set(rows) == {1}


def test_a_full_memory_halves_the_batches(random_wuneng: Make) -> None:
    model = random_wuneng()
    asked = requests(4)
    failures: list[int] = []

    def refuse(_: Any, arguments: tuple[torch.Tensor]) -> None:
        if arguments[0].numel() > 120 and len(arguments[0]) > 1:
            failures.append(arguments[0].numel())
            raise torch.OutOfMemoryError("planted")

    hook = model.model.register_forward_pre_hook(refuse)
    found = score_answers(model, asked, MAX_LENGTH, AUTO)
    hook.remove()
    assert_equal(model, asked, found)
    assert 0 < len(failures) < 8  # what failed once is not tried at that size again


def test_a_single_row_that_does_not_fit_is_an_error(random_wuneng: Make) -> None:
    model = random_wuneng(num_hidden_layers=1)

    def refuse(_: Any, arguments: tuple[torch.Tensor]) -> None:
        raise torch.OutOfMemoryError("planted")

    model.model.register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        score_answers(model, [([1], [2]), ([3], [4])], MAX_LENGTH, AUTO)


def test_few_logits_at_once(random_wuneng: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wuneng.evaluate.answer_calls._LOGITS_AT_ONCE", 257 * 3)
    model = random_wuneng(num_hidden_layers=1)
    asked = requests(5)
    assert_equal(model, asked, score_answers(model, asked, MAX_LENGTH, AUTO))


def test_no_request(random_wuneng: Make) -> None:
    assert score_answers(random_wuneng(num_hidden_layers=1), [], MAX_LENGTH, AUTO) == []


def test_answers_read_alike_are_one_input() -> None:
    answers = Answers.of([([1, 2], [3]), ([1, 2], [4]), ([1], [2, 5])], max_length=8)
    assert answers.inputs == [[1, 2]]
    assert answers.requests_of == [[0, 1, 2]]
    found = [(s.tolist(), p.tolist()) for s, p in answers.predicted(0, 1, 2)]
    assert found == [([0], [1]), ([1], [1]), ([3], [1])]


@pytest.mark.parametrize("empty", [([], [1]), ([1], [])])
def test_a_request_needs_tokens_on_both_sides(empty: Request) -> None:
    with pytest.raises(ValueError, match="request 1 has no tokens"):
        Answers.of([([1], [2]), empty], max_length=8)


def test_a_pool_holds_what_its_shapes_say(random_wuneng: Make) -> None:
    model = random_wuneng(snapshots=1, snapshot_every=16)
    shapes = CacheShapes.of(model.model, model.device)
    cache = cache_of(model.model(torch.zeros(1, 7, dtype=torch.long), use_cache=True))
    assert shapes.row_bytes(7) == cache.key_value_bytes() + cache.state_bytes()
    pool = PrefixPool(shapes, rows=2, width=9)
    model.model(torch.ones(2, 7, dtype=torch.long), past_key_values=pool.filling(0), use_cache=True)
    assert pool.filling(0).get_seq_length() == 0
    assert pool.continuing(torch.tensor([1, 1, 0]), 7).get_seq_length() == 7
