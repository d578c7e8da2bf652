"""The byte tokenizer, a trained BPE, tokenizers from elsewhere, and what tokens spell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TextIteratorStreamer

from wuneng import WuNengConfig
from wuneng.convert.probe import make_probe
from wuneng.data.encoding import Encoder
from wuneng.data.files import find_files
from wuneng.data.prepare import prepare_text
from wuneng.data.tokenizer import (
    END_OF_TEXT,
    byte_tokenizer,
    load_tokenizer,
    train_byte_pair_tokenizer,
)
from wuneng.errors import DataError, ModelError
from wuneng.evaluate import loading
from wuneng.evaluate.tokenizer_fit import check_rows, drop_appended
from wuneng.model.pretrained import encoded
from wuneng.model.token_ids import check_stored_ids
from wuneng.train.starting_point import OwnModels
from wuneng.train.vocabulary import text_vocabulary

BYTES = byte_tokenizer()
ENCODER = Encoder(BYTES)
ANY_TEXT = st.text(st.characters(codec="utf-8"))
ODD = "naïve\r\n\n\t  two  <|endoftext|> é€😀\x00 end\n"


@given(ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_byte_tokens_are_the_bytes(text: str) -> None:
    content = text.encode("utf-8")
    assert ENCODER.encode([text])[0].tolist() == [256, *content]
    if END_OF_TEXT not in text:
        ids = BYTES(text)["input_ids"]
        assert ids == list(content)
        assert BYTES.decode(ids) == text


def test_every_single_byte_has_its_token() -> None:
    assert len(BYTES) == 257
    assert BYTES.eos_token_id == BYTES.bos_token_id == 256
    assert ENCODER.spelling.lengths.tolist() == [1] * 256 + [0]
    assert np.flatnonzero(ENCODER.spelling.ends_line).tolist() == [10]
    assert BYTES.decode([0xC3]) == "\ufffd"  # half a letter is no error
    assert BYTES.decode([104, 256, 105], skip_special_tokens=True) == "hi"


def test_byte_tokenizer_comes_back_and_streams(tmp_path: Path) -> None:
    BYTES.save_pretrained(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    assert loaded(ODD)["input_ids"] == BYTES(ODD)["input_ids"]
    assert (loaded.eos_token_id, loaded.bos_token_id, len(loaded)) == (256, 256, 257)
    assert Encoder(loaded).digest == ENCODER.digest
    streamer = TextIteratorStreamer(loaded, skip_special_tokens=True)
    text = "né 😀 fin"
    for byte in text.encode("utf-8"):
        streamer.put(np.array([byte]))
    streamer.end()
    assert "".join(streamer) == text


def test_trained_byte_pairs_are_deterministic_and_round_trip(
    tmp_path: Path, stories: list[str]
) -> None:
    first, second = (train_byte_pair_tokenizer(stories, 300, "v") for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(first) == 300
    first.save_pretrained(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    encoder = Encoder(loaded)
    text = stories[40] + "never seen: Ω€😀\n"
    tokens = encoder.encode([text])[0]
    assert len(tokens) < len(text.encode("utf-8"))
    assert loaded.decode(tokens[1:]) == text
    assert encoder.spelling.lengths[tokens].sum() == len(text.encode("utf-8"))


def test_trained_size_must_be_possible() -> None:
    with pytest.raises(DataError, match=r"v: expected at least 257 .*, got 256"):
        train_byte_pair_tokenizer(["abc"], 256, "v")
    with pytest.raises(DataError, match=r"v: .* pairs for 259 tokens only; expected at most 259"):
        train_byte_pair_tokenizer(["abc"], 5000, "v")


@pytest.mark.parametrize(
    ("place", "start", "end", "exact"),
    [
        ("tokenizers/gpt_neox_20b_tokenizer.json", 0, 0, True),
        ("models/stories260k", 1, 2, False),  # puts a blank in front
        ("models/tinystories_656k", 1, 2, False),
    ],
)
def test_tokenizers_from_elsewhere(
    shared_data: Path, place: str, start: int, end: int, exact: bool
) -> None:
    encoder = Encoder(load_tokenizer(str(shared_data / place)))
    assert (encoder.start, encoder.end) == (start, end)
    text = "Once upon a time,\n\nthere was  a <|endoftext|> </s> cat.\n"
    tokens = encoder.encode([text])[0]
    assert tokens[0] == start
    # The names of special tokens inside a document are text, not marks.
    assert np.isin(tokens, [start, end]).sum() == (1 if start == end else 2)
    spelled = encoder.spelling.lengths[tokens].sum() - len(text)
    assert spelled == 0 if exact else 0 <= spelled <= 1


def test_long_documents_are_cut_where_tokens_end(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(load_tokenizer(str(shared_data / "tokenizers/gpt_neox_20b_tokenizer.json")))
    text = (shared_data / "text/tinyshakespeare.txt").read_text()[:20_000]
    whole = encoder.encode([text])[0]
    monkeypatch.setattr("wuneng.data.encoding._PIECE_CHARACTERS", 1000)
    assert encoder.encode([text])[0].tolist() == whole.tolist()
    unbroken = "x" * 2500
    assert len(encoder.tokenizer.decode(encoder.encode([unbroken])[0][1:])) == 2500


def test_bad_tokenizers_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer: 'byte' is neither 'bytes' nor.*'bytes'"):
        load_tokenizer("byte")
    with pytest.raises(DataError, match=r"data\.tokenizer: no tokenizer directory or file '\./x'"):
        load_tokenizer("./x")
    with pytest.raises(DataError, match=r"data\.tokenizer: directory .* holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer file"):
        load_tokenizer(str(broken))


def test_a_tokenizer_without_an_end_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(DataError, match=r"data\.tokenizer: .* has no end-of-text token"):
        Encoder(PreTrainedTokenizerFast(tokenizer_object=bare))


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


def _panic(*args: object, **kwargs: object) -> None:
    raise Panic("index out of bounds")


@pytest.mark.parametrize("method", ["from_pretrained", "__call__", "decode"])
def test_a_panic_in_rust_is_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(PreTrainedTokenizerFast, method, _panic)
    message = "holds no tokenizer that can be loaded: index out of bounds"
    with pytest.raises(DataError, match=message):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match="cannot load the tokenizer: index out of bounds"):
        loading.load_tokenizer(tmp_path)


def test_a_tokenizer_that_breaks_down_over_the_first_text(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": [1]}))
    with pytest.raises(DataError, match="holds no tokenizer that can be loaded: '>' not supported"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match="cannot load the tokenizer: '>' not supported"):
        loading.load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["a" * 5000, "/" + "b" * 300, "~nobody-of-that-name/x"])
def test_names_that_are_no_paths(name: str) -> None:
    with pytest.raises(DataError, match=r"^data\.tokenizer: "):
        load_tokenizer(name)
    with pytest.raises(DataError, match=r"^data\.train: "):
        find_files([name], "data.train")


def test_a_vocabulary_that_lacks_a_letter(tmp_path: Path) -> None:
    """It loads, since it reads its own words; a text that it cannot read is one error."""
    words = Tokenizer(models.WordLevel({"one": 0, "two": 1, "<eos>": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    made.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert drop_appended(loaded) is None
    assert Encoder(loaded).encode(["two one"])[0].tolist()[1:3] == [1, 0]
    with pytest.raises(DataError, match="cannot encode the text: WordLevel error: Missing"):
        Encoder(loaded).encode(["two three"])
    with pytest.raises(DataError, match="cannot encode the text: WordLevel error: Missing"):
        encoded(loaded, "two three")
    assert make_probe(WuNengConfig(vocab_size=8), loaded).kind == "random ids"


def test_an_id_beyond_any_vocabulary(tmp_path: Path) -> None:
    """The library would count up to it, for minutes, whenever it writes the tokenizer down."""
    BYTES.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["z"] = 2**31
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"token ids go up to 16,777,216, got 2,147,483,648 for"):
        load_tokenizer(str(tmp_path))
    with_mark(2**31).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"got 2,147,483,648 for 'a mark without a name'"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("where", ["vocab", "added_tokens"])
def test_it_is_found_before_the_library_makes_room_for_so_many(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tokenizers 0.23.1 ends the process where memory is short."""

    def loads(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    BYTES.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    if where == "vocab":
        content["model"]["vocab"]["z"] = 2**31
    else:
        content["added_tokens"][0]["id"] = 2**31
    file.write_text(json.dumps(content))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", loads)
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.__init__", loads)
    for place in (tmp_path, file):
        with pytest.raises(ModelError, match=r"tokenizer.json: token ids go up to 16,777,216"):
            load_tokenizer(str(place))


@pytest.mark.parametrize("content", ["", "[", "[12345678]", '{"model": 12345678}', "null"])
def test_a_file_of_another_shape_is_the_loaders_to_refuse(content: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    check_stored_ids(file)
    check_stored_ids(tmp_path / "nowhere.json")


def with_gap(highest: int) -> PreTrainedTokenizerFast:
    """The byte tokenizer, with ``z`` moved to the id ``highest``: 257 tokens still."""
    content = json.loads(BYTES.backend_tokenizer.to_str())
    content["model"]["vocab"]["z"] = highest
    made = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END_OF_TEXT)


def with_mark(mark: int) -> PreTrainedTokenizerFast:
    """The byte tokenizer, with a mark before every text that no token of it is."""
    made = byte_tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", mark)]
    )
    return made


