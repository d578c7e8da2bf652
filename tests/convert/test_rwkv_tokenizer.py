"""The World tokenizer: longest match first, as an ordinary fast tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from tests.convert.rwkv_files import random_x070
from wuneng.convert import Request, convert
from wuneng.convert.families import FAMILIES
from wuneng.convert.rwkv_choice import choose_tokenizer
from wuneng.convert.rwkv_tokenizer import read_vocabulary, world_tokenizer
from wuneng.convert.source import Located
from wuneng.errors import ModelError
from wuneng_cli.main import app

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
    torch.save(random_x070(vocab=300), tmp_path / "x.pth")
    gap = _file(tmp_path, "999 'th' 2")  # fewer tokens than rows, and an id beyond them
    with pytest.raises(ModelError, match="1000 tokens, the model has only 300"):
        convert(Request(str(tmp_path / "x.pth"), tmp_path / "out", tokenizer=gap))
    with pytest.raises(ModelError, match=r"--tokenizer .*no such file"):
        convert(Request(str(tmp_path / "x.pth"), tmp_path / "out", tokenizer=tmp_path / "none.txt"))


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A random RWKV-7 of 256 tokens, as a lone file."""
    file = tmp_path / "tiny.pth"
    torch.save(random_x070(vocab=256), file)
    return file


def test_a_file_without_a_tokenizer_is_told_and_so_is_what_to_do(
    byte_level: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    converted = invoke("convert", byte_level, out)
    assert converted.exit_code == 0, converted.output
    offer = "its 256 tokens look like bytes: --tokenizer bytes"
    assert offer in flat(converted.stdout)
    for line in (
        ("generate", out, "--prompt", "a"),
        ("eval", out, "--tasks", "copa", "--data-dir", tmp_path),
    ):
        refused = invoke(*line)
        assert refused.exit_code == 2
        assert "brings no tokenizer, so the converted model reads token ids" in flat(refused.stderr)
        assert offer in flat(refused.stderr)
        assert "synthetic" not in refused.stderr


@pytest.mark.parametrize(
    ("size", "offer"),
    [(65536, "65,536 tokens look like the World vocabulary: --tokenizer world"),
     (61, "--tokenizer bytes, world, or the path of its vocabulary file")],
)  # fmt: skip
def test_what_is_offered_depends_on_the_vocabulary(tmp_path: Path, size: int, offer: str) -> None:
    chosen = choose_tokenizer(Located("x.pth", _empty(tmp_path), FAMILIES["rwkv7"], {}), None, size)
    assert chosen.missing is not None
    assert offer in chosen.missing


def test_bytes_by_name(byte_level: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    converted = invoke("convert", byte_level, out, "--tokenizer", "bytes")
    assert converted.exit_code == 0, converted.output
    assert "tokenizer   none" not in converted.stdout
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = "naïve Ā 世界\n\x00\x7f"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert (len(tokenizer), tokenizer.eos_token_id) == (256, 0)
    assert tokenizer.decode(list("naïve Ā 世界".encode())) == "naïve Ā 世界"
    written = invoke("generate", out, "--prompt", "in", "--max-tokens", 4, "--json")
    assert written.exit_code == 0, written.output


def test_the_real_byte_level_model_writes(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = shared_data / "models" / "rwkv7_tiny_834k" / "rwkv7-tiny-834k.pth"
    assert invoke("convert", file, out, "--tokenizer", "bytes").exit_code == 0
    line = ("generate", out, "--prompt", "in", "--max-tokens", 8, "--temperature", 0, "--json")
    written = json.loads(invoke(*line).stdout)
    assert (written["prompt_tokens"], written["tokens"]) == (2, 8)
    assert written["text"].isascii()


def test_bytes_do_not_fit_a_world_model(tmp_path: Path) -> None:
    file = tmp_path / "small.pth"
    torch.save(random_x070(vocab=61), file)
    with pytest.raises(ModelError, match="--tokenizer bytes: expected a model of 256 bytes"):
        convert(Request(str(file), tmp_path / "out", tokenizer="bytes"))
    with pytest.raises(ModelError, match=r"--tokenizer wrld: no such file .* Did you mean 'world'"):
        convert(Request(str(file), tmp_path / "out", tokenizer="wrld"))


def test_world_by_name_is_found_beside_the_weights_or_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, package = tmp_path / "weights" / "x.pth", tmp_path / "packages" / "rwkv"
    file.parent.mkdir()
    package.mkdir(parents=True)
    torch.save(random_x070(vocab=300), file)
    with pytest.raises(ModelError, match=r"no rwkv_vocab\*.txt in .*weights.*pip install rwkv"):
        convert(Request(str(file), tmp_path / "out", tokenizer="world"))
    (package / "__init__.py").write_text("raise RuntimeError('finding it runs nothing')")
    monkeypatch.syspath_prepend(str(package.parent))
    for place in (package, file.parent):
        _file(place)
        out = tmp_path / f"from-{place.name}"
        convert(Request(str(file), out, tokenizer="world"))
        assert AutoTokenizer.from_pretrained(out)("a")["input_ids"] == [ord("a") + 1]


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_a_pth_is_to_be_converted_first(byte_level: Path, command: str) -> None:
    line = {"generate": ("--prompt", "a"), "eval": ("--tasks", "copa")}[command]
    for named in (byte_level, byte_level.parent):
        refused = invoke(command, named, *line)
        assert refused.exit_code == 2
        said = flat(refused.stderr)
        assert f"`wuneng convert {byte_level} tiny --tokenizer bytes`" in said


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def flat(text: str) -> str:
    return " ".join(text.split())


def _empty(directory: Path) -> Path:
    file = directory / "x.pth"
    file.touch()
    return file
