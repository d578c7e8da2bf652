"""A training step's memory hardly grows with the vocabulary, beside the embeddings themselves."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.vocabulary import VOCABULARIES, WIDTH, beside_embeddings, measured
from wuneng.bench.memory import peak_bytes
from wuneng.ops.linear_cross_entropy import chunks, linear_cross_entropy
from wuneng.records import read_json

RECORD = Path(__file__).resolve().parents[2] / "benchmarks" / "vocabulary.json"


def test_a_step_at_eighteen_times_the_vocabulary() -> None:
    """As `benchmarks/vocabulary.json` has it at 4k tokens and width 256, in a smaller form."""
    small, large = (measured(words, tokens=1024, width=64) for words in (2_048, 37_984))
    assert large["logits_bytes"] > small["beside_bytes"], "whole logits would show"
    assert large["beside_bytes"] <= 1.3 * small["beside_bytes"]


def test_the_record_keeps_to_it() -> None:
    steps = read_json(RECORD)["steps"]
    assert [step["vocabulary"] for step in steps] == list(VOCABULARIES)
    for step in steps:
        beside = beside_embeddings(step["peak_bytes"], step["vocabulary"], WIDTH)
        assert step["ratio"] == beside / steps[0]["beside_bytes"] <= 1.3


def test_the_embeddings_share_is_what_is_taken_off() -> None:
    assert beside_embeddings(1_000_000, vocabulary=100, width=8) == 1_000_000 - 16 * 800


def test_one_chunk_of_logits_is_alive_at_a_time() -> None:
    words, width, rows = 20_000, 8, 2048
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(words, width, requires_grad=True)
    labels = torch.randint(words, (rows,))
    cpu = torch.device("cpu")
    part = next(iter(chunks(words, rows, cpu)))
    of_chunk = 4 * words * (part.stop - part.start)
    assert rows > 2 * (part.stop - part.start)
    gradients = 4 * width * (rows + words)
    peak = peak_bytes(lambda: linear_cross_entropy(hidden, weight, labels), cpu)
    assert peak - gradients < 1.2 * of_chunk
