"""Destinations appear whole or not at all; shards in, shards out; the record says what happened."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.convert.sources import assert_same_bits, save_source, tensors_of
from wuneng.convert import Request, VerificationError, convert, graft, plan, shard_writer
from wuneng.convert.shard_writer import Entry, write_shards
from wuneng.errors import DiskError, InputError, ModelError, RunError


def test_shards_stay_shards(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", "qwen3", head_dim=20, max_shard_size="30KB")
    shards = sorted(p.name for p in source.glob("*.safetensors"))
    assert len(shards) > 2
    outcome = convert(Request(str(source), tmp_path / "out"))
    assert outcome.record["max_abs_logit_difference"] == 0.0
    out = tmp_path / "out"
    assert sorted(p.name for p in out.glob("*.safetensors")) == shards
    index = json.loads((out / "model.safetensors.index.json").read_text())
    written = tensors_of(out)
    assert index["weight_map"].keys() == written.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in written.values())
    for name, file in index["weight_map"].items():
        with safe_open(out / file, "pt") as handle:
            assert name in handle.keys()  # noqa: SIM118
    single = save_source(tmp_path / "single", "qwen3", head_dim=20)
    convert(Request(str(single), tmp_path / "one", verify=False))
    assert_same_bits(written, tensors_of(tmp_path / "one"))


def test_large_shards_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_LARGEST_SHARD", 40_000)
    source = save_source(tmp_path / "source")
    convert(Request(str(source), tmp_path / "out"))
    files = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 60_000 for file in files)


def test_written_files_are_what_safetensors_reads(tmp_path: Path) -> None:
    values = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "turned": torch.randn(4, 6).t(),
        "wide": torch.randn(7, dtype=torch.float64),
    }
    entries = [Entry(n, tuple(t.shape), t.dtype, lambda t=t: t) for n, t in values.items()]
    write_shards(tmp_path, [entries])
    assert_same_bits(values, tensors_of(tmp_path))
    wrong = Entry("x", (2,), torch.float32, lambda: torch.zeros(3))
    with pytest.raises(ValueError, match=r"x: planned torch\.float32"):
        write_shards(tmp_path, [[wrong]])


def test_old_rotary_buffers_are_dropped_for_a_stated_reason(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors = tensors_of(source) | {name: torch.ones(6)}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    outcome = convert(Request(str(source), tmp_path / "out"))
    assert outcome.record["tensors"]["dropped"] == {name: "computed from the configuration"}


def test_the_record(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    outcome = convert(Request(str(source), tmp_path / "out", seed=3))
    record = json.loads((tmp_path / "out" / "convert.json").read_text())
    assert record == outcome.record
    assert record["schema"] == 1
    assert record["seed"] == 3
    assert (
        record["parameters"]
        == AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters()
    )
    percent = 100 * record["added_parameters"] / (record["parameters"] - record["added_parameters"])
    assert record["added_percent"] == pytest.approx(percent)
    assert record["kl"] == 0.0
    assert record["verified"] is True
    assert record["verified_on"] == "random ids"
    assert len(record["checks"]) == 4
    assert sorted(record["copied_files"]) == ["chat_template.jinja", "generation_config.json"]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    unverified = convert(Request(str(source), tmp_path / "quick", verify=False)).record
    assert unverified["max_abs_logit_difference"] is None
    assert unverified["verified"] is False


def test_generation_settings_that_a_state_cannot_follow(tmp_path: Path) -> None:
    """What is written writes, by its own file, what the source writes."""
    source = save_source(tmp_path / "source")
    file = source / "generation_config.json"
    plain = json.loads(file.read_text()) | {"repetition_penalty": 1.3}
    ids = torch.tensor([[5, 9, 2]])
    rest = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    rest["attention_mask"] = torch.ones_like(ids)
    file.write_text(json.dumps(plain))
    expected = AutoModelForCausalLM.from_pretrained(source).generate(ids, **rest)
    for number, unfit in enumerate(
        (
            {"cache_implementation": "static"},
            {"cache_implementation": "quantized", "cache_config": {"nbits": 4}},
            {"prompt_lookup_num_tokens": 3},
        )
    ):
        file.write_text(json.dumps(plain | unfit))
        notes: list[str] = []
        out = tmp_path / f"out{number}"
        convert(Request(str(source), out), notes.append)
        assert any(f"left out {next(iter(unfit))}" in note for note in notes), unfit
        assert json.loads((out / file.name).read_text()) == plain
        found = AutoModelForCausalLM.from_pretrained(out).generate(ids, **rest)
        assert torch.equal(found, expected), unfit
    file.write_text(json.dumps(plain | {"cache_implementation": "dynamic"}))
    convert(Request(str(source), tmp_path / "kept"), notes.append)
    assert (tmp_path / "kept" / file.name).read_bytes() == file.read_bytes()


def test_values_that_float16_cannot_hold_are_named(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", dtype=torch.bfloat16)
    tensors = tensors_of(source)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][0, 0] = 1e5
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} holds 9.*e\+04, float16 ends at 65504"):
        convert(Request(str(source), tmp_path / "out", dtype="fp16"))
    assert _only_source(tmp_path)


def _only_source(tmp_path: Path) -> bool:
    return sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_a_difference_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_source(tmp_path / "source")
    made = graft.NewTensors.layer

    def loud(self: Any, layer: int) -> dict[str, torch.Tensor]:
        tensors = made(self, layer)
        name = f"model.layers.{layer}.cross_head.branch_proj.weight"
        return tensors | {name: tensors[name] + 0.01}

    monkeypatch.setattr(graft.NewTensors, "layer", loud)
    with pytest.raises(
        VerificationError, match=r"a logit is off by .* Nothing was written"
    ) as caught:
        convert(Request(str(source), tmp_path / "out"))
    assert caught.value.exit_code == 1
    assert [check.passed for check in caught.value.checks] == [False] * 4
    assert _only_source(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_source(tmp_path / "source", max_shard_size="30KB")
    write, calls = shard_writer._write, []

    def full(file: Path, entries: list[Entry]) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        write(file, entries)

    monkeypatch.setattr(shard_writer, "_write", full)
    with pytest.raises(DiskError, match="disk is full"):
        convert(Request(str(source), tmp_path / "out"))
    assert len(calls) == 2
    assert _only_source(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_conversion_leaves_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_source(tmp_path / "source")

    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr("wuneng.convert.conversion.copy_companions", stop)
    with pytest.raises(error):
        convert(Request(str(source), tmp_path / "out"))
    assert _only_source(tmp_path)


def test_a_tokenizer_that_counts_differently_is_an_error(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shared_data / "models" / "tinystories_656k"
    other = shared_data / "models" / "stories260k" / "tokenizer.json"
    copy = "wuneng.convert.conversion.copy_companions"

    def swapped(_: Any, model: Path, destination: Path) -> list[str]:
        (destination / "tokenizer.json").write_bytes(other.read_bytes())
        return ["tokenizer.json"]

    monkeypatch.setattr(copy, swapped)
    with pytest.raises(RunError, match="tokenizer gives other ids"):
        convert(Request(str(source), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_destinations_that_exist(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    (tmp_path / "empty").mkdir()
    convert(Request(str(source), tmp_path / "empty", verify=False))
    before = tensors_of(tmp_path / "empty")
    for place in (tmp_path / "empty", source):
        with pytest.raises(InputError, match="exists already"):
            convert(Request(str(source), place))
    assert_same_bits(before, tensors_of(tmp_path / "empty"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        convert(Request(str(source), tmp_path / "file"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "wunen"}, "--to: expected one of wuneng, .* Did you mean 'wuneng'"),
        ({"dtype": "int8"}, "--dtype: expected one of fp32"),
        ({"tokenizer": Path("vocab.txt")}, "--tokenizer is for RWKV-7"),
        ({"stock": True}, "--stock and --remote-code go with --to transformers"),
        ({"to": "transformers"}, "is a llama; --to transformers takes a WuNeng model"),
        ({"to": "dcp"}, "is a llama; --to dcp takes a WuNeng model"),
        ({"to": "transformers", "graft": graft.GraftSettings()}, "adds no heads"),
    ],
)
def test_options_that_do_not_go_together(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = save_source(tmp_path / "source")
    with pytest.raises(InputError, match=message):
        convert(Request(str(source), tmp_path / "out", **changes))
