"""Shared scoring gives the figures of a plain forward call for each request, whatever the model."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model.small import plainly
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.evaluate.answers import Answers
from wuneng.evaluate.harness import run_tasks
from wuneng.evaluate.harness_model import HarnessModel
from wuneng.evaluate.prefix_cache import CacheShapes, PrefixPool
from wuneng.evaluate.scoring import CallLimits, can_share, score_answers
from wuneng.evaluate.task_loading import load_tasks
from wuneng.model.call_arguments import cache_of

Load = Callable[..., Any]
Make = Callable[..., Any]
Request = tuple[list[int], list[int]]

MAX_LENGTH = 96
AUTO = CallLimits.on(torch.device("cpu"), None)
#: Few rows and tokens a call, and a pool that holds one batch.
TIGHT = CallLimits(rows=3, tokens=100, call_price=4, cache_bytes=1)

OWN = {"state_key_source": "own", "state_value_source": "own"}
RWKV7 = {
    **OWN,
    "token_shift": "pre",
    "state_value_residual": True,
    "state_output_gate": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {"num_state_heads": 0},
    "mha, shifted": {"num_state_heads": 0, "attention_token_shift": True},
    "wuneng": {},
    "grouped queries": {"num_attention_heads": 4, "head_dim": 16, "qk_norm": True},
    "snapshots": {"snapshots": 2, "snapshot_every": 16},
    "sliding window": {"sliding_window": 8, "sliding_window_layers": [0]},
    "sliding everywhere": {"sliding_window": 20, "snapshots": 1, "snapshot_every": 16},
    "RWKV-7 beside attention": RWKV7,
    "no shift": {**OWN, "token_shift": "none"},
    "pure RWKV-7": {
        **RWKV7,
        "num_attention_heads": 0,
        "num_key_value_heads": 0,
        "head_dim": 16,
        "ffn": "rwkv7",
        "norm": "layernorm",
        "state_a_max": 2.0,
    },
    "state in one layer": {"state_layers": [1], "ffn": "rwkv7"},
}


def requests(seed: int = 0) -> list[Request]:
    """Questions with several answers, of every awkward kind."""
    chosen = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return chosen.choices(range(250), k=chosen.randint(low, high))

    found: list[Request] = []
    for _ in range(6):  # HellaSwag: one question, longer answers
        question = tokens(17, 60)
        found += [(question, tokens(1, 30)) for _ in range(4)]
    question, beginning = tokens(30, 40), tokens(3, 6)
    found += [(question, beginning + tokens(0, 5)) for _ in range(3)]  # answers that begin alike
    found += [(question, beginning)]
    question = tokens(20, 30)
    found += [(question, [token]) for token in (1, 2, 3, 2)]  # one token each, and one twice
    common = tokens(40, 40)
    found += [(common + tokens(5, 20), tokens(1, 3)) for _ in range(5)]  # solved examples
    found += [(common[: 20 + i], common[20 + i : 30]) for i in range(3)]  # split at three places
    found += [(tokens(1, 50), tokens(1, 9)) for _ in range(5)]  # LAMBADA: nothing in common
    question = tokens(100, 120)
    found += [(question, tokens(1, 40)) for _ in range(3)]  # cut from the left
    found += [(tokens(90, 90), tokens(7, 7)), (tokens(5, 5), tokens(MAX_LENGTH, MAX_LENGTH))]
    found += [([256], tokens(1, 20)) for _ in range(3)]  # no question
    chosen.shuffle(found)
    return found


def greedy_requests(model: Any) -> list[Request]:
    """Answers that greedy decoding gives, and the same with their last token changed."""
    found = []
    for question in ([5] * 20, [7, 8, 9] * 8):
        ids = list(question)
        for _ in range(3):
            ids.append(int(logits(model, ids)[-1].argmax()))
        found += [(question, ids[-3:]), (question, [*ids[-3:-1], (ids[-1] + 1) % 250])]
    return found


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return found


def expected(model: Any, asked: list[Request]) -> list[tuple[float, bool]]:
    """Each request alone, as the harness defines it."""
    found = []
    for question, answer in asked:
        ids = (question + answer)[-(MAX_LENGTH + 1) :]
        scores = F.log_softmax(logits(model, ids[:-1]), dim=-1)[-len(answer) :]
        targets = torch.tensor(answer)
        best = bool((scores.argmax(dim=-1) == targets).all())
        found.append((float(scores.gather(1, targets[:, None]).sum()), best))
    return found


def assert_equal(found: list[tuple[float, bool]], model: Any, asked: list[Request]) -> None:
    """Scores no less exact than each request's alone by the plain formulas."""

    def scores(answers: list[tuple[float, bool]]) -> torch.Tensor:
        return torch.tensor([score for score, _ in answers], dtype=torch.float64)

    plain = plainly(model, lambda m: scores(expected(m, asked)))
    assert_as_exact(scores(found).float(), *plain, floor=CHUNKED_FLOOR)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected(model, asked)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_sharing_changes_no_score(random_wuneng: Make, variant: str) -> None:
    model = random_wuneng(**VARIANTS[variant])
    assert can_share(model)
    asked = requests() + greedy_requests(model)
    wanted = expected(model, asked)
    assert 0 < sum(greedy for _, greedy in wanted) < len(wanted)
    for limits in (AUTO, TIGHT):
        assert_equal(score_answers(model, asked, MAX_LENGTH, limits), model, asked)


