"""The kinds of files that are mutated, and what a user does with each."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutation import mutated_bytes, mutated_json, mutated_text, value_text

__all__ = ["KINDS", "Originals", "make_originals"]

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[[], object]

_EVERY_FIELD = """\
name: everything
description: A recipe with most fields
seed: [0, 1]
train: all
model: {preset: none, hidden_size: 64, num_hidden_layers: 2, intermediate_size: 96,
  max_position_embeddings: 2k, norm: layernorm, rms_norm_eps: 1e-6, ffn: mlp, hidden_act: gelu,
  num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, rope_theta: 1e5,
  rope_scaling: {rope_type: yarn, factor: 4.0, original_max_position_embeddings: 512},
  sliding_window: 32, sliding_window_layers: [0], num_state_heads: 2, state_layers: [0, 1],
  state_a_max: 2.0, decay_rank: 8, snapshots: 1, snapshot_every: 32}
arms:
  wuneng: {}
  mha: {match: flops, training: {learning_rate: 2e-3}}
  own: {model: {num_state_heads: 1}}
data:
  kind: text
  train: [texts/, more.txt]
  validation: held.txt
  tokenizer: {train_bpe: 512}
  pack_documents: true
  max_documents: 10
training:
  tokens: 64k
  sequence_length: 64
  batch_size: 8
  micro_batch_size: 4
  learning_rates: {cross_head: 2.0}
  schedule: wsd
  betas: [0.9, 0.95]
  validate_every: 10
evaluation: {length_multiples: [1, 2], examples: 64, max_batches: 4}
loggers: [tensorboard]
"""


class Originals:
    """Whole files of every kind, made once; ``place`` is a directory to keep them in."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.recipes = [p.read_text("utf-8") for p in sorted((ROOT / "recipes").glob("*.yaml"))]
        self.recipes.append(_EVERY_FIELD)
        self.models: dict[str, Path] = {}


def make_originals(place: Path) -> Originals:
    """Small models, tokenizers and a run, made in a fork: a process that has computed has threads,
    which its own forks would wait for. What the cases need is imported here, once for all."""
    from tests.fuzz.originals import fill, import_the_rest

    child = os.fork()
    if not child:
        try:
            fill(place)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the originals could not be made")
    import_the_rest(place)
    originals = Originals(place)
    originals.models = {path.name: path for path in place.iterdir()}
    return originals


class Recipes:
    """Mutated recipes: loaded, written back and loaded again; one in forty planned."""

    name = "recipe"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.recipe import dump_recipe, load_recipe

        text = mutated_text(random, random.choice(self.originals.recipes))
        content = text.encode("utf-8", "surrogatepass")
        if random.random() < 0.1:
            content = mutated_bytes(random, content)
        file = directory / "r.yaml"
        file.write_bytes(content)
        if random.random() < 0.025:
            return lambda: _command("train", "r.yaml", "--dry-run", "--no-measure")

        def twice() -> None:
            recipe = load_recipe(file)
            again = directory / "again.yaml"
            again.write_text(dump_recipe(recipe), encoding="utf-8")
            assert load_recipe(again) == recipe, "written back, it is another recipe"

        return twice


class Overrides:
    """Mutated ``--set`` options on good recipes."""

    name = "override"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.recipe import load_recipe

        (directory / "r.yaml").write_text(self.originals.recipes[2], encoding="utf-8")
        changes = [_override(random) for _ in range(random.randint(1, 3))]
        if random.random() < 0.05:
            flags = [flag for change in changes for flag in ("--set", change)]
            return lambda: _command("train", "r.yaml", "--dry-run", "--no-measure", *flags)
        return lambda: load_recipe(directory / "r.yaml", changes)


#: Values that some field takes, so that what lies behind the first check is reached as well.
_PLAIN = (
    *("1", "2", "4", "64", "1000", "8k", "1M", "0.5", "1e-3", "cpu", "true", "parity", "[1, 2]"),
    *("{learning_rate: 0.01}", "{num_state_heads: 0}", "{task: recall, pairs: 3}", "[mha]", "null"),
)


