"""`wuneng generate`: streamed, seeded, and clear about what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from tests.model.decoded import counted
from wuneng.errors import InputError, ModelError
from wuneng.evaluate.generation import Sampling, generate_text
from wuneng.ops import native, using

Load = Callable[..., Any]
Invoke = Callable[..., Result]


@pytest.fixture
def wuneng(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object, stdin: str | bytes | None = None) -> Result:
        from wuneng_cli.main import app

        return CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin)

    return invoke


@pytest.mark.parametrize("kind", ["llama", "wuneng"])
def test_pieces_add_up_and_a_seed_repeats(load: Load, tiny: Callable[..., Path], kind: str) -> None:
    loaded = load(tiny(kind))
    pieces: list[str] = []
    sampling = Sampling(max_tokens=20, temperature=1.0, seed=3)
    first = generate_text(loaded, "Once upon", sampling, pieces.append)
    assert "".join(pieces) == first.text
    assert first.prompt_tokens == len("Once upon")
    assert generate_text(loaded, "Once upon", sampling).text == first.text
    other = Sampling(max_tokens=20, temperature=1.0, seed=4)
    assert generate_text(loaded, "Once upon", other).text != first.text


def test_temperature_zero_is_greedy(load: Load, llama_directory: Path) -> None:
    loaded = load(llama_directory)
    texts = {
        generate_text(loaded, "cats", Sampling(max_tokens=12, temperature=0, seed=seed)).text
        for seed in range(3)
    }
    assert len(texts) == 1
    tiny_p = Sampling(max_tokens=12, temperature=1.0, top_p=1e-6, seed=9)
    assert generate_text(loaded, "cats", tiny_p).text in texts


def test_a_trained_model_tells_a_story(load: Load, shared_data: Path) -> None:
    loaded = load(shared_data / "models" / "tinystories_656k")
    found = generate_text(loaded, "Once upon a time", Sampling(max_tokens=30, temperature=0))
    assert found.text.startswith(", a little girl named Lily")
    assert (found.tokens, found.ended) == (30, "token limit")


def test_the_end_of_the_text_ends_it(load: Load, llama_directory: Path) -> None:
    loaded = load(llama_directory)
    prompt = torch.tensor([loaded.tokenizer.encode("cats")])
    likeliest = int(loaded.model(prompt).logits[0, -1].argmax())
    loaded.model.generation_config.eos_token_id = likeliest
    found = generate_text(loaded, "cats", Sampling(max_tokens=9, temperature=0))
    assert (found.tokens, found.ended) == (1, "end of text")


def test_an_empty_prompt_is_the_beginning_of_a_text(load: Load, llama_directory: Path) -> None:
    found = generate_text(load(llama_directory), "", Sampling(max_tokens=2))
    assert found.prompt_tokens == 1


def test_a_prompt_that_fills_the_context_is_refused(load: Load, tiny: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"60 tokens leave no room in .* context of 48"):
        generate_text(load(tiny("llama", context=48)), "x" * 60, Sampling())


def test_without_a_tokenizer_nothing_can_be_written(load: Load, tiny: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="has no tokenizer"):
        generate_text(load(tiny("wuneng", tokenizer=False)), "a", Sampling())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_tokens": 0}, "--max-tokens"), ({"temperature": -1}, "--temperature"),
     ({"top_p": 0}, "--top-p"), ({"top_p": 1.5}, "--top-p")],
)  # fmt: skip
def test_bad_sampling_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)


def test_the_command_streams_to_stdout(wuneng: Invoke, text_run: Path) -> None:
    arguments = ("--prompt", "cats", "--max-tokens", 8, "--seed", 1)
    result = wuneng(*arguments)
    assert result.exit_code == 0, result.output
    assert "letters/wuneng" in result.stderr
    assert "seed 1" in result.stderr
    assert wuneng(*arguments, "--quiet").stdout == result.stdout
    assert wuneng(*arguments, "--arm", "mha", "--quiet").stdout != result.stdout


@pytest.mark.skipif(native.library(32) is None, reason="no C compiler on this machine")
@pytest.mark.parametrize("arm", ["wuneng", "mha"])
def test_the_command_decodes_in_one_call_a_token(wuneng: Invoke, text_run: Path, arm: str) -> None:
    arguments = ("--arm", arm, "--prompt", "cats", "--max-tokens", 6, "--temperature", 0, "--json")
    with counted() as taken:
        result = wuneng(*arguments)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    # The prompt goes through the modules; what the last token is followed by, nobody asks.
    assert taken == [False] + [True] * (record["tokens"] - 1)
    assert record["tokens"] > 1
    with using("reference"), counted() as plain:
        assert json.loads(wuneng(*arguments).stdout)["text"] == record["text"]
    assert plain == [False] * len(taken)


def test_the_prompt_may_come_from_stdin_and_the_result_be_json(
    wuneng: Invoke, llama_directory: Path
) -> None:
    arguments = (llama_directory, "--prompt", "-", "--max-tokens", 5, "--seed", 2, "--json")
    record = json.loads(wuneng(*arguments, stdin="cats and").stdout)
    assert record["prompt"] == "cats and"
    assert record["tokens"] == 5
    assert record["seed"] == 2
    assert record["model"]["model_type"] == "llama"


def test_bad_input_is_one_clear_message(
    wuneng: Invoke, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    for arguments, message in [
        (("nowhere",), "nowhere does not exist"),
        ((tiny("wuneng", tokenizer=False),), "has no tokenizer"),
    ]:
        result = wuneng(*arguments, "--prompt", "a")
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.output


def test_stdin_that_is_not_text_is_refused(wuneng: Invoke, llama_directory: Path) -> None:
    result = wuneng(llama_directory, "--prompt", "-", stdin=b"a\xff")
    assert result.exit_code == 2
    assert "expected UTF-8 text on stdin, got byte 0xff at offset 1" in result.stderr


def test_a_prompt_that_is_not_text_is_refused(wuneng: Invoke, llama_directory: Path) -> None:
    result = wuneng(llama_directory, "--prompt", "a\udcffb")
    assert result.exit_code == 2
    assert "--prompt: expected UTF-8 text, got half a surrogate pair" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seed", 2**63),
        ("--max-tokens", "1q"),
        ("--max-tokens", 0),
        ("--top-p", 2),
        ("--temperature", -1),
        ("--temperature", "1e-45"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
    ],
)
def test_bad_sizes_are_refused(
    wuneng: Invoke, llama_directory: Path, arguments: tuple[object, ...]
) -> None:
    result = wuneng(llama_directory, "--prompt", "a", *arguments)
    assert result.exit_code == 2
    assert str(arguments[0]) in result.stderr
    assert "Traceback" not in result.output


def with_settings(place: Path, **settings: Any) -> Path:
    """The model in ``place``, with more in its generation_config.json."""
    file = place / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return place


SETTINGS: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"stop_strings": ["a"]},
    {"return_dict_in_generate": True},
    {"cache_implementation": "static"},
    {"cache_implementation": "quantized"},
    {"max_time": 1e-9},
    {"num_return_sequences": 3, "num_beams": 3},
    {"repetition_penalty": 50.0},
    {"max_new_tokens": 1, "min_new_tokens": 9},
]


@pytest.mark.parametrize("kind", ["llama", "wuneng"])
def test_what_a_file_asks_for_changes_nothing(
    load: Load, tiny: Callable[..., Path], kind: str
) -> None:
    """But for the end of a text: what the options say is what is done, to measure and to write."""
    place = tiny(kind)
    stored = (place / "generation_config.json").read_text()
    greedy = Sampling(max_tokens=6, temperature=0)
    expected = generate_text(load(place), "cats", greedy)
    for settings in SETTINGS:
        (place / "generation_config.json").write_text(stored)
        found = generate_text(load(with_settings(place, **settings)), "cats", greedy)
        assert (found.text, found.ended) == (expected.text, expected.ended), settings
    plain = load(place)
    prompt = torch.tensor([plain.tokenizer.encode("cats")])
    likeliest = int(plain.model(prompt).logits[0, -1].argmax())
    loaded = load(with_settings(place, eos_token_id=[256, likeliest]))
    assert generate_text(loaded, "cats", greedy).ended == "end of text"


@pytest.mark.parametrize("index", ["x", [[1]], [256, 257], -5, 10**30, True])
def test_an_end_that_is_no_token_is_refused(
    load: Load, tiny: Callable[..., Path], index: Any
) -> None:
    place = with_settings(tiny("llama"), eos_token_id=index)
    with pytest.raises(
        ModelError, match=r"generation_config\.json: eos_token_id: expected a token"
    ):
        load(place)
