"""Tiny models and small evaluation files, made on the fly, so that nothing has to be downloaded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rows = dict[str, list[dict[str, Any]]]
ANIMALS = ("cat", "dog", "owl", "bee", "fox", "hen", "ant", "cow")


def _arc(i: int) -> dict[str, Any]:
    labels = ["A", "B", "C", "D"] if i % 3 else ["1", "2", "3"]
    return {
        "id": f"q{i}",
        "question": f"Which animal is number {i}?",
        "choices": {"text": [f"the {a}" for a in ANIMALS[: len(labels)]], "label": labels},
        "answerKey": labels[i % len(labels)],
    }


def evaluation_rows(count: int) -> Rows:
    """``count`` rows of every layout, by file name."""
    numbers = range(count)
    subjects = ("anatomy", "astronomy")
    return {
        "arc_easy_test.jsonl": [_arc(i) for i in numbers],
        "arc_easy_train.jsonl": [_arc(i + 1000) for i in numbers],
        "arc_challenge_test.jsonl": [_arc(i + 100) for i in numbers],
        "hellaswag_val.jsonl": [
            {
                "idx": i,
                "activity_label": "Feeding animals",
                "ctx": f"A man has {i} bowls. he",
                "endings": [f"feeds a {animal}." for animal in ANIMALS[:4]],
                "label": i % 4,
            }
            for i in numbers
        ],
        "piqa_valid.jsonl": [
            {"goal": f"Feed {i} cats", "sol1": "Use a bowl.", "sol2": "Use a hammer."}
            for i in numbers
        ],
        "winogrande_validation.jsonl": [
            {
                "sentence": f"The cat chased {i} mice until _ was tired.",
                "option1": "the cat",
                "option2": "the mouse",
                "answer": str(1 + i % 2),
            }
            for i in numbers
        ],
        "openbookqa_test.jsonl": [
            {"question_stem": f"Animal {i} is", **{k: _arc(i)[k] for k in ("choices", "answerKey")}}
            for i in numbers
        ],
        "boolq_val.jsonl": [
            {
                "question": f"is {i} an animal",
                "passage": "Animals -- They live.",
                "idx": i,
                "label": i % 3 != 0,
            }
            for i in numbers
        ],
        "copa_val.jsonl": [
            {
                "premise": f"The cat saw {i} birds.",
                "choice1": "It purred.",
                "choice2": "It slept.",
                "question": ("cause", "effect")[i % 2],
                "label": i % 2,
                "idx": i,
            }
            for i in numbers
        ],
        "lambada_openai_test.jsonl": [
            {"text": f"There were {i} animals and one of them was a {ANIMALS[i % 8]}"}
            for i in numbers
        ],
        "sciq_validation.jsonl": [
            {
                "question": f"What barks {i} times?",
                "distractor1": "cats",
                "distractor2": "owls",
                "distractor3": "bees",
                "correct_answer": "dogs",
                "support": " Dogs bark.",
            }
            for i in numbers
        ],
        **{
            f"mmlu_{split}.jsonl": [
                {
                    "question": f" Which {split} bone {i}?",
                    "subject": subjects[i % 2],
                    "choices": ["arm", "leg", "rib", "jaw"],
                    "answer": i % 4,
                }
                for i in numbers
            ]
            for split in ("test", "dev")
        },
        **{
            f"gsm8k_{split}.jsonl": [
                {"question": f"What is {i} plus 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}
                for i in numbers
            ]
            for split in ("test", "train")
        },
    }


def write_rows(directory: Path, rows: Rows) -> Path:
    """The files of ``rows`` (a name ending in .gz is packed), and PIQA's labels beside its file."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        data = text.encode("utf-8")
        (directory / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        if name == "piqa_valid.jsonl":
            labels = "".join(f"{i % 2}\n" for i in range(len(lines)))
            (directory / "piqa_valid-labels.lst").write_text(labels)
    return directory


@pytest.fixture(scope="session")
def make_rows() -> Callable[[int], Rows]:
    """``make_rows(count)``: rows of every layout, by file name."""
    return evaluation_rows


@pytest.fixture
def make_files(tmp_path: Path) -> Callable[..., Path]:
    """``make_files(count, *names)``: a directory with these files, all of them when none is named;
    ``changes`` replaces rows of a file."""

    def make(count: int, *names: str, changes: Rows | None = None) -> Path:
        rows = {**evaluation_rows(count), **(changes or {})}
        chosen = {name: rows[name] for name in names or rows}
        return write_rows(tmp_path / "data", chosen)

    return make


@pytest.fixture(scope="session")
def all_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows of every layout."""
    return write_rows(tmp_path_factory.mktemp("all-files"), evaluation_rows(8))


def save_model(model: Any, directory: Path, *, tokenizer: bool = True) -> Path:
    """A complete transformers directory."""
    from wuneng.data.tokenizer import byte_tokenizer

    model.save_pretrained(directory)
    if tokenizer:
        byte_tokenizer().save_pretrained(directory)
    return directory


#: What the tiny models have in common.
TINY: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 256,
}


def tiny_llama(context: int = 512, seed: int = 0) -> Any:
    """A random Llama over bytes, its outputs sharp enough that answers differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    changes: dict[str, Any] = {"max_position_embeddings": context, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**{**TINY, **changes})).float()


