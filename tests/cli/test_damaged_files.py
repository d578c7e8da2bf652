"""What a finished run or a conversion left is not believed once it was damaged or edited."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from wuneng.data.tokenizer import check_tokenizer
from wuneng.records import CHECKSUMS
from wuneng_cli.main import app

RECIPE = """
name: small
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 2}
arms: [wuneng, mha]
data: {kind: text, train: text.txt, tokenizer: bytes, validation_fraction: 0.3}
training: {steps: 2, sequence_length: 16, batch_size: 2, num_threads: 1, log_every: 1}
device: cpu
"""


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # of weights: in the last tensor; of text: in its last words
    file.write_bytes(data)


def edit(file: Path) -> None:
    """As a person would do it: a space more before a figure or a value."""
    data = file.read_bytes()
    known = [name for name in (b'"bits_per_byte": ', b'"loss": ', b": ", b":") if name in data]
    place = data.index(known[0]) + len(known[0])
    file.write_bytes(data[:place] + b" " + data[place:])


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit": flip,
    "cut short": shorten,
    "emptied": lambda file: file.write_bytes(b""),
    "removed": lambda file: file.unlink(),
    "edited": edit,
}
MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json")
damages = pytest.mark.parametrize("damage", DAMAGE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a finished run of text, ``runs/small``, and a conversion of it, ``copy``."""
    place = tmp_path_factory.mktemp("finished")
    (place / "small.yaml").write_text(RECIPE, encoding="utf-8")
    lines = [f"The {i}th line tells of {i * i} owls and {i % 7} bees.\n" for i in range(60)]
    (place / "text.txt").write_text("".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert wuneng("train", "small.yaml", "-q").exit_code == 0
        assert wuneng("convert", "runs/small", "copy", "-q").exit_code == 0
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to damage."""
    here = tmp_path / "place"
    shutil.copytree(finished, here, symlinks=True)
    monkeypatch.chdir(here)
    return here


def wuneng(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def refused(result: Result, file: Path, skip: str = "--no-verify") -> str:
    """The one message, which names the file and how to go on."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert str(file) in lines[0]
    assert f"skip this check once with {skip}." in lines[0]
    return lines[0]


GENERATE = ("generate", "runs/small", "--prompt", "The", "--max-tokens", "3", "-q")
EVAL = ("eval", "runs/small", "--tasks", "validation", "--baseline", "none", "-q")
CONVERT = ("convert", "runs/small", "again", "-q")
BENCH = (*("bench", "--model", "runs/small", "--what", "decode", "--seq-len", "16,32"),
         *("--against", "none", "--seconds", "0.1", "-q"))  # fmt: skip
TRAIN = ("train", "small.yaml", "--resume", "runs/small", "-q")
#: What leaves the checksums out, where it is not --no-verify.
SKIP = {"convert": "--no-checksums"}
READERS = {"generate": GENERATE, "eval": EVAL, "convert": CONVERT, "bench": BENCH, "train": TRAIN}


@pytest.mark.parametrize("command", READERS)
def test_an_untouched_run_is_read(place: Path, command: str) -> None:
    result = wuneng(*READERS[command])
    assert result.exit_code == 0, result.output
    assert "altered" not in result.output


@damages
@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_damaged_model_is_not_loaded(place: Path, name: str, damage: str) -> None:
    file = Path("runs/small/wuneng/model", name)
    DAMAGE[damage](file)
    said = refused(wuneng(*GENERATE), file)
    if damage == "removed":
        assert "missing" in said


@pytest.mark.parametrize("name", MODEL_FILES)
def test_no_command_reads_a_damaged_model(place: Path, name: str) -> None:
    """All damages look alike to them: ``verify`` is one function."""
    file = Path("runs/small/wuneng/model", name)
    flip(file)
    for command in (EVAL, TRAIN, BENCH):
        refused(wuneng(*command), file)
    if name != "config.json":  # that shows what a source is: it is named when it is read
        refused(wuneng(*CONVERT), file, SKIP["convert"])
    assert not Path("again").exists()


@damages
def test_a_damaged_conversion_is_not_loaded(place: Path, damage: str) -> None:
    file = Path("copy/model.safetensors")
    DAMAGE[damage](file)
    refused(wuneng("generate", "copy", "--prompt", "The", "-q"), file)
    changes = ("--set", "init_from=copy", "--set", "model={}", "--set", "arms={a: {train: none}}")
    refused(wuneng("train", "small.yaml", *changes, "-q"), file)


@damages
def test_a_damaged_tokenizer_is_not_taken_from_a_model(place: Path, damage: str) -> None:
    """Neither for another run nor for a conversion; the weights beside it do not matter."""
    file = Path("copy/tokenizer.json")
    flip(Path("copy/model.safetensors"))
    Path("x.pth").touch()
    named = ("copy", str(file)) if damage != "removed" else ("copy",)
    check_tokenizer("copy")
    DAMAGE[damage](file)
    for tokenizer in named:
        arguments = ("--set", f"data.tokenizer={tokenizer}", "--set", "name=other", "-q")
        refused(wuneng("train", "small.yaml", *arguments), file)
        assert not Path("runs/other").exists()
    done = wuneng("convert", "x.pth", "out", "--tokenizer", "copy")
    refused(done, file, SKIP["convert"])
    done = wuneng("convert", "x.pth", "out", "--tokenizer", "copy", "--no-checksums")
    assert "x.pth: cannot be read as weights" in done.stderr


@damages
@pytest.mark.parametrize("name", ["result.json", "rows.json", "metrics.jsonl"])
def test_a_damaged_record_does_not_go_into_the_comparison(
    place: Path, name: str, damage: str
) -> None:
    file = Path("runs/small/mha", name)
    before = Path("runs/small/results.json").read_bytes()
    DAMAGE[damage](file)
    result = wuneng(*TRAIN)
    if (name, damage) == ("result.json", "removed"):  # that is how to have it made anew
        assert result.exit_code == 0, result.output
        assert file.exists()
        return
    said = refused(result, file)
    assert f"Delete {Path('runs/small/mha/result.json')}" in said
    assert Path("runs/small/results.json").read_bytes() == before


def test_the_advice_helps(place: Path) -> None:
    """Delete result.json, as the message says: the arm's files come again, as they were."""
    arm = Path("runs/small/mha")
    good = {name: (arm / name).read_bytes() for name in ("rows.json", "model/model.safetensors")}
    edit(arm / "rows.json")
    flip(arm / "model/model.safetensors")
    (arm / "result.json").unlink()
    assert wuneng(*TRAIN).exit_code == 0
    assert {name: (arm / name).read_bytes() for name in good} == good
    assert wuneng(*TRAIN).exit_code == 0


def test_an_edited_figure_is_accepted_only_when_it_is_said_so(place: Path) -> None:
    record = Path("runs/small/mha/result.json")
    values = json.loads(record.read_text(encoding="utf-8"))
    [name] = [key for key in values["quality"] if key.endswith("bits_per_byte")]
    values["quality"][name] = 1.0
    record.write_text(json.dumps(values), encoding="utf-8")

    def reported() -> float:
        results = json.loads(Path("runs/small/results.json").read_text(encoding="utf-8"))
        return float(results["arms"]["mha"]["quality"][name])

    said = refused(wuneng(*TRAIN), record)
    assert reported() != 1.0
    once = wuneng(*TRAIN, "--no-verify")
    assert once.exit_code == 0
    assert reported() == 1.0
    checksums = record.with_name(CHECKSUMS)
    assert f"delete {checksums}" in said
    checksums.unlink()
    assert wuneng(*TRAIN).exit_code == 0


@damages
def test_damaged_results_are_made_anew_and_named(place: Path, damage: str) -> None:
    file = Path("runs/small/results.json")
    good = file.read_bytes()
    DAMAGE[damage](file)
    result = wuneng(*TRAIN)
    assert result.exit_code == 0, result.output
    assert file.read_bytes() == good
    if damage != "removed":
        assert f"{file}: " in result.stderr
        assert "made anew" in result.stderr


@damages
def test_validation_text_is_not_that_of_an_edited_recipe(place: Path, damage: str) -> None:
    file = Path("runs/small/recipe.yaml")
    if damage == "removed":
        pytest.skip("without its recipe it is no run")
    DAMAGE[damage](file)
    arm = ("eval", "runs/small/mha", "--tasks", "validation", "--baseline", "none", "-q")
    refused(wuneng(*arm), file)


@damages
@pytest.mark.parametrize("directory", ["mha", "mha/model"])
def test_damaged_checksums_are_named(place: Path, directory: str, damage: str) -> None:
    file = Path("runs/small", directory, CHECKSUMS)
    DAMAGE[damage](file)
    result = wuneng(*TRAIN)
    if damage in ("removed", "edited"):  # an older run has none; a space more changes nothing
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 2
    assert str(Path("runs/small", directory)) in result.stderr


@pytest.mark.parametrize("command", READERS)
def test_a_run_without_checksums_still_loads(place: Path, command: str) -> None:
    for file in place.rglob(CHECKSUMS):
        file.unlink()
    assert wuneng(*READERS[command]).exit_code == 0


@pytest.mark.parametrize("command", ["generate", "eval", "bench", "train", "convert"])
def test_no_verify_takes_what_is_there(place: Path, command: str) -> None:
    flip(Path("runs/small/wuneng/model/model.safetensors"))
    assert wuneng(*READERS[command], SKIP.get(command, "--no-verify")).exit_code == 0


def test_convert_proves_and_checks_by_an_option_each(place: Path) -> None:
    weights = Path("runs/small/wuneng/model/model.safetensors")
    flip(weights)
    refused(wuneng(*CONVERT, "--no-verify"), weights, SKIP["convert"])
    assert not Path("again").exists()
    done = wuneng("convert", "runs/small", "again", "--no-checksums")
    assert done.exit_code == 0, done.output
    assert "full forward" in done.stdout, "the logits are compared all the same"
    assert "not verified" not in done.stdout


def test_files_beside_ours_are_nobodys_concern(place: Path) -> None:
    Path("runs/small/wuneng/model/notes.txt").write_text("mine", encoding="utf-8")
    assert wuneng(*GENERATE).exit_code == 0
