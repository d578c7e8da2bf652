"""Models and operators run where only torch and transformers are installed."""

import subprocess
import sys

CODE = """
import importlib.abc, sys

ABSENT = {"pydantic", "pydantic_core", "datasets", "lm_eval"}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from wuneng import WuNengConfig, WuNengForCausalLM
import wuneng.bench
from wuneng.ops import wkv7

config = WuNengConfig(vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
model = WuNengForCausalLM(config)
print(tuple(model(torch.zeros(1, 20, dtype=torch.long)).logits.shape), callable(wkv7))
"""


def test_without_pydantic_datasets_and_lm_eval():
    out = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=200
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.split("\n")[0] == "(1, 20, 50) True"
