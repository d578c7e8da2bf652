"""A recipe that trains in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = """
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 2}
arms: [wuneng, mha]
data: {kind: synthetic, tasks: [{task: recall, pairs: 2, keys: 4, values: 4}]}
training: {steps: 2, sequence_length: 16, batch_size: 4}
evaluation: {examples: 4, length_multiples: [1, 2]}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return "tiny.yaml"
