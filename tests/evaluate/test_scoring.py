"""Shared scoring gives the figures of a plain forward call for each request, whatever the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluate.scoring_cases import (
    AUTO,
    MAX_LENGTH,
    TIGHT,
    VARIANTS,
    assert_equal,
    expected,
    greedy_requests,
    requests,
)
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.evaluate.harness import run_tasks
from wuneng.evaluate.harness_model import HarnessModel
from wuneng.evaluate.scoring import can_share, score_answers
from wuneng.evaluate.task_loading import load_tasks

Load = Callable[..., Any]


Make = Callable[..., Any]


@pytest.mark.parametrize("variant", VARIANTS)
def test_sharing_changes_no_score(random_wuneng: Make, variant: str) -> None:
    model = random_wuneng(**VARIANTS[variant])
    assert can_share(model)
    asked = requests() + greedy_requests(model)
    wanted = expected(model, asked)
    assert 0 < sum(greedy for _, greedy in wanted) < len(wanted)
    found = [score_answers(model, asked, MAX_LENGTH, limits) for limits in (AUTO, TIGHT)]
    assert_equal(model, asked, *found)


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
    found = [score_answers(model, asked, MAX_LENGTH, limits) for limits in (AUTO, TIGHT)]
    assert_equal(model, asked, *found)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention(random_wuneng: Make, attention: str) -> None:
    model = random_wuneng(sliding_window=8)
    model.set_attn_implementation(attention)
    asked = requests(2)
    assert_equal(model, asked, score_answers(model, asked, MAX_LENGTH, TIGHT))


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


def _taken(items: list[Any]) -> torch.Tensor:
    """The log likelihoods of all items, which are taken out of them."""
    values = [item["outcome"].pop("loglikelihoods") for item in items]
    return torch.tensor([x for scores in values for x in scores], dtype=torch.float64)


def test_tasks_score_alike_with_and_without_sharing(
    load: Load, wuneng_directory: Path, all_files: Path, tmp_path: Path
) -> None:
    suite = ["arc", "hellaswag", "piqa", "winogrande", "obqa", "boolq", "copa", "lambada", "mmlu"]
    tasks = load_tasks(suite, data_dir=all_files, workspace=tmp_path, num_fewshot=0)
    loaded = load(wuneng_directory)
    wide = replace(loaded, model=copy.deepcopy(loaded.model).double())
    shared, alone, exact = (
        run_tasks(HarnessModel(model, share=share), tasks, log_items=True)
        for model, share in ((loaded, True), (loaded, False), (wide, False))
    )
    for name, outcomes in alone.items():
        for metric, one in outcomes.metrics.items():
            value = shared[name].metrics[metric].estimate().value
            assert value == pytest.approx(one.estimate().value, rel=1e-4), (name, metric)
        found, plain, truth = (_taken(side[name].items) for side in (shared, alone, exact))
        assert_as_exact(found.float(), plain.float(), truth, name, floor=CHUNKED_FLOOR)
        for item, other in zip(shared[name].items, outcomes.items, strict=True):
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
