"""Peak memory of an upgrade's three stages, killed and resumed in each, beside what was counted.

    python benchmarks/upgrade_chain.py --out benchmarks/upgrade_chain.json

A Qwen3 of random weights in the shape of Qwen2.5-0.5B is given state heads and goes through align,
distill and tune, two steps each, on the CPU. Every session but the last is killed (SIGKILL) once
the first step of a stage is saved; the next goes on from there. Of each session's process the
largest resident set is recorded, and what `wuneng train --dry-run` counted for its stages. What the
interpreter and its libraries take before there is a model is recorded apart. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from wuneng.records import write_json

#: Width, feed-forward width, layers, heads, groups, vocabulary. The small one is to try this out.
SHAPES = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936),
    "small": (128, 384, 2, 4, 2, 2048),
}
STAGES = ("align", "distill", "tune")
HEADS = ("--state-heads", "2", "--cross-head", "none", "--key-source", "own")
WUNENG = (sys.executable, "-m", "wuneng_cli")
_LIBRARIES = "import wuneng_cli.main, wuneng.train.arm_run, wuneng.model.modeling, peft"


def make_start(scratch: Path, shape: str) -> Path:
    """A WuNeng made of random weights; its new heads silent."""
    torch.manual_seed(0)
    width, wide, layers, heads, groups, words = SHAPES[shape]
    config = transformers.Qwen3Config(
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=width // heads,
        vocab_size=words,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    model = transformers.Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(scratch / "qwen3")
    del model
    start = scratch / "start"
    given = (*HEADS, "--value-source", "own", "--no-verify", "--quiet")
    subprocess.run([*WUNENG, "convert", scratch / "qwen3", start, *given], check=True)
    return start


def make_recipe(scratch: Path, start: Path) -> Path:
    """The chain's recipe, and a text to train on."""
    rows = (json.dumps({"text": f"{n} and {n + 1} make {2 * n + 1}. " * 9}) for n in range(400))
    (scratch / "text.jsonl").write_text("\n".join(rows))
    recipe = {
        "name": "chain",
        "init_from": str(start),
        "train": "new",
        "model": {},
        "arms": {"wuneng": {"stages": [{stage: {"steps": 2}} for stage in STAGES]}},
        "data": {
            "kind": "text",
            "train": str(scratch / "text.jsonl"),
            "tokenizer": "bytes",
            "cache_dir": str(scratch / "cache"),
        },
        "training": {
            "steps": 2 * len(STAGES),
            "sequence_length": 64,
            "batch_size": 1,
            "precision": "fp32",
            "learning_rate": 1e-3,
            "checkpoint_every": 1,
            "keep_checkpoints": 1,
            "log_every": 1,
            "num_threads": 1,
        },
        "evaluation": {"max_batches": 1},
        "device": "cpu",
    }
    path = scratch / "chain.yaml"
    path.write_text(json.dumps(recipe))
    return path


def counted(recipe: Path, out: Path) -> dict[str, int]:
    """Bytes at the peak of each stage, as a dry run counts them."""
    asked = [*WUNENG, "train", recipe, "--out", out, "--dry-run", "--no-measure", "--json"]
    done = subprocess.run(asked, check=True, capture_output=True, text=True)
    stages = json.loads(done.stdout)["arms"]["wuneng"]["stages"]
    return {stage["stage"]: stage["total"] for stage in stages}


def libraries_bytes() -> int:
    """Resident once everything is imported and nothing is loaded."""
    code = f"{_LIBRARIES}; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return _status(done.stdout)["VmHWM"]


def session(recipe: Path, out: Path, kill_after: int | None) -> dict[str, Any]:
    """Train on in a process of its own; kill it once step ``kill_after`` is saved."""
    began, peak = time.monotonic(), {"VmHWM": 0, "RssAnon": 0}
    process = subprocess.Popen([*WUNENG, "train", recipe, "--out", out, "--quiet"])
    saved = out / "wuneng" / "checkpoints" / f"step-{kill_after}" / "manifest.json"
    while process.poll() is None:
        try:
            found = _status(Path(f"/proc/{process.pid}/status").read_text())
        except OSError:
            break
        peak = {name: max(value, found.get(name, 0)) for name, value in peak.items()}
        if kill_after is not None and saved.exists():
            process.kill()
            break
        time.sleep(0.02)
    code = process.wait()
    if code not in (0, -9):
        raise SystemExit(f"wuneng train ended with {code}")
    return {
        "killed_after_step": kill_after if code else None,
        "peak_resident_bytes": peak["VmHWM"],
        "peak_anonymous_bytes": peak["RssAnon"],
        "seconds": round(time.monotonic() - began, 1),
    }


def _status(text: str) -> dict[str, int]:
    """The sizes in a /proc/PID/status, in bytes."""
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def main() -> None:
    """Make the model, train it in four sessions, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("upgrade_chain.json"))
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--scratch", type=Path, help="where about 10 GB may be written for a while")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as place:
        scratch = Path(place)
        recipe = make_recipe(scratch, make_start(scratch, given.shape))
        out = scratch / "run"
        expected, libraries = counted(recipe, out), libraries_bytes()
        sessions = []
        for number in range(len(STAGES) + 1):
            last = number == len(STAGES)
            found = session(recipe, out, None if last else 2 * number + 1)
            stages = STAGES[max(0, number - 1) : number + 1]
            found |= {
                "stages": stages,
                "counted_bytes": max(expected[stage] for stage in stages),
            }
            sessions.append(found)
            print(json.dumps(found), flush=True)
        steps = [json.loads(line) for line in (out / "wuneng/metrics.jsonl").open()]
        arm = json.loads((out / "wuneng" / "result.json").read_text())
    record = {
        "schema": 1,
        "parameters": arm["parameters"],
        "trainable_parameters": arm["trainable_parameters"],
        "counted_bytes_by_stage": expected,
        "libraries_bytes": libraries,
        "sessions": sessions,
        "stages_of_steps": [row["stage"] for row in steps],
        "environment": {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    write_json(given.out, record)


if __name__ == "__main__":
    main()
