"""No command runs code that comes with a model unless it is told to, and none asks on stdin."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from wuneng.convert.remote_code import AUTO_MAP, write_modelling_code
from wuneng.errors import ModelError
from wuneng.foreign import is_trusted, remote_code_trusted
from wuneng_cli.main import app

#: Works as what it says it is, and leaves a trace where it ran.
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).touch()
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
TOKENIZER_MAP = {"AutoTokenizer": [None, "evil.EvilTokenizer"]}
SIZES = "model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 2}"
RECIPE = """
arms: [wuneng]
data: {kind: text, train: [text.txt], cache_dir: cache%s}
training: {steps: 1, batch_size: 1, sequence_length: 16}
device: cpu
%s
"""


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exists once planted code has run. The working directory is a fresh one."""
    for module in ("transformers.dynamic_module_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)
    work = tmp_path / "work"
    work.mkdir()
    (work / "text.txt").write_text("a line of text\n" * 200)
    monkeypatch.chdir(work)
    return tmp_path / "code-was-run"


def plant(source: Path, place: Path, marker: Path, kind: str) -> Path:
    """A copy of ``source`` that wants its own code: for the model, the tokenizer, or a Llama's."""
    shutil.copytree(source, place)
    (place / "evil.py").write_text(CODE.format(marker=str(marker)))
    if kind == "tokenizer":
        change(
            place / "tokenizer_config.json",
            tokenizer_class="EvilTokenizer",
            auto_map=TOKENIZER_MAP,
        )
        (place / "config.json").unlink()
    else:
        change(place / "config.json", auto_map=MODEL_MAP)
        if kind == "model":
            change(place / "config.json", model_type="evil")
    return place


def run(*arguments: str, trust: bool = False) -> Result:
    """The command, with somebody at the keyboard who says yes to everything."""
    more = ["--trust-remote-code"] if trust else []
    return CliRunner().invoke(app, [*arguments, *more], input="yes\n" * 50)


def recipe(data: str = "", rest: str = SIZES) -> str:
    Path("r.yaml").write_text(RECIPE % (data, rest))
    return "r.yaml"


#: Commands that need the code: what is planted, and their arguments; PLANTED is the directory.
NEED = {
    "train, tokenizer": ("tokenizer", ["train", "TOKENIZER"]),
    "train, tokenizer, planned": ("tokenizer", ["train", "TOKENIZER", "--dry-run", "--no-measure"]),
    "bench, recipe's tokenizer": ("tokenizer", ["bench", "--model", "TOKENIZER"]),
    "eval": ("model", ["eval", "PLANTED", "--tasks", "arc", "--data-dir", "FILES"]),
    "eval, baseline": (
        "model",
        ["eval", "GOOD", "--baseline", "PLANTED", "--tasks", "arc", "--data-dir", "FILES"],
    ),
    "generate": ("model", ["generate", "PLANTED", "--prompt", "x", "--max-tokens", "2"]),
    "bench": ("model", ["bench", "--model", "PLANTED"]),
}
#: Commands that refuse an architecture they do not know, with or without its code.
REFUSE = {
    "train, init_from": ["train", "INIT"],
    "train, teacher": ["train", "TEACHER"],
    "convert": ["convert", "PLANTED", "there"],
    "convert, donor": ["convert", "GOOD", "there", "--state-from", "PLANTED"],
}


def filled(arguments: list[str], planted: Path, good: Path, files: Path) -> list[str]:
    values = {"PLANTED": str(planted), "GOOD": str(good), "FILES": str(files)}
    if "TOKENIZER" in arguments:
        values["TOKENIZER"] = recipe(data=f", tokenizer: {planted}")
    if "INIT" in arguments:
        values["INIT"] = recipe(rest=f"init_from: {planted}")
    if "TEACHER" in arguments:
        values["TEACHER"] = recipe(rest=f"init_from: {good}\ndistill: {{teacher: {planted}}}")
    return [values.get(argument, argument) for argument in arguments]


@pytest.mark.parametrize("case", NEED)
def test_what_needs_code_is_refused_by_file_and_flag(
    case: str, marker: Path, tmp_path: Path, llama_directory: Path, all_files: Path
) -> None:
    kind, arguments = NEED[case]
    planted = plant(llama_directory, tmp_path / "planted", marker, kind)
    done = run(*filled(arguments, planted, llama_directory, all_files))
    assert not marker.exists()
    assert done.exit_code == 2, done.output
    file = planted / ("tokenizer_config.json" if kind == "tokenizer" else "config.json")
    assert str(file) in done.output
    assert "--trust-remote-code" in done.output
    assert "[y/N]" not in done.output


@pytest.mark.parametrize("case", REFUSE)
def test_other_architectures_are_refused_without_running_them(
    case: str, marker: Path, tmp_path: Path, llama_directory: Path, all_files: Path
) -> None:
    planted = plant(llama_directory, tmp_path / "planted", marker, "model")
    done = run(*filled(REFUSE[case], planted, llama_directory, all_files))
    assert not marker.exists()
    assert done.exit_code == 2, done.output
    assert str(planted) in done.output
    assert "'evil' cannot be converted" in done.output
    assert "[y/N]" not in done.output


@pytest.mark.parametrize("case", ["train, tokenizer, planned", "generate"])
def test_code_is_run_where_the_flag_is_given(
    case: str, marker: Path, tmp_path: Path, llama_directory: Path, all_files: Path
) -> None:
    kind, arguments = NEED[case]
    planted = plant(llama_directory, tmp_path / "planted", marker, kind)
    done = run(*filled(arguments, planted, llama_directory, all_files), trust=True)
    assert done.exit_code == 0, done.output
    assert marker.exists()
    assert not is_trusted()  # it ends with the command


def test_a_known_architecture_runs_on_stock_code(
    marker: Path, tmp_path: Path, llama_directory: Path
) -> None:
    planted = plant(llama_directory, tmp_path / "planted", marker, "llama")
    done = run("generate", str(planted), "--prompt", "x", "--max-tokens", "2")
    assert done.exit_code == 0, done.output
    done = run("convert", str(planted), "there", "--no-verify")
    assert done.exit_code == 0, done.output
    assert not marker.exists()


@pytest.mark.parametrize("trust", [False, True])
def test_our_own_exports_never_run_their_code(
    trust: bool, marker: Path, tmp_path: Path, wuneng_directory: Path
) -> None:
    from wuneng.model.pretrained import load_causal_model, load_configuration

    exported = tmp_path / "exported"
    shutil.copytree(wuneng_directory, exported)
    write_modelling_code(exported)
    change(exported / "config.json", auto_map=AUTO_MAP)
    for file in exported.glob("*.py"):
        file.write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    with remote_code_trusted(trust):
        model, _ = load_causal_model(exported)
        config = load_configuration(exported)
    assert type(model).__module__ == "wuneng.model.modeling"
    assert type(config).__module__ == "wuneng.model.configuration"
    assert not marker.exists()


@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": "somebody/kernels"},
        {"attn_implementation": {"": "somebody/kernels"}},
        {"_attn_implementation": {"text_config": "eager", "vision": ["somebody/kernels"]}},
        {"text_config": {"_attn_implementation_internal": "somebody/kernels"}},
        {"parts": [{"attn_implementation": "somebody/kernels"}]},
    ],
)
def test_attention_from_the_hub_is_code_too(
    named: dict[str, Any], tmp_path: Path, llama_directory: Path
) -> None:
    from wuneng.model.pretrained import load_causal_model

    place = tmp_path / "model"
    shutil.copytree(llama_directory, place)
    change(place / "config.json", **named)
    with pytest.raises(ModelError, match=r"attn_implementation.* is 'somebody/kernels'.*--trust"):
        load_causal_model(place)


def test_every_loader_goes_through_one_file() -> None:
    """Calls of ``from_pretrained``; strings that other people are told to run are none."""
    root = Path(__file__).resolve().parents[2]
    found = set()
    for package in ("wuneng", "wuneng_cli"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
                    found.add(path.relative_to(root).as_posix())
    assert found == {"wuneng/model/pretrained.py"}
