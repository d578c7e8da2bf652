"""Whole files to be mutated: small models, tokenizers, documents, test sets and a finished run."""

from __future__ import annotations

import gzip
import importlib
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tests.convert.rwkv_files import random_x070, save_fla
from tests.convert.sources import save_source
from tests.evaluate.conftest import evaluation_rows, save_model, tiny_llama
from wuneng.convert import Request, convert
from wuneng.data.tokenizer import byte_tokenizer

_SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_TINY_RECIPE = """\
model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 1}
arms: [wuneng, mha]
data: {kind: synthetic, tasks: [{task: recall, pairs: 2}]}
training: {steps: 2, sequence_length: 16, batch_size: 2, checkpoint_every: 1}
evaluation: {length_multiples: [1], examples: 4}
device: cpu
"""


_TASKS = {
    "answers": """output_type: generate_until
doc_to_text: "Q: {{q}}\\nA:"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
filter_list: [{name: x, filter: [{function: regex, regex_pattern: "(.)"}, {function: take_first}]}]
metric_list: [{metric: exact_match, aggregation: mean, ignore_case: true}]
""",
    "choices": """output_type: multiple_choice
doc_to_text: "{{q.strip()}}"
doc_to_choice: "{{options}}"
doc_to_target: "{{options.index(a)}}"
num_fewshot: 1
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "words": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
should_decontaminate: true
doc_to_decontamination_query: "{{q}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte, aggregation: bits_per_byte}]
""",
}


def fill(place: Path) -> None:
    """Make everything, each kind in a directory of its own under ``place``."""
    for kind in ("llama", "qwen2", "qwen3", "mistral"):
        save_source(place / kind, kind, **_SMALL)
    save_source(place / "sharded", **_SMALL, max_shard_size="3KB")
    tensors = random_x070(layers=1, heads=1)
    save_fla(place / "fla", tensors)
    (place / "pth").mkdir()
    torch.save(tensors, place / "pth" / "model.pth")
    convert(Request(str(place / "llama"), place / "wuneng", verify=False))
    convert(Request(str(place / "wuneng"), place / "dcp", to="dcp", verify=False))
    _tokenizers(place)
    _data(place / "data")
    _run(place)
    _study(place)
    _bench(place / "bench")
    _tasks(place / "tasks")
    save_model(tiny_llama(), place / "lm")
    _use_all(place)


def import_the_rest(place: Path) -> None:
    """What using the originals imported: in the forks, each would pay for it again."""
    for name in json.loads((place / "modules.json").read_text("utf-8")):
        with suppress(Exception):
            importlib.import_module(name)


def _use_all(place: Path) -> None:
    """Load, as the cases do, and note which modules that took."""
    import wuneng_cli.main  # noqa: F401
    from wuneng.data.sources import FileSource
    from wuneng.evaluate.choice import choose_models
    from wuneng.evaluate.loading import load_model
    from wuneng.evaluate.local_data import LocalDirectory
    from wuneng.recipe import load_recipe
    from wuneng_cli.dry_run import plan

    for kind in ("llama", "qwen2", "qwen3", "mistral", "wuneng"):
        load_model(place / kind, device=torch.device("cpu"))
    convert(Request(str(place / "wuneng"), place / "export", to="transformers", verify=False))
    convert(Request(str(place / "fla"), place / "converted", verify=False))
    list(FileSource([str(place / "data")], "data.train", "text", None).files)
    list(FileSource([str(place / "data" / "documents.parquet")], "x", "text", None).documents())
    LocalDirectory(place / "data", place)
    choose_models(str(place / "run"), None)
    _use_commands(place)
    plan(load_recipe(place / "tiny.yaml"))
    (place / "modules.json").write_text(json.dumps(sorted(sys.modules)), encoding="utf-8")


def _use_commands(place: Path) -> None:
    import fsspec.implementations.http  # noqa: F401

    from wuneng_cli.main import app

    scratch = place / "used"
    shutil.copytree(place / "tasks", scratch)
    for name in ("choices", "words"):
        (scratch / f"{name}.yaml").unlink()
    file = scratch / "answers.yaml"
    text = file.read_text().replace("ROWS", str(scratch / "rows.jsonl"))
    file.write_text(text.replace("hf-cache", str(scratch / "hf-cache")))
    asked = [
        "eval",
        str(place / "lm"),
        "--tasks",
        "fuzzed_questions",
        "--include-path",
        str(scratch),
    ]
    rest = ["--baseline", "none", "--limit", "1", "--device", "cpu", "--quiet"]
    app([*asked, *rest, "--out", str(scratch / "out")], standalone_mode=False)
    app(["report", str(place / "study"), "--quiet", "--out", str(scratch)], standalone_mode=False)


def _tokenizers(place: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_tokenizer().save_pretrained(place / "bytes")
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "Hello": 1, "1": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(
        place / "words"
    )
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁He", -1.0), ("llo", -2.0)], 0, True))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>").save_pretrained(
        place / "pieces"
    )
    lines = [f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)]
    lines += [f"{257 + i} {word!r} {len(word)}" for i, word in enumerate((" the", "Hello", "\n\n"))]
    (place / "rwkv_vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _data(place: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    place.mkdir()
    texts = ["Once upon a time.", "Zwölf Boxkämpfer\njagen", "日本語 text"]
    rows = [json.dumps({"text": text, "n": i}, ensure_ascii=False) for i, text in enumerate(texts)]
    lines = "".join(f"{row}\n" for row in rows).encode("utf-8")
    (place / "documents.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (place / "documents.jsonl").write_bytes(lines)
    (place / "documents.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    table = pyarrow.table({"text": texts, "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, place / "documents.parquet")
    for name, found in evaluation_rows(3).items():
        content = "".join(json.dumps(row) + "\n" for row in found).encode("ascii")
        packed = name.endswith(".gz")
        (place / name).write_bytes(gzip.compress(content, mtime=0) if packed else content)


def _study(place: Path) -> None:
    from wuneng_cli.main import app

    study = "{primary: recall/loss, tune: {training.learning_rate: [1e-3, 2e-3]}, seeds: 2}"
    command = ["train", str(place / "tiny.yaml"), "--quiet", "--out", str(place / "study")]
    app([*command, "--set", f"study={study}"], standalone_mode=False)


def _bench(place: Path) -> None:
    """A record of the project's own, without its pictures."""
    place.mkdir()
    kept = Path(__file__).resolve().parents[2] / "benchmarks" / "cpu-small"
    for name in ("bench.json", "bench.csv"):
        shutil.copy(kept / name, place)


def _tasks(place: Path) -> None:
    place.mkdir()
    rows = [{"q": f"What is {i}?", "a": str(i), "options": ["0", "1", "2"]} for i in range(3)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = "task: fuzzed_questions\ndataset_path: json\ntest_split: test\n"
    head += "dataset_kwargs: {data_files: {test: ROWS}, cache_dir: hf-cache}\n"
    for name, text in _TASKS.items():
        (place / f"{name}.yaml").write_text(head + text)


def _run(place: Path) -> None:
    from wuneng.recipe import load_recipe
    from wuneng.train import make_display, run

    recipe = place / "tiny.yaml"
    recipe.write_text(_TINY_RECIPE, encoding="utf-8")
    display = make_display(quiet=True, to_stderr=True)
    run(load_recipe(recipe), place / "run", "never", display, command_line=[], sources=None)
