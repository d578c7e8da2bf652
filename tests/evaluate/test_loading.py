"""Model directories: good ones load, bad ones are one clear message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from wuneng.errors import InputError, ModelError
from wuneng.evaluate.loading import model_label
from wuneng.records import run_of

Load = Callable[..., Any]


@pytest.fixture
def copy(llama_directory: Path, tmp_path: Path) -> Path:
    """A model directory to break."""
    return Path(shutil.copytree(llama_directory, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_llama_and_a_wuneng_load(
    load: Load, llama_directory: Path, wuneng_directory: Path
) -> None:
    for directory, kind in ((llama_directory, "llama"), (wuneng_directory, "wuneng")):
        loaded = load(directory)
        assert loaded.describe()["model_type"] == kind
        assert loaded.tokenizer is not None
        assert not loaded.model.training


def test_dtype(load: Load, llama_directory: Path) -> None:
    assert load(llama_directory).model.dtype == torch.float32
    assert load(llama_directory, dtype="bf16").model.dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"--dtype: expected one of .* Did you mean 'bf16'"):
        load(llama_directory, dtype="bf-16")


def test_no_configuration(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{broken", "[]", "{}", '{"model_type": 3}'])
def test_broken_configuration(load: Load, copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json: (not readable as JSON|no 'model_type')"):
        load(copy)


def test_unknown_model_type(load: Load, copy: Path) -> None:
    edit(copy, model_type="lama")
    with pytest.raises(
        ModelError, match=r"config.json: model_type 'lama' is not known\. Did you mean 'llama'"
    ):
        load(copy)


def test_not_a_language_model(load: Load, copy: Path) -> None:
    edit(copy, model_type="vit")
    with pytest.raises(ModelError, match="'vit' is not a causal language model"):
        load(copy)


def test_contradictory_configuration(load: Load, copy: Path) -> None:
    edit(copy, num_attention_heads="many")
    with pytest.raises(ModelError, match="cannot load the model: "):
        load(copy)


def test_truncated_weights(load: Load, copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot load the model: ") as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_missing_weights(load: Load, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the model: "):
        load(copy)


def test_missing_tensors_are_not_filled_with_random_numbers(load: Load, copy: Path) -> None:
    edit(copy, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"lack or misshape 9 tensors .* model\.layers\.2\."):
        load(copy)


def test_misshapen_tensors(load: Load, copy: Path) -> None:
    edit(copy, intermediate_size=48)
    with pytest.raises(
        ModelError, match=r"misshape 6 tensors .*down_proj.weight \(\[.*, not .*48\]"
    ):
        load(copy)


def test_code_in_the_directory_is_not_run(load: Load, copy: Path, tmp_path: Path) -> None:
    (copy / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit(copy, auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"})
    with suppress(ModelError):  # refused, or loaded by transformers' own class
        load(copy)
    assert not (tmp_path / "ran").exists()


def test_without_tokenizer(load: Load, copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    loaded = load(copy)
    assert loaded.tokenizer is None
    said = r"has no tokenizer .* reads token ids, not text.*--tokenizer bytes"
    with pytest.raises(ModelError, match=said):
        loaded.require_tokenizer()


def test_broken_tokenizer(load: Load, copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the tokenizer: "):
        load(copy)


def test_a_bare_tokenizer_takes_its_marks_from_the_configuration(load: Load, copy: Path) -> None:
    (copy / "tokenizer_config.json").unlink()
    tokenizer = load(copy).tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 256)
    assert tokenizer.encode("a") == [97]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        *(("bos_token_id", -1), ("bos_token_id", 2**32), ("eos_token_id", -1)),
        *(("eos_token_id", 257), ("eos_token_id", -(2**70)), ("eos_token_id", [10**30])),
    ],
)
def test_a_mark_that_is_no_token_is_named(load: Load, copy: Path, name: str, index: Any) -> None:
    (copy / "tokenizer_config.json").unlink()
    edit(copy, **{name: index})
    with pytest.raises(ModelError, match=rf"config\.json: {name}: expected a token .* 0 to 256"):
        load(copy)


@pytest.mark.parametrize("loader", ["evaluate", "train", "convert"])
def test_a_panic_over_the_weights_is_told_by_every_loader(
    load: Load, copy: Path, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wuneng.convert.probe import Probe
    from wuneng.convert.verify import answers_of
    from wuneng.model import pretrained
    from wuneng.train.starting_point import load_start

    class Panic(BaseException):
        """As Rust's panics come: no Exception."""

    def panic(*_: Any, **__: Any) -> None:
        raise Panic("index out of bounds")

    monkeypatch.setattr(pretrained, "load_causal_model", panic)
    probe: Any = Probe
    loaders = {
        "evaluate": lambda: load(copy),
        "train": lambda: load_start(copy),
        "convert": lambda: answers_of(copy, torch.float32, probe),
    }
    with pytest.raises(ModelError, match=r"model: cannot load the model: index out of bounds"):
        loaders[loader]()


@pytest.mark.parametrize("kind", ["WordLevel", "Unigram"])
def test_a_tokenizer_without_an_unknown_token_need_not_know_every_letter(kind: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from wuneng.model.pretrained import try_tokenizer

    words = ["once", "upon", "a", "time"]
    made = {
        "WordLevel": lambda: models.WordLevel({word: i for i, word in enumerate(words)}),
        "Unigram": lambda: models.Unigram([(word, -1.0) for word in words]),
    }
    tokenizer = Tokenizer(made[kind]())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    with pytest.raises(Exception, match=r"(?i)unk"):
        fast("wörld")
    try_tokenizer(fast)


def test_a_tokenizer_that_reads_nothing_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from wuneng.model.pretrained import try_tokenizer

    tokenizer = Tokenizer(models.WordLevel({"once": 0, "upon": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("n", "isolated")  # no word comes through whole
    with pytest.raises(Exception, match="UNK"):
        try_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_a_tokenizer_of_another_model(load: Load, copy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<{i}>" for i in range(10)])
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary["model"]["vocab"].update({f"extra{i}": 257 + i for i in range(5)})
    vocabulary["added_tokens"] = vocabulary["added_tokens"][:1]
    (copy / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ModelError, match=r"tokenizer has 26\d tokens, the model only 257"):
        load(copy)


def test_labels_and_runs(text_run: Path, llama_directory: Path) -> None:
    model = text_run / "wuneng" / "model"
    assert model_label(model) == "letters/wuneng"
    assert model_label(llama_directory) == "llama"
    found = run_of(model)
    assert found is not None
    assert found.path == text_run.resolve()
    assert run_of(llama_directory) is None
    seeded = text_run / "mha" / "seed-3" / "model"
    seeded.mkdir(parents=True)
    assert model_label(seeded) == "letters/mha/seed-3"
