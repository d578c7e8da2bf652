"""A run of four small arms that start from a Llama."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from tests.convert.sources import save_source
from tests.train.tiny import Watcher
from wuneng.convert import ConvertedSources
from wuneng.recipe import Recipe, load_recipe
from wuneng.train import Results, run

STEPS = 4


RECIPE: dict[str, Any] = {
    "name": "up",
    "train": "new",
    "model": {"num_state_heads": 2, "decay_rank": 4, "rate_rank": 4, "state_a_max": 2.0},
    "arms": {
        "source": {"model": {"num_state_heads": 0}, "train": "none"},
        "wuneng": {},
        "lora": {"model": {"num_state_heads": 0}, "lora": {"match": "wuneng"}},
        "taught": {"distill": {"kl": 0.5, "ce": 0.25, "temperature": 2.0}},
    },
    "data": {"kind": "text", "tokenizer": "bytes", "validation_fraction": 0.2},
    "training": {
        "steps": STEPS,
        "sequence_length": 32,
        "batch_size": 4,
        "learning_rate": 0.01,
        "log_every": 1,
        "validate_every": 2,
        "checkpoint_every": 1,
        "num_threads": 1,
        "learning_rates": {"cross_head": 3.0},
    },
    "device": "cpu",
}


def save_sources(place: Path) -> None:
    """Into ``place``: a random Llama of bytes and a few documents."""
    save_source(place / "llama", vocab_size=257, tie_word_embeddings=True)
    documents = [f"Number {n} is followed by {n + 1}, and {n + 1} by {n + 2}." for n in range(60)]
    rows = (json.dumps({"text": text}) for text in documents)
    (place / "texts.jsonl").write_text("\n".join(rows))


def recipe(place: Path, *changes: str) -> Recipe:
    path = place / "up.yaml"
    own = path.with_name(f"{path.name}.{os.getpid()}")
    own.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    own.replace(path)  # at once: each of several processes writes it, and another may be reading
    where = (
        f"init_from={place / 'llama'}",
        f"data.train={place / 'texts.jsonl'}",
        f"data.cache_dir={place / 'cache'}",
    )
    return load_recipe(path, [*where, *changes])


def train(place: Path, out: Path, *changes: str, **options: Any) -> tuple[Results, Watcher]:
    watcher = options.pop("display", None) or Watcher()
    sources = options.pop("sources", ConvertedSources())
    chosen = recipe(place, *changes)
    return run(chosen, out, display=watcher, runs_root=out.parent, sources=sources), watcher


def checkpoint_of(run_directory: Path, arm: str, file: str) -> dict[str, torch.Tensor]:
    return load_file(run_directory / arm / "checkpoints" / f"step-{STEPS}" / file)
