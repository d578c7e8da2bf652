"""Tasks with a known answer, made from the seed: associative recall and state tracking."""

from __future__ import annotations

from wuneng.synthetic.prepare import prepare_synthetic

__all__ = ["prepare_synthetic"]
