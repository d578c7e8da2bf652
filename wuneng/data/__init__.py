"""Text: files and data sets, tokenizers, the token cache, packing, and batches."""

from __future__ import annotations

from typing import Any

from wuneng.data.batch import IGNORED, Batch, Prepared, TrainingData, ValidationData

__all__ = ["IGNORED", "Batch", "Prepared", "TrainingData", "ValidationData", "prepare_text"]


def __getattr__(name: str) -> Any:
    # Synthetic runs need the batch types alone.
    if name == "prepare_text":
        from wuneng.data.prepare import prepare_text

        return prepare_text
    raise AttributeError(f"module 'wuneng.data' has no attribute {name!r}")