@pytest.mark.parametrize("highest", [300, 100_000])
def test_ids_that_a_vocabulary_leaves_out(
    settings: Any, write_jsonl: Any, cache: Path, highest: int
) -> None:
    """The number of tokens says nothing of the highest id: tables and embedding are as long."""
    tokenizer = with_gap(highest)
    assert len(tokenizer) == 257
    encoder = Encoder(tokenizer)
    assert encoder.vocab_size == highest + 1
    tokens = encoder.encode(["azb"])[0]
    assert tokens.tolist() == [256, 97, highest, 98]
    assert encoder.spelling.lengths[tokens].tolist() == [0, 1, 1, 1]
    file = write_jsonl("z.jsonl", [f"zebras, lazy {i}\n" for i in range(40)])
    data = settings.text(train=str(file), validation_fraction=0.2)
    run = settings.training(sequence_length=16, batch_size=2)
    prepared = prepare_text(data, run, settings.evaluation(), 0, tokenizer)
    assert prepared.vocab_size == highest + 1
    batch = next(iter(prepared.final.batches()))
    assert int(batch.input_ids.max()) == highest

    with pytest.raises(ModelError, match=rf"257 tokens, .* 257 rows .* up to {highest:,}.*'z'"):
        check_rows(Path("m"), tokenizer, 257)
    tokenizer.save_pretrained(str(cache / "t"))
    named = settings.text(train=str(file), tokenizer=str(cache / "t"))
    assert text_vocabulary(named, None, OwnModels()).size == highest + 1


def test_a_mark_that_no_token_of_the_vocabulary_is() -> None:
    tokenizer = with_mark(70_000)
    encoder = Encoder(tokenizer)
    assert encoder.encode(["a"])[0].tolist() == [70_000, 97, 256]
    assert encoder.spelling.lengths[encoder.encode(["a"])[0]].tolist() == [0, 1, 0]
    with pytest.raises(ModelError, match=r"without one: 'a mark without a name' \(70000\)"):
        check_rows(Path("m"), tokenizer, 257)
