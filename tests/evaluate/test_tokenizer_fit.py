"""Tokenizers that append an end of text, and those with more tokens than the model has rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from typer.testing import CliRunner

from wuneng.data.tokenizer import END_OF_TEXT, byte_tokenizer
from wuneng.errors import ModelError
from wuneng.evaluate.tokenizer_fit import drop_appended

Load = Callable[..., Any]
Make = Callable[..., Path]
END = (END_OF_TEXT, 256)
TEMPLATES = {
    "end": processors.TemplateProcessing("$A <|endoftext|>", special_tokens=[END]),
    "both": processors.TemplateProcessing(
        "<|endoftext|> $A <|endoftext|>",
        pair="<|endoftext|> $A <|endoftext|> $B:1 <|endoftext|>:1",
        special_tokens=[END],
    ),
    "sequence": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing("$A <|endoftext|>", special_tokens=[END]),
        ]
    ),
    "bert": processors.BertProcessing(END, END),
    "roberta": processors.RobertaProcessing(END, END),
}
IN_FRONT = ("both", "bert", "roberta")


def with_template(template: Any) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_appended_is_dropped_and_what_is_in_front_stays(name: str) -> None:
    tokenizer = with_template(TEMPLATES[name])
    assert tokenizer("cat")["input_ids"][-1] == 256
    remark = drop_appended(tokenizer)
    assert remark is not None
    assert "appends <|endoftext|>" in remark
    front = [256] if name in IN_FRONT else []
    cat, is_in = list(b"cat"), list(b"naive")
    assert tokenizer("cat")["input_ids"] == [*front, *cat]
    assert tokenizer(["cat", "naive"])["input_ids"] == [[*front, *cat], [*front, *is_in]]
    assert tokenizer.encode("cat", add_special_tokens=False) == cat
    assert drop_appended(tokenizer) is None, "once"


def test_an_ordinary_tokenizer_is_left_alone() -> None:
    assert drop_appended(byte_tokenizer()) is None
    front = with_template(processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[END]))
    assert drop_appended(front) is None
    assert front("a")["input_ids"] == [256, 97]


def test_a_tokenizer_in_python() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    assert drop_appended(tokenizer) is not None
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]


@pytest.fixture
def pair(llama_directory: Path, tmp_path: Path, load: Load) -> tuple[Path, Path]:
    """The same model twice, its tokenizer as it is and appending."""
    plain, appending = tmp_path / "plain", tmp_path / "appending"
    for place, template in ((plain, None), (appending, TEMPLATES["end"])):
        load(llama_directory).model.save_pretrained(place)
        tokenizer = byte_tokenizer() if template is None else with_template(template)
        tokenizer.save_pretrained(place)
    return plain, appending


def test_scores_and_texts_are_those_of_the_plain_one(
    pair: tuple[Path, Path], make_files: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wuneng_cli.main import app

    monkeypatch.chdir(tmp_path)
    files = make_files(6, "copa_val.jsonl", "gsm8k_test.jsonl", "gsm8k_train.jsonl")
    figures, texts = [], []
    for place in pair:
        line = ["eval", place, "--tasks", "copa,gsm8k", "--data-dir", files, "--log-samples"]
        result = CliRunner().invoke(app, [*map(str, line), "--limit", "3", "--num-fewshot", "0"])
        assert result.exit_code == 0, result.output
        record = json.loads((tmp_path / "runs" / "eval" / place.name / "eval.json").read_text())
        figures.append([task["items"] for task in record["tasks"].values()])
        line = ["generate", place, "--prompt", "cats", "--temperature", "0", "--max-tokens", "9"]
        written = CliRunner().invoke(app, [*map(str, line), "--json"])
        texts.append(json.loads(written.stdout)["text"])
        appends = place.name == "appending"
        assert ("appends <|endoftext|>" in " ".join(result.stdout.split())) is appends
        assert written.stderr.count("appends <|endoftext|>") == appends
    assert figures[0] == figures[1]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("special", [True, False])
def test_more_tokens_than_rows(load: Load, tiny: Make, special: bool) -> None:
    place = tiny("llama")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>", "<more>"], special_tokens=special)
    tokenizer.save_pretrained(place)
    without = r"without one: '<extra>' \(257\), '<more>' \(258\)"
    with pytest.raises(ModelError, match=rf"has 259 tokens, .* only 257 rows .*{without}"):
        load(place)


def test_more_rows_than_tokens_is_fine(load: Load, tiny: Make) -> None:
    assert load(tiny("wuneng", vocab_size=320)).tokenizer is not None
