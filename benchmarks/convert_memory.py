"""Peak memory of converting a made-up 1.5 B-parameter Llama that is stored in 2 GB shards.

    python benchmarks/convert_memory.py --out benchmarks/convert_memory.json

Writes random bfloat16 weights shard by shard (about 3 GB), converts them in a process of its own
and records that process's largest resident set, which counts the mapped pages of the source too.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig

from wuneng.convert import Request, convert
from wuneng.convert.plan import model_shapes
from wuneng.convert.shard_writer import Entry, write_shards
from wuneng.model import WuNengConfig
from wuneng.records import write_json

SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 20,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SHARD_BYTES = 2 * 10**9


def make_source(directory: Path, shape: dict[str, int]) -> int:
    """Random weights under a Llama's names; returns the number of parameters."""
    config = LlamaConfig(**shape, architectures=["LlamaForCausalLM"], dtype=torch.bfloat16)
    config.save_pretrained(directory)
    names = model_shapes(WuNengConfig(**shape, num_state_heads=0))
    shards: list[list[Entry]] = [[]]
    for name, size in names.items():
        entry = Entry(name, size, torch.bfloat16, partial(_random, size))
        if shards[-1] and sum(e.nbytes for e in shards[-1]) + entry.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(entry)
    write_shards(directory, shards)
    return sum(torch.Size(size).numel() for size in names.values())


def _random(size: tuple[int, ...]) -> Tensor:
    return torch.randn(size, dtype=torch.bfloat16) * 0.02


def measure(source: str, destination: str, *, verify: bool) -> dict[str, float]:
    """Convert in this process; its peak resident set in bytes, and the seconds it took."""
    start = time.monotonic()
    outcome = convert(Request(source, Path(destination), verify=verify))
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "seconds": round(time.monotonic() - start, 1),
        "parameters": outcome.record["parameters"],
        "added_percent": round(outcome.record["added_percent"], 3),
        "max_abs_logit_difference": outcome.record["max_abs_logit_difference"],
    }


def main() -> None:
    """Make the source, convert it with and without verification, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("convert_memory.json"))
    parser.add_argument("--scratch", type=Path, help="where about 7 GB may be written for a while")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        source, destination, verify = arguments.one
        print(json.dumps(measure(source, destination, verify=verify == "verify")))
        return
    rows = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        source = Path(scratch) / "llama"
        source.mkdir()
        parameters = make_source(source, SHAPE)
        files = [file.stat().st_size for file in source.glob("*.safetensors")]
        for how in ("no-verify", "verify"):
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                command = [sys.executable, __file__, "--one", str(source), f"{place}/out", how]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows[how] = json.loads(done.stdout.strip().splitlines()[-1])
                print(how, rows[how])
    record = {
        "schema": 1,
        "source_parameters": parameters,
        "source_bytes": sum(files),
        "largest_shard_bytes": max(files),
        "conversions": rows,
        "environment": {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