def _override(random: Random) -> str:
    field = random.choice(
        (
            *(
                "seed",
                "name",
                "description",
                "device",
                "model.hidden_size",
                "model",
                "arms",
                "data",
            ),
            *("arms.mha", "arms.mha.model", "arms.mha.training.learning_rate", "data.tasks.0"),
            *("data.tasks.1.group", "data.tasks.0.pairs", "training.steps", "training.betas"),
            *("training.batch_size", "training.sequence_length", "evaluation.length_multiples"),
            *(
                "model.rope_scaling.factor",
                "model.num_hidden_layers",
                "model.state_layers",
                "train",
            ),
            *(
                "data.tasks.9",
                "data.tasks.x.y",
                "training.learning_rates.x",
                "arms.new",
                ".",
                "",
                "a..b",
            ),
        )
    )
    plain = random.random() < 0.6
    change = f"{field}={random.choice(_PLAIN) if plain else value_text(random)}"
    return mutated_text(random, change, 1) if random.random() < 0.2 else change


class Weights:
    """Mutated safetensors, indexes, .pth files and checkpoint metadata."""

    def __init__(self, originals: Originals, name: str) -> None:
        self.originals, self.name = originals, name

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.convert.distributed import DcpTensors
        from wuneng.convert.tensor_files import PthFile, SafetensorsFiles

        if self.name == "index":
            _copy(self.originals.models["sharded"], directory)
            _change_json(random, directory / "model.safetensors.index.json")
            return lambda: _read_all(SafetensorsFiles.of_directory(directory))
        if self.name == "safetensors":
            _copy(self.originals.models["llama"], directory)
            _change_safetensors(random, directory / "model.safetensors")
            if random.random() < 0.03:
                return lambda: _load(directory)
            return lambda: _read_all(SafetensorsFiles.of_directory(directory))
        if self.name == "pth":
            _copy(self.originals.models["pth"], directory)
            _change_bytes(random, directory / "model.pth")
            return lambda: _read_all(PthFile(directory / "model.pth"))
        _copy(self.originals.models["dcp"], directory)
        files = [".metadata"] * 4 + [p.name for p in directory.glob("*.distcp")]
        _change_bytes(random, directory / random.choice(files))
        return lambda: _read_all(DcpTensors(directory))


class Configurations:
    """Mutated config.json of every architecture: converted, or loaded as it is."""

    name = "config"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.convert import Request, convert

        kind = random.choice(("llama", "qwen2", "qwen3", "mistral", "wuneng", "fla"))
        source = directory / "source"
        _copy(self.originals.models[kind], source)
        file = random.choice(("config.json",) * 9 + ("generation_config.json",))
        if (source / file).exists():
            _change_json(random, source / file)
        _forget_checksums(random, source)
        if random.random() < 0.1:
            return lambda: _load(source)
        to = "transformers" if kind == "wuneng" and random.random() < 0.1 else "wuneng"
        request = Request(str(source), directory / "out", to=to, verify=False)
        return lambda: convert(request)


class Tokenizers:
    """Mutated tokenizer files: loaded and used."""

    name = "tokenizer"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.convert.rwkv_tokenizer import world_tokenizer
        from wuneng.data.tokenizer import load_tokenizer as for_data
        from wuneng.evaluate.loading import load_tokenizer as for_models

        if random.random() < 0.2:
            file = directory / "rwkv_vocab.txt"
            text = (self.originals.place / "rwkv_vocab.txt").read_bytes()
            file.write_bytes(mutated_bytes(random, text))
            return lambda: _used(world_tokenizer(file))
        _copy(self.originals.models[random.choice(("bytes", "words", "pieces"))], directory)
        files = [p for p in sorted(directory.iterdir()) if p.suffix == ".json"]
        _change_json(random, random.choice([directory / "tokenizer.json", *files]))
        if random.random() < 0.3:
            return lambda: _used(for_data(str(directory)))
        return lambda: _used(for_models(directory))


class Data:
    """Mutated text, JSON lines, archives and Parquet files for training and for evaluation."""

    name = "data"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.data.sources import FileSource

        original = random.choice(sorted((self.originals.place / "data").iterdir()))
        content = original.read_bytes()
        if original.suffix == ".gz" and random.random() < 0.7:
            content = gzip.compress(mutated_bytes(random, gzip.decompress(content)), 1)
        elif original.suffix == ".jsonl" and random.random() < 0.5:
            content = _changed_rows(random, content)
        else:
            content = mutated_bytes(random, content)
        file = directory / "texts" / original.name
        file.parent.mkdir()
        file.write_bytes(content)
        if original.name.startswith("documents"):
            return lambda: list(FileSource([str(file)], "data.train", "text", None).documents())
        return lambda: _evaluation_rows(file.parent, directory / "workspace")


