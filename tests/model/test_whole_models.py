"""A model is loaded whole or not at all, by whoever loads it, and nothing is drawn meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from tests.model.small import small_model
from wuneng.bench.architectures import choose
from wuneng.bench.request import make_request
from wuneng.convert.probe import Probe
from wuneng.convert.verify import answers_of
from wuneng.errors import ModelError
from wuneng.evaluate.loading import load_model
from wuneng.model.pretrained import load_whole_model
from wuneng.model.quiet import quiet_transformers
from wuneng.train.starting_point import load_start

NORM = "model.layers.0.input_layernorm.weight"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


def ask(directory: Path) -> Any:
    return answers_of(directory, torch.float32, Probe(torch.tensor([[1, 2]]), [2], 0, "text"))


def bench(directory: Path) -> Any:
    request = make_request(model=str(directory), seq_len="16", against="none")
    return choose(request).architectures[0].build()


STRICT: dict[str, Callable[[Path], Any]] = {"train": load_start, "convert": ask}
LENIENT: dict[str, Callable[[Path], Any]] = {
    "eval": lambda path: load_model(path, device=torch.device("cpu")),
    "bench": bench,
}
CALLERS = {**STRICT, **LENIENT}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    small_model("default").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(directory: Path, **tensors: torch.Tensor | None) -> None:
    file = directory / "model.safetensors"
    kept = {**load_file(file), **{name.replace("__", "."): t for name, t in tensors.items()}}
    save_file({n: t for n, t in kept.items() if t is not None}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", CALLERS)
def test_a_missing_tensor_is_named(name: str, directory: Path) -> None:
    change(directory, **{NORM: None})
    with pytest.raises(ModelError, match=rf"lack or misshape 1 tensors .* calls for: {NORM}$"):
        CALLERS[name](directory)


@pytest.mark.parametrize("name", CALLERS)
def test_a_misshapen_tensor_is_named_with_both_shapes(name: str, directory: Path) -> None:
    change(directory, **{NORM: torch.ones(3)})
    with pytest.raises(ModelError, match=rf"calls for: {NORM} \(\[3\], not \[\d+\]\)$"):
        CALLERS[name](directory)


@pytest.mark.parametrize("name", STRICT)
def test_a_tensor_left_over_is_refused(name: str, directory: Path) -> None:
    change(directory, **{"model.more.weight": torch.ones(3)})
    with pytest.raises(ModelError, match=r"hold 1 tensors that .* call for: model\.more\.weight$"):
        STRICT[name](directory)


@pytest.mark.parametrize("name", LENIENT)
def test_a_tensor_left_over_is_nothing_to_who_only_runs_it(name: str, directory: Path) -> None:
    change(directory, **{"model.more.weight": torch.ones(3)})
    LENIENT[name](directory)


def test_frequencies_of_old_checkpoints_are_not_left_over(directory: Path) -> None:
    change(directory, **{INV_FREQ: torch.ones(3)})
    load_whole_model(directory)


@pytest.mark.parametrize("name", CALLERS)
def test_nothing_is_drawn(name: str, directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.enable_progress_bar()
    verbosity = logging.get_verbosity()
    CALLERS[name](directory)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == verbosity


def test_what_was_off_stays_off() -> None:
    logging.disable_progress_bar()
    try:
        with quiet_transformers():
            pass
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()
    with pytest.raises(KeyError), quiet_transformers():
        raise KeyError
    assert logging.is_progress_bar_enabled()
