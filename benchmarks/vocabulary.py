"""Peak memory of a training step as the vocabulary grows: the step, and the peak, of
`wuneng bench --what train`, each vocabulary in a process of its own.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.vocabulary --out benchmarks/vocabulary.json

Width 256, six layers, four thousand tokens at once. ``beside_bytes`` is the peak (weights,
gradients, optimiser and what the step allocates) without what an embedding of that size weighs by
itself: its weights, their gradient and AdamW's two moments. ``ratio`` is that against the smallest
vocabulary's. ``logits_bytes`` is what one float32 copy of the logits would weigh.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from wuneng.bench.architectures import Architecture
from wuneng.bench.machine import load_average
from wuneng.bench.memory import peak_bytes
from wuneng.bench.models import ModelStore, train_case
from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.device import environment
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.model.counting import total_parameters
from wuneng.records import write_json

VOCABULARIES = (8_192, 50_304, 151_936)
WIDTH, LAYERS, TOKENS = 256, 6, 4096
FLOAT32 = 4


def beside_embeddings(peak: int, vocabulary: int, width: int) -> int:
    """``peak`` bytes without a tied embedding's weights, gradient and two moments in float32."""
    return peak - 4 * FLOAT32 * vocabulary * width


def measured(vocabulary: int, tokens: int = TOKENS, width: int = WIDTH) -> dict[str, Any]:
    """One step of the bench's own case, in this process."""
    config = WuNengConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_state_heads=2,
        max_position_embeddings=TOKENS,
        **MIDDLE_WIRING,
    )
    store = ModelStore(torch.device("cpu"), torch.float32, "fp32")
    build = partial(WuNengForCausalLM, config)
    architecture = Architecture("wuneng", config, build, total_parameters(config))
    train_case(store, architecture, 1, 32).prepare().call(0)  # the optimiser's states are there
    step = train_case(store, architecture, 1, tokens).prepare()
    began = time.perf_counter()
    peak = step.held_bytes + peak_bytes(lambda: step.call(0), store.device)
    return {
        "vocabulary": vocabulary,
        "peak_bytes": peak,
        "beside_bytes": beside_embeddings(peak, vocabulary, width),
        "logits_bytes": FLOAT32 * tokens * vocabulary,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Measure every vocabulary and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    before = load_average()
    found: list[dict[str, Any]] = []
    for vocabulary in VOCABULARIES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            row = process.submit(measured, vocabulary).result()
        smallest = (found or [row])[0]["beside_bytes"]
        found.append({**row, "ratio": row["beside_bytes"] / smallest})
        print(f"{vocabulary:,} words: {row['beside_bytes'] / 1e6:,.0f} MB", flush=True)
    write_json(
        options.out,
        {
            "schema": 1,
            "environment": environment(["python", "-m", "benchmarks.vocabulary"]),
            "load_average": {"start": before, "end": load_average()},
            "width": WIDTH,
            "layers": LAYERS,
            "tokens": TOKENS,
            "steps": found,
        },
    )


if __name__ == "__main__":
    main()