def tiny_mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, sliding_window=9, initializer_range=0.3,
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_transformers_own_models(kind: str, random_llama: Make) -> None:
    model = random_llama() if kind == "llama" else tiny_mistral().eval()
    assert can_share(model)
    asked = requests(1)
    for limits in (AUTO, TIGHT):
        assert_equal(score_answers(model, asked, MAX_LENGTH, limits), model, asked)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention(random_wuneng: Make, attention: str) -> None:
    model = random_wuneng(sliding_window=8)
    model.set_attn_implementation(attention)
    asked = requests(2)
    assert_equal(score_answers(model, asked, MAX_LENGTH, TIGHT), model, asked)


def test_bfloat16_differs_by_its_rounding(random_wuneng: Make) -> None:
    """Log-probabilities and their sums are rounded to bfloat16, as the harness has them."""
    model = random_wuneng(initializer_range=0.05).to(torch.bfloat16)
    asked = requests(3)
    found = [score for score, _ in score_answers(model, asked, MAX_LENGTH, AUTO)]
    wanted = [score for score, _ in expected(model, asked)]
    assert found == pytest.approx(wanted, rel=2**-6)
    assert found == torch.tensor(found).to(torch.bfloat16).tolist()
    exact = score_answers(model, asked, MAX_LENGTH, AUTO, softmax_dtype=torch.float32)
    assert [score for score, _ in exact] != found
    assert [score for score, _ in exact] == pytest.approx(wanted, rel=2**-6)


def test_the_larger_of_equal_tokens_is_not_greedy(random_wuneng: Make) -> None:
    """Among equally probable tokens the first is the greedy one, as argmax has it."""
    model = random_wuneng()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    asked = [([1] * 20, [0]), ([1] * 20, [1]), ([2] * 5, [0, 0]), ([2] * 5, [0, 3])]
    found = score_answers(model, asked, MAX_LENGTH, AUTO)
    assert [greedy for _, greedy in found] == [True, False, True, False]


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
    assert_equal(found, model, asked)
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
    assert_equal(score_answers(model, asked, MAX_LENGTH, AUTO), model, asked)


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


def test_other_models_are_left_to_the_harness(
    load: Load, wuneng_directory: Path, random_llama: Make
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8))
    assert not can_share(other)
    llama = random_llama()
    llama.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not can_share(llama)
    loaded = load(wuneng_directory)
    assert HarnessModel(loaded).share
    assert not HarnessModel(loaded, companion=True).share


def test_tasks_score_alike_with_and_without_sharing(
    load: Load, wuneng_directory: Path, all_files: Path, tmp_path: Path
) -> None:
    suite = ["arc", "hellaswag", "piqa", "winogrande", "obqa", "boolq", "copa", "lambada", "mmlu"]
    tasks = load_tasks(suite, data_dir=all_files, workspace=tmp_path, num_fewshot=0)
    loaded = load(wuneng_directory)
    shared, alone = (
        run_tasks(HarnessModel(loaded, share=share), tasks, log_items=True)
        for share in (True, False)
    )
    for name, outcomes in alone.items():
        for metric, one in outcomes.metrics.items():
            value = shared[name].metrics[metric].estimate().value
            assert value == pytest.approx(one.estimate().value, rel=1e-4), (name, metric)
        for item, other in zip(shared[name].items, outcomes.items, strict=True):
            scores = other["outcome"].pop("loglikelihoods")
            assert item["outcome"].pop("loglikelihoods") == pytest.approx(
                scores, rel=2e-5, abs=1e-4
            )
            if not name.startswith("lambada"):
                assert item == other


@pytest.mark.parametrize("directory", ["wuneng_directory", "tinystories"])
def test_texts_are_tokenised_as_the_harness_does(
    load: Load, request: pytest.FixtureRequest, directory: str
) -> None:
    if directory == "tinystories":
        path = request.getfixturevalue("shared_data") / "models" / "tinystories_656k"
    else:
        path = request.getfixturevalue(directory)
    model = HarnessModel(load(path))
    mark = model.tokenizer.decode(model.prefix_token_id)
    pairs = [
        ("The cat", " sat"), ("The cat ", "sat on  it"), ("naïve: ", "日本"), ("", "Once"),
        (f"{mark}The owl", " flew"), ("The cat", " ran"), ("   ", "blank"),
    ]  # fmt: skip
    alone = [_encoded(model, *pair) for pair in pairs]
    model._encode_all(pairs)
    asked = len(model._encoded)
    calls: list[str] = []
    model.tokenizer.encode = lambda text, **_: calls.append(text)
    assert [_encoded(model, *pair) for pair in pairs] == alone
    assert (calls, len(model._encoded)) == ([], asked)


def _encoded(model: HarnessModel, question: str, answer: str) -> Any:
    if question == "":
        return list(model.tok_encode(answer, add_special_tokens=False))
    return [list(part) for part in model._encode_pair(question, answer)]
