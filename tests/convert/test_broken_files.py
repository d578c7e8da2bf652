"""Corrupt, truncated and hostile sources: one clear error, no code run, nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.convert.sources import save_source
from wuneng.convert import Request, convert
from wuneng.errors import ModelError
from wuneng.records import find_model

SHARD, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        tensors = load_file(directory / SHARD)
        change(tensors)
        save_file(tensors, directory / SHARD, metadata={"format": "pt"})

    return edit


def _config(**changes: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        config = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps(config | changes))

    return edit


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        (directory / name).write_bytes(change((directory / name).read_bytes()))

    return edit


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrites the JSON header of the safetensors file and leaves the data alone."""

    def edit(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return _bytes(SHARD, edit)


def _index(weight_map: dict[str, Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        (directory / SHARD).rename(directory / "model-00001-of-00001.safetensors")
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return edit


def _pickled(directory: Path) -> None:
    (directory / SHARD).unlink()
    with (directory / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Bomb(directory / "exploded"), file)


NORM = "model.layers.1.input_layernorm.weight"
Q = "model.layers.0.self_attn.q_proj.weight"

CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated data": (_bytes(SHARD, lambda b: b[:-100]), "not a usable safetensors file"),
    "truncated header": (_bytes(SHARD, lambda b: b[:50]), "not a usable safetensors file"),
    "empty file": (_bytes(SHARD, lambda _: b""), "not a usable safetensors file"),
    "huge header": (_bytes(SHARD, lambda b: b"\xff" * 8 + b[8:]), "not a usable safetensors file"),
    "header not json": (_bytes(SHARD, lambda b: b[:8] + b"[" * 99 + b[107:]), "not a usable"),
    "overlapping offsets": (
        _header(lambda h: h[NORM].update(data_offsets=[0, 192])),
        "not a usable safetensors file",
    ),
    "shape beyond the data": (
        _header(lambda h: h[NORM].update(shape=[1 << 40])),
        "not a usable safetensors file",
    ),
    "a pickle": (_pickled, "pytorch_model.bin, a pickle that could run code"),
    "no weights": (lambda d: (d / SHARD).unlink(), "no weights; expected model.safetensors"),
    "nan": (
        _tensors(lambda t: t[NORM].fill_(float("nan"))),
        f"{NORM} holds 48 values that are NaN",
    ),
    "infinity": (_tensors(lambda t: t[Q][3].fill_(float("inf"))), "q_proj.weight holds 48 values"),
    "wrong shape": (
        _tensors(lambda t: t.update({NORM: torch.ones(47)})),
        r"input_layernorm.weight has shape \[47\]; the configuration makes it \[48\]",
    ),
    "missing tensor": (_tensors(lambda t: t.pop(Q)), f"lacks 1 tensors .*: {Q}"),
    "left-over tensor": (
        _tensors(lambda t: t.update({"model.layers.0.self_attn.q_proj.lora": torch.ones(2)})),
        r"q_proj\.lora is neither .* Did you mean 'model\.layers\.0\.self_attn\.q_proj",
    ),
    "integers": (
        _tensors(lambda t: t.update({NORM: torch.ones(48, dtype=torch.int8)})),
        "is I8; expected F64, F32, F16, BF16",
    ),
    "index outside": (_index({NORM: "../model.safetensors"}), "in the same directory"),
    "index of a pickle": (_index({NORM: "weights.bin"}), "the name of a safetensors file"),
    "index of nothing": (_index({NORM: "model-2.safetensors"}), "lists model-2.safetensors"),
    "shard of 5,000 characters": (
        _index({NORM: "m" * 5000 + ".safetensors"}),
        "is said to be in|which is not there",
    ),
    "index without a map": (_index({}), "no 'weight_map'"),
    "index lies": (
        _index({"model.extra": "model-00001-of-00001.safetensors"}),
        "lacks model.extra, which model.safetensors.index.json says",
    ),
    "config not json": (_bytes(CONFIG, lambda b: b[:-9]), "config.json: not readable as JSON"),
    "config too deep": (_bytes(CONFIG, lambda _: b"[" * 100000), "config.json: not readable"),
    "config a list": (_bytes(CONFIG, lambda _: b"[1]"), "expected a JSON object, got list"),
    "config without type": (_config(model_type=None), "no 'model_type'"),
    "endless layers": (_config(num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000, but"),
    "fewer layers": (_config(num_hidden_layers=1), "layers.1.* is neither"),
    "no heads": (_config(num_attention_heads=0), "config.json"),
    "negative width": (_config(hidden_size=-48), "config.json"),
    "text for a number": (_config(hidden_size="wide"), "config.json: not a usable llama"),
    "other vocabulary": (_config(vocab_size=96), r"has shape \[97, 48\]; vocab_size"),
    "endless heads": (
        _config(head_dim=(1 << 31) - 2),
        r"does not make a model|the configuration makes it \[8589934584, 48\]",
    ),
    "a rotary factor of words": (
        _config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": "four"}),
        "does not make a model|not a usable",
    ),
    "unknown activation": (_config(hidden_act="silo"), "hidden_act 'silo'.* Did you mean 'silu'"),
    "a list as activation": (_config(hidden_act=["silu"]), "not a usable llama"),
    "a list as rope": (
        _config(rope_parameters={"rope_type": ["default"], "rope_theta": 1e4}),
        "not a usable llama configuration: unhashable type",
    ),
    "unknown rope": (
        _config(rope_parameters={"rope_type": "spiral", "rope_theta": 1.0}),
        "rope_type 'spiral' is not supported|not a usable",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_sources(case: str, tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    break_it, message = CASES[case]
    break_it(source)
    with pytest.raises(ModelError, match=message):
        convert(Request(str(source), tmp_path / "out", verify=False))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    assert not (source / "exploded").exists()


def _protocol(number: int) -> Callable[[Path, Path], None]:
    def write(file: Path, trap: Path) -> None:
        with file.open("wb") as stream:
            pickle.dump(Bomb(trap), stream, protocol=number)

    return write


@pytest.mark.parametrize(
    "write",
    [
        lambda file, trap: torch.save({"emb.weight": Bomb(trap)}, file),
        lambda file, trap: torch.save(Bomb(trap), file, _use_new_zipfile_serialization=False),
        _protocol(2),
        lambda file, trap: file.write_bytes(b"PK\x03\x04 not a zip"),
        lambda file, trap: file.write_bytes(b""),
        lambda file, trap: torch.save([torch.ones(2)], file),
        lambda file, trap: torch.save({"emb.weight": "text"}, file),
        lambda file, trap: torch.save({3: torch.ones(2)}, file),
    ],
    ids=["bomb", "old-bomb", "pickle", "not-a-zip", "empty", "a-list", "a-string", "number-name"],
)
def test_broken_pth_files(write: Callable[[Path, Path], None], tmp_path: Path) -> None:
    file, trap = tmp_path / "x.pth", tmp_path / "exploded"
    write(file, trap)
    with pytest.raises(ModelError, match=r"x\.pth: (cannot be read as weights|expected|holds)"):
        convert(Request(str(file), tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth"]


def test_code_beside_the_weights_is_neither_run_nor_copied(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    trap = tmp_path / "exploded"
    (source / "modeling_llama.py").write_text(f"import os; os.mkdir({str(trap)!r})")
    _config(
        auto_map={
            "AutoConfig": "modeling_llama.Config",
            "AutoModelForCausalLM": "modeling_llama.Model",
        }
    )(source)
    convert(Request(str(source), tmp_path / "out"))
    assert not trap.exists()
    assert not list((tmp_path / "out").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "out" / CONFIG).read_text())


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "stories").mkdir()
    with pytest.raises(ModelError, match=r"stoires does not exist.* Did you mean 'stories'"):
        convert(Request(str(tmp_path / "stoires"), tmp_path / "out"))
    with pytest.raises(ModelError, match=r"expected config\.json"):
        convert(Request(str(tmp_path / "stories"), tmp_path / "out"))
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="expected a model directory, or an RWKV-7"):
        convert(Request(str(tmp_path / "weights.bin"), tmp_path / "out"))
    with pytest.raises(ModelError, match="no directory here, and it cannot be fetched"):
        convert(Request("nobody-here/no-such-model", tmp_path / "out"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["model.layers.0.self_attn.q_proj.weight", "b", "c", "d", "e"],
            r"It holds 5 keys: model\.layers\.0\.self_attn\.q_proj\.weight, b, c, d, \.\.\.; "
            "these are the keys of a Transformer such as Llama, Qwen or Mistral",
        ),
        (["layers.3.attention.wq.weight"], "keys of Llama in Meta's layout"),
        (["transformer.h.0.attn.c_attn.weight"], "keys of GPT-2, which does not convert"),
        (["backbone.layers.0.mixer.A_log"], "keys of Mamba, which does not convert"),
        (["model.layers.0.attn.r_proj.weight"], "keys of RWKV-7 in the fla layout; convert the"),
        (["model.layers.1.state_heads.r_proj.weight"], "keys of a WuNeng; convert the directory"),
        (["a", "b"], "It holds 2 keys: a, b$"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_refused_file_is_told_its_keys(
    names: list[str], message: str, suffix: str, tmp_path: Path
) -> None:
    tensors = {name: torch.ones(2) for name in names}
    file = tmp_path / f"x{suffix}"
    torch.save(tensors, file) if suffix == ".pth" else save_file(tensors, file)
    with pytest.raises(ModelError, match=message):
        convert(Request(str(file), tmp_path / "out"))


def test_a_training_checkpoint_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"state_dict": {"emb.weight": torch.ones(2)}, "epoch": 3}, file)
    with pytest.raises(ModelError, match="keys of a training checkpoint with the weights inside"):
        convert(Request(str(file), tmp_path / "out"))


def test_names_that_are_no_paths(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a\.\.\.: .*File name too long"):
        convert(Request("a" * 5000, tmp_path / "out"))
    with pytest.raises(ModelError, match=r"model a+\.\.\.: .*File name too long"):
        find_model("a" * 5000)