class Runs:
    """A finished run with a mutated record: trained on, looked for models, written with."""

    name = "run"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.evaluate.choice import choose_models

        run = directory / "run"
        _copy(self.originals.models["run"], run)
        files = [p for p in sorted(run.rglob("*")) if p.is_file() and not p.is_symlink()]
        records = [p for p in files if p.suffix in (".json", ".jsonl", ".yaml")]
        file = random.choice(records if random.random() < 0.8 else files)
        if file.suffix == ".yaml":
            text = mutated_text(random, file.read_text("utf-8"))
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
        elif file.suffix == ".json":
            _change_json(random, file)
        else:
            _change_bytes(random, file)
        _forget_checksums(random, run)
        recipe = str(self.originals.place / "tiny.yaml")
        if random.random() < 0.6:
            return lambda: choose_models("run", None)
        if random.random() < 0.3:
            (run / "results.json").unlink(missing_ok=True)
        return lambda: _command("train", recipe, "--out", "run", "--quiet")


def _command(*arguments: str) -> None:
    from wuneng_cli.main import app

    app(args=list(arguments), prog_name="wuneng")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)


def _change_bytes(random: Random, file: Path) -> None:
    file.write_bytes(mutated_bytes(random, file.read_bytes()))


def _change_json(random: Random, file: Path) -> None:
    value = mutated_json(random, json.loads(file.read_bytes()))
    content = json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    file.write_bytes(mutated_bytes(random, content, 1) if random.random() < 0.1 else content)


def _forget_checksums(random: Random, directory: Path) -> None:
    """Mostly: with them, what stands in a damaged file is hardly ever looked at."""
    if random.random() < 0.8:
        for file in directory.rglob("checksums.json"):
            file.unlink()


def _changed_rows(random: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    at = random.randrange(len(lines))
    lines[at] = json.dumps(mutated_json(random, json.loads(lines[at]))).encode("ascii")
    return b"\n".join(lines) + b"\n"


def _change_safetensors(random: Random, file: Path) -> None:
    """The header as JSON, its length kept right; or any bytes."""
    content = file.read_bytes()
    if random.random() < 0.3:
        file.write_bytes(mutated_bytes(random, content))
        return
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(mutated_json(random, json.loads(content[8:end]))).encode("ascii")
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def _read_all(source: Any) -> None:
    for name in source.tensors:
        source.read(name)


def _load(directory: Path) -> None:
    import torch

    from wuneng.evaluate.loading import load_model

    load_model(directory, device=torch.device("cpu"))


def _used(tokenizer: Any) -> None:
    """As training and evaluation use it."""
    from wuneng.data.encoding import Encoder
    from wuneng.model.pretrained import encoded

    if tokenizer is not None:
        tokenizer.decode(encoded(tokenizer, "Hello wörld, 1 2 3\n"))
        Encoder(tokenizer).encode(["Hello wörld, 1 2 3\n", ""])


def _evaluation_rows(root: Path, workspace: Path) -> None:
    from wuneng.evaluate.local_data import LocalDirectory
    from wuneng.evaluate.local_files import converted_rows

    workspace.mkdir()
    for file in LocalDirectory(root, workspace).files:
        for _ in converted_rows(file):
            pass


#: Each kind and its share of all cases.
KINDS: dict[str, tuple[Callable[[Originals], Any], float]] = {
    "recipe": (Recipes, 0.26),
    "override": (Overrides, 0.12),
    "index": (lambda o: Weights(o, "index"), 0.13),
    "safetensors": (lambda o: Weights(o, "safetensors"), 0.16),
    "pth": (lambda o: Weights(o, "pth"), 0.04),
    "dcp": (lambda o: Weights(o, "dcp"), 0.03),
    "config": (Configurations, 0.05),
    "tokenizer": (Tokenizers, 0.06),
    "data": (Data, 0.135),
    "run": (Runs, 0.015),
}

# Nothing that a mutant names is to be fetched.
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads of a parent are missing in its forks.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
