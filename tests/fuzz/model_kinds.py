"""Weights, configurations and tokenizers of models."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tests.fuzz.changes import Call, change_bytes, change_json, copy, forget_checksums
from tests.fuzz.mutation import mutated_bytes, mutated_json

if TYPE_CHECKING:
    from tests.fuzz.kinds import Originals

__all__ = ["Configurations", "Tokenizers", "Weights"]


class Weights:
    """Mutated safetensors, indexes, .pth files and checkpoint metadata."""

    def __init__(self, originals: Originals, name: str) -> None:
        self.originals, self.name = originals, name

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.convert.distributed import DcpTensors
        from wuneng.convert.tensor_files import PthFile, SafetensorsFiles

        if self.name == "index":
            copy(self.originals.models["sharded"], directory)
            change_json(random, directory / "model.safetensors.index.json")
            return lambda: _read_all(SafetensorsFiles.of_directory(directory))
        if self.name == "safetensors":
            copy(self.originals.models["llama"], directory)
            _change_safetensors(random, directory / "model.safetensors")
            if random.random() < 0.03:
                return lambda: _load(directory)
            return lambda: _read_all(SafetensorsFiles.of_directory(directory))
        if self.name == "pth":
            copy(self.originals.models["pth"], directory)
            change_bytes(random, directory / "model.pth")
            return lambda: _read_all(PthFile(directory / "model.pth"))
        copy(self.originals.models["dcp"], directory)
        files = [".metadata"] * 4 + [p.name for p in directory.glob("*.distcp")]
        change_bytes(random, directory / random.choice(files))
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
        copy(self.originals.models[kind], source)
        file = random.choice(("config.json",) * 9 + ("generation_config.json",))
        if (source / file).exists():
            change_json(random, source / file)
        forget_checksums(random, source)
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
        copy(self.originals.models[random.choice(("bytes", "words", "pieces"))], directory)
        files = [p for p in sorted(directory.iterdir()) if p.suffix == ".json"]
        change_json(random, random.choice([directory / "tokenizer.json", *files]))
        if random.random() < 0.3:
            return lambda: _used(for_data(str(directory)))
        return lambda: _used(for_models(directory))


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
