"""The World tokenizer: longest match first, as an ordinary fast tokenizer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.convert.rwkv_files import random_x070
from wuneng.convert import Request, convert
from wuneng.convert.rwkv_tokenizer import read_vocabulary, world_tokenizer
from wuneng.errors import ModelError

VOCABULARY = "rwkv_vocab_v20230424.txt"
BYTES = [f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)]


def _greedy(text: str, tokens: dict[bytes, int], longest: int) -> list[int]:
    data, at, ids = text.encode("utf-8"), 0, []
    while at < len(data):
        size = next(n for n in range(longest, 0, -1) if data[at : at + n] in tokens)
        size = min(size, len(data) - at)
        ids.append(tokens[data[at : at + size]])
        at += size
    return ids


def _file(directory: Path, *more: str) -> Path:
    file = directory / "rwkv_vocab_small.txt"
    file.write_text("\n".join([*BYTES, *more]) + "\n", encoding="utf-8")
    return file


def test_world_vocabulary_matches_greedy_search_and_survives_saving(
    shared_data: Path, tmp_path: Path
) -> None:
    file = shared_data / "tokenizers" / VOCABULARY
    tokens = read_vocabulary(file)
    assert len(tokens) == 65529
    tokenizer = world_tokenizer(file)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = (shared_data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:20000]
    odd = (
        "Привет, 世界! 🤗\n\n\n\tdef f(x):\r\n  return x\x00\x7f é"
        + "=" * 99
        + " " * 200
        + "[]{}^&&--\\"
    )
    letters = random.Random(0)
    noise = "".join(
        chr(letters.choice([letters.randrange(32, 127), letters.randrange(160, 0xD7FF)]))
        for _ in range(3000)
    )
    for sample in (text, odd, noise, "", "a"):
        expected = _greedy(sample, tokens, 128)
        assert tokenizer(sample)["input_ids"] == expected
        assert again(sample)["input_ids"] == expected
        assert again.decode(expected) == sample
    assert again.eos_token_id == 0


def test_longest_match_wins_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    file = _file(tmp_path, "257 'ab' 2", "258 'abcd' 4", "259 'bc' 2", r"260 b'\xe4\xb8' 2")
    tokenizer = world_tokenizer(file)
    byte = {letter: ord(letter) + 1 for letter in "abcd"}
    assert tokenizer("abcd")["input_ids"] == [258]
    assert tokenizer("abc")["input_ids"] == [257, byte["c"]]
    assert tokenizer("bcd")["input_ids"] == [259, byte["d"]]
    assert tokenizer("世")["input_ids"] == [260, 0x96 + 1]  # half a letter is a token of its own
    assert tokenizer.decode([260, 0x96 + 1]) == "世"


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("257 'ab' 3", 257),
        ("x 'ab' 2", 257),
        ("257 __import__('os') 2", 257),
        ("257 'ab' 2\n258 'ab' 2", 258),
        ("0 'ab' 2", 257),
        ("257", 257),
    ],
)
def test_broken_vocabularies_name_the_line(line: str, number: int, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"rwkv_vocab_small.txt, line {number}:"):
        read_vocabulary(_file(tmp_path, line))


def test_a_vocabulary_must_spell_every_byte(tmp_path: Path) -> None:
    file = tmp_path / "rwkv_vocab_x.txt"
    file.write_text("\n".join(BYTES[:255]), encoding="utf-8")
    with pytest.raises(ModelError, match="no token for byte 255"):
        read_vocabulary(file)


def test_the_vocabulary_beside_the_weights_becomes_the_models_tokenizer(tmp_path: Path) -> None:
    torch.save(random_x070(vocab=300), tmp_path / "x.pth")
    _file(tmp_path, "257 'th' 2", "258 'the' 3")
    outcome = convert(Request(str(tmp_path / "x.pth"), tmp_path / "out"))
    assert outcome.record["verified_on"] == "text"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the th")["input_ids"] == [258, 33, 257]


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    torch.save(random_x070(vocab=200), tmp_path / "x.pth")
    with pytest.raises(ModelError, match="257 tokens, the model has only 200"):
        convert(Request(str(tmp_path / "x.pth"), tmp_path / "out", tokenizer=_file(tmp_path)))
    with pytest.raises(ModelError, match=r"--tokenizer .*no such file"):
        convert(Request(str(tmp_path / "x.pth"), tmp_path / "out", tokenizer=tmp_path / "none.txt"))
