"""Every command that writes, from its beginning and in the middle of its work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.kill.harness import KILL, Scenario, Server

RECIPE = """
name: tiny
model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, num_state_heads: 1,
        attention_dropout: 0.1}
arms: [wuneng]
data: {kind: text, train: text.txt, tokenizer: bytes, validation_fraction: 0.3}
training: {steps: 3, sequence_length: 16, batch_size: 2, micro_batch_size: 1, num_threads: 1,
           log_every: 1, validate_every: 2, checkpoint_every: 1, keep_checkpoints: 1,
           warmup_steps: 1}
device: cpu
"""
#: Of metrics, records and results: what depends on the clock, not on the computation.
_TIMES = ("seconds", "tokens_per_second", "data_wait", "peak_memory_bytes", "environment")


def scenarios() -> list[Scenario]:
    """Every command that writes, from its beginning and in the middle of its work."""
    train = ["train", "tiny.yaml", "-q"]
    longer = [*train, "--set", "training.steps=4", "--resume", "runs/tiny"]
    evaluate = ["eval", "runs/tiny", "--tasks", "validation", "--out", "scores", "-q"]
    convert = ["convert", "runs/tiny", "exported/model", "--to", "transformers", "--stock", "-q"]
    bench = [
        *("bench", "--model", "runs/tiny", "--what", "decode", "--seq-len", "16,32"),
        *("--against", "none", "--seconds", "0.1", "--out", "speed", "-q"),
    ]
    graft = ["convert", "base", "exported/model", "--state-heads", "1", "-q"]
    sharded = ["convert", "runs/tiny", "exported/model", "--to", "dcp", "-q"]
    exists = "exists already"
    done, page = "runs/tiny/results.json", ("report", "runs/tiny", "-q")
    return [
        Scenario("train", train, _recipe, run_results, complete=done, finish=page),
        Scenario("train --out", [*train, "--out", "here/run"], _recipe, run_results, page=False),
        Scenario("resume", train, _stopped, run_results, complete=done, page=False),
        Scenario("train of a finished run", [*train, "--resume", "runs/tiny"], _run, run_results),
        Scenario("train longer", longer, _constant_run, run_results, page=False),
        Scenario("eval", evaluate, _run, _scores),
        Scenario("convert", convert, _plain_run, _exported, refused=exists),
        Scenario("convert of a base", graft, _base, _exported, refused=exists),
        Scenario("convert to dcp", sharded, _run, _exported_shards, refused=exists),
        Scenario("upgrade", train, _upgrade, run_results, complete=done, page=False),
        Scenario("bench", bench, _run, _speed),
        Scenario("report", list(page), _run, run_results),
        Scenario("cache clear", ["cache", "clear"], _run, lambda place: {}),
    ]


def _recipe(server: Server, place: Path, text: str = RECIPE) -> None:
    (place / "tiny.yaml").write_text(text, encoding="utf-8")
    lines = [f"The {i}th line tells of {i * i} owls and {i % 7} bees.\n" for i in range(40)]
    (place / "text.txt").write_text("".join(lines), encoding="utf-8")


def _run(server: Server, place: Path, text: str = RECIPE) -> None:
    _recipe(server, place, text)
    ended = server.run(place, ["train", "tiny.yaml", "-q"])
    assert ended.status == 0, ended.output


def _constant_run(server: Server, place: Path) -> None:
    """One whose schedule lets it be trained for longer."""
    _run(server, place, RECIPE.replace("warmup_steps: 1", "warmup_steps: 1, schedule: constant"))


def _plain_run(server: Server, place: Path) -> None:
    _run(server, place, RECIPE.replace("num_state_heads: 1", "num_state_heads: 0"))


def _base(server: Server, place: Path) -> None:
    """A plain Transformer, as others would hand it over, and no run."""
    _plain_run(server, place)
    command = ["convert", "runs/tiny", "base", "--to", "transformers", "--stock", "-q"]
    ended = server.run(place, command)
    assert ended.status == 0, ended.output
    for left in ("runs", "cache"):
        shutil.rmtree(place / left)


def _upgrade(server: Server, place: Path) -> None:
    """A recipe that starts from such a Transformer."""
    _base(server, place)
    settings = yaml.safe_load(RECIPE)
    new = {"num_state_heads": 1, "cross_head": "gated"}
    settings |= {"init_from": "base", "train": "new", "model": new}
    del settings["data"]["tokenizer"]
    (place / "tiny.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def _stopped(server: Server, place: Path) -> None:
    """A run killed after its second checkpoint, in the middle of its third."""
    _recipe(server, place)
    total = server.run(place, ["train", "tiny.yaml", "-q"]).operations
    for at in range(total // 3, total, 6):
        for left in ("runs", "cache"):
            shutil.rmtree(place / left, ignore_errors=True)
        server.run(place, ["train", "tiny.yaml", "-q"], KILL, at)
        if list((place / "runs/tiny/wuneng/checkpoints").glob(".partial-step-3.*")):
            return
    raise AssertionError("never stopped in its third checkpoint")


def run_results(place: Path) -> dict[str, Any]:
    """What a finished run says, less what the clock says."""
    [run] = {path.resolve().parent for path in place.glob("*/*/results.json")}
    arm = run / "wuneng"
    steps = (arm / "checkpoints").glob("step-*")
    last = max(steps, key=lambda path: int(path.name.removeprefix("step-")))
    metrics = (arm / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "weights": (arm / "model" / "model.safetensors").read_bytes(),
        "step": last.name,
        "checkpoint": (last / "model.safetensors").read_bytes(),
        "moments": (last / "optimizer.safetensors").read_bytes(),
        "rows": (arm / "rows.json").read_bytes(),
        "metrics": [_timeless(json.loads(line)) for line in metrics],
        "record": _timeless(json.loads((arm / "result.json").read_bytes())),
        "results": _timeless(json.loads((run / "results.json").read_bytes())),
        "recipe": (run / "recipe.yaml").read_bytes(),
    }


def _scores(place: Path) -> dict[str, Any]:
    return {"eval.json": _timeless(json.loads((place / "scores/eval.json").read_bytes()))}


def _exported(place: Path) -> dict[str, Any]:
    directory = place / "exported" / "model"
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _exported_shards(place: Path) -> dict[str, Any]:
    """Of its metadata what it says of tensors: it also has an id, which is another every time."""
    from torch.distributed.checkpoint import FileSystemReader

    found = _exported(place)
    del found[".metadata"], found["checksums.json"]
    metadata = FileSystemReader(place / "exported" / "model").read_metadata()
    return found | {"tensors": str(metadata.state_dict_metadata)}


def _speed(place: Path) -> dict[str, Any]:
    record = json.loads((place / "speed/bench.json").read_bytes())
    return {"cases": [(row["what"], row["seq_len"], row["status"]) for row in record["rows"]]}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items() if name not in _TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