def tiny_wuneng(seed: int = 0, **changes: Any) -> Any:
    """A random WuNeng over bytes, with weights large enough that its state matters."""
    import torch

    from wuneng.model import WuNengConfig, WuNengForCausalLM

    torch.manual_seed(seed)
    ours = {
        "num_state_heads": 2,
        "cross_head": "gated",
        "initializer_range": 0.2,
        "output_init": "normal",
    }
    return WuNengForCausalLM(WuNengConfig(**{**TINY, **ours, **changes})).float()


@pytest.fixture(scope="session")
def random_wuneng() -> Callable[..., Any]:
    """``random_wuneng(**changes)``: a fresh WuNeng in evaluation mode."""
    return lambda **changes: tiny_wuneng(**changes).eval()


@pytest.fixture(scope="session")
def random_llama() -> Callable[..., Any]:
    """``random_llama(**changes)``: a fresh Llama in evaluation mode."""
    return lambda **changes: tiny_llama(**changes).eval()


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Llama directory with the byte tokenizer."""
    return save_model(tiny_llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def wuneng_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete WuNeng directory with the byte tokenizer."""
    return save_model(tiny_wuneng(), tmp_path_factory.mktemp("models") / "wuneng")


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """``tiny("llama" | "wuneng", **changes)``: the directory of a fresh random model."""

    def make(kind: str, *, tokenizer: bool = True, **changes: Any) -> Path:
        model = tiny_llama(**changes) if kind == "llama" else tiny_wuneng(**changes)
        return save_model(model, tmp_path / f"tiny-{kind}", tokenizer=tokenizer)

    return make


@pytest.fixture
def wuneng(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> Any:
        from typer.testing import CliRunner

        from wuneng_cli.main import app

        return CliRunner().invoke(app, [str(one) for one in arguments])

    return invoke


RECIPE = """
name: letters
arms: [wuneng, mha]
model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_state_heads: 2}
data: {kind: text, train: TEXT/train.jsonl, validation: TEXT/valid.jsonl, cache_dir: TEXT/cache}
training: {steps: 1, sequence_length: 64, batch_size: 2}
"""


@pytest.fixture
def text_run(tmp_path: Path) -> Path:
    """``runs/letters``: a run directory with two untrained arms over bytes, and its text."""
    text = tmp_path / "text"
    text.mkdir()
    for name, count in (("train", 20), ("valid", 12)):
        lines = [
            json.dumps({"text": f"{name} {i}: naïve cats, dogs and owls; " * (1 + i % 4)})
            for i in range(count)
        ]
        (text / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run = tmp_path / "runs" / "letters"
    save_model(tiny_wuneng(seed=1), run / "wuneng" / "model")
    save_model(tiny_wuneng(seed=2, num_state_heads=0), run / "mha" / "model")
    (run / "recipe.yaml").write_text(RECIPE.replace("TEXT", str(text)), encoding="utf-8")
    (tmp_path / "runs" / "latest").symlink_to("letters")
    return run


@pytest.fixture(scope="session")
def load() -> Callable[..., Any]:
    """``load(directory)``: the model of a directory, on the CPU."""
    import torch

    from wuneng.evaluate.loading import load_model

    def loaded(directory: Path, dtype: str = "auto") -> Any:
        return load_model(directory, device=torch.device("cpu"), dtype=dtype)

    return loaded
