"""How large the numbers of an architecture may be: stated once, for recipes and configurations.

The limits lie far above what anybody has trained; beyond them counting would overflow, or planning
alone would take all memory.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "LARGEST_COUNT",
    "LIMITS",
    "MOST_HEADS",
    "MOST_LAYERS",
    "MOST_TAPS",
    "MOST_THREADS",
    "MOST_TOKEN_IDS",
    "WIDEST",
    "WIDEST_FEED_FORWARD",
    "Limits",
]

#: What a seed or a number of tokens may be: torch and numpy count with 64 bits.
LARGEST_COUNT = 2**62
WIDEST = 2**20
WIDEST_FEED_FORWARD = 2**24
MOST_LAYERS = 1024
MOST_HEADS = 2**16
MOST_TOKEN_IDS = 2**27
#: Of a short convolution.
MOST_TAPS = 64
#: Of a processor; no machine has as many.
MOST_THREADS = 2**14


class Limits(NamedTuple):
    """From ``least`` (``open``: above it) to ``most``."""

    least: float
    most: float
    open: bool = False

    def problem(self, value: float) -> str | None:
        """What is wrong with ``value``, to follow the name of its field; None if nothing is."""
        if (value > self.least if self.open else value >= self.least) and value <= self.most:
            return None
        if self.open:
            return f"must be above {self.least:g}, got {value}"
        if self.most in (LARGEST_COUNT, float("inf")):
            return f"must be {self.least:g} or more, got {value}"
        return f"must lie in {self.least:g}..{self.most}, got {value}"


_INFINITE = float("inf")
_WIDTH = Limits(1, WIDEST)
_FACTOR = Limits(0, _INFINITE, open=True)
#: Of the fields of a configuration. A model without attention heads has no key and value heads.
LIMITS: dict[str, Limits] = {
    "vocab_size": Limits(1, MOST_TOKEN_IDS),
    "hidden_size": _WIDTH,
    "intermediate_size": Limits(1, WIDEST_FEED_FORWARD),
    "num_hidden_layers": Limits(1, MOST_LAYERS),
    "num_attention_heads": Limits(0, MOST_HEADS),
    "num_key_value_heads": Limits(0, MOST_HEADS),
    "head_dim": _WIDTH,
    "max_position_embeddings": Limits(1, LARGEST_COUNT),
    "initializer_range": Limits(0, _INFINITE),
    "rms_norm_eps": Limits(0, _INFINITE),
    "attention_dropout": Limits(0, 1),
    "sliding_window": Limits(1, LARGEST_COUNT),
    "embedding_multiplier": _FACTOR,
    "attention_multiplier": _FACTOR,
    "residual_multiplier": _FACTOR,
    "logits_scaling": _FACTOR,
    "attention_softcap": _FACTOR,
    "num_experts": Limits(0, MOST_HEADS),
    "num_experts_per_tok": Limits(1, MOST_HEADS),
    "moe_intermediate_size": Limits(1, WIDEST_FEED_FORWARD),
    "logit_softcap": _FACTOR,
    "num_state_heads": Limits(0, MOST_HEADS),
    "state_head_dim": _WIDTH,
    "decay_rank": _WIDTH,
    "rate_rank": _WIDTH,
    "value_rank": _WIDTH,
    "gate_rank": _WIDTH,
    "state_a_max": Limits(1, 2),
    "state_reads": Limits(1, 2),
    "state_short_conv": Limits(0, MOST_TAPS),
    "attention_short_conv": Limits(0, MOST_TAPS),
    "state_norm_eps": Limits(0, _INFINITE),
    "snapshots": Limits(0, MOST_HEADS),
    "snapshot_every": Limits(1, LARGEST_COUNT),
}
