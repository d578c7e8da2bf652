"""How the arms are trained and scored: the fields of ``training:`` and ``evaluation:``."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from wuneng.limits import MOST_LAYERS
from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import Count, Fraction, Length, PositiveCount, Real, Rows, Threads
from wuneng.recipe.upgrade import Regex

__all__ = ["EndEvaluation", "OptimizerSettings", "Spikes", "Training"]

PositiveReal = Annotated[Real, Gt(0.0)]
NonNegativeReal = Annotated[Real, Ge(0.0)]


def _recomputed(value: Any) -> Any:
    if isinstance(value, bool):  # as recipes had it when it was all or nothing
        return "full" if value else "none"
    if value in ("none", "full") or (type(value) is int and 1 <= value <= MOST_LAYERS):
        return value
    raise PydanticCustomError(
        "recomputed", "{expected}", {"expected": "none, full or a number of layers from 1"}
    )


Recomputed = Annotated[Literal["none", "full"] | int, BeforeValidator(_recomputed)]


class OptimizerSettings(Settings):
    """What an arm may have for itself; tokens, their order and their number are shared."""

    learning_rate: PositiveReal = 1e-3
    """Peak learning rate."""
    learning_rates: dict[Regex, PositiveReal] = Field(default_factory=dict)
    """Multipliers for groups of parameters: regular expressions searched for in their names, of
    which the first that is found counts; given up where they take longer than five seconds."""
    min_learning_rate_ratio: Fraction = 0.1
    """Learning rate at the end, as a fraction of the peak (cosine and wsd)."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: cosine decay, a plateau and a linear decay, or constant."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises linearly from zero."""
    decay_fraction: Fraction = 0.2
    """wsd: share of the steps, at the end, in which the learning rate falls."""
    optimizer: Literal["adamw", "adamw-bf16", "adamw-8bit", "muon"] = "adamw"
    """AdamW; the same with moments in bfloat16 or in eight bits (needs torchao), which take 4 or 2
    bytes a parameter in place of 8, and the same learning rate; or Muon (momentum 0.95, steps
    scaled to the size of AdamW's; twice to four times AdamW's best rate was best in our studies)
    for the matrices inside the layers, and AdamW for the rest."""
    weight_decay: NonNegativeReal = 0.1
    """Decoupled weight decay, on matrices only."""
    betas: Annotated[
        list[Annotated[Real, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)
    ] = Field(default_factory=lambda: [0.9, 0.99])
    """AdamW's two averaging coefficients."""
    eps: PositiveReal = 1e-8
    """AdamW's epsilon."""
    clip: NonNegativeReal = 1.0
    """Largest global gradient norm; 0 switches clipping off."""

    @property
    def has_low_bit_moments(self) -> bool:
        """Whether the optimiser is torchao's, whose step is compiled."""
        return self.optimizer in ("adamw-bf16", "adamw-8bit")

    @property
    def moment_bytes(self) -> int:
        """That the optimiser keeps of a parameter: two moments; Muon's one is not told apart, nor
        are the 1/32 byte of scales that moments in eight bits have."""
        return {"adamw-bf16": 4, "adamw-8bit": 2}.get(self.optimizer, 8)


class Spikes(Settings):
    """Skip batches whose loss or gradient norm is an outlier among those of recent steps."""

    deviations: PositiveReal = 6.0
    """Standard deviations above the recent mean from which a batch is skipped (OLMo 2 has 6)."""
    window: Annotated[Rows, Field(ge=2)] = 128
    """Recent steps; nothing is skipped before there are half as many."""


class Training(OptimizerSettings):
    """The run that every arm goes through."""

    steps: PositiveCount | None = None
    """Optimiser steps; either this or ``tokens``."""
    tokens: PositiveCount | None = None
    """Tokens to train on; either this or ``steps``."""
    sequence_length: Annotated[Length, Field(ge=2)] = 256
    """Tokens of a training sequence."""
    batch_size: Rows = 16
    """Sequences per optimiser step."""
    micro_batch_size: Rows | None = None
    """Sequences per forward pass, a divisor of ``batch_size``; gradients are accumulated."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type; auto takes bf16 where the device has it and fp32 elsewhere."""
    frozen_precision: Literal["fp32", "bf16"] = "fp32"
    """What matrices that never train are held in. Where ``precision`` is bf16 they are multiplied
    in bf16 either way: holding them so halves their memory and changes no figure."""
    activation_checkpointing: Recomputed = "none"
    """Layers whose activations are recomputed in the backward pass: none, all (``full``: much less
    memory, about a third more time), or every n-th (``2``: about half of both)."""
    compile: bool = False
    """Train with layers that torch.compile has compiled."""
    cuda_graph: bool = False
    """Launch a forward and backward pass at once, captured in a CUDA graph: several times as fast
    where a GPU waits for its host, which models below a billion parameters make it do. Best with
    ``compile``. For one process, without a teacher, stages, float16 or recomputed activations."""
    log_every: PositiveCount = 10
    """Steps between two lines of metrics.jsonl."""
    validate_every: Count = 0
    """Steps between two validations; 0 validates at the end only."""
    checkpoint_every: Count = 0
    """Steps between two checkpoints; 0 writes one when stopped and one at the end."""
    keep_checkpoints: PositiveCount = 2
    """Newest checkpoints that are kept."""
    keep_best: bool = False
    """Write a checkpoint whenever validation is the best so far, and keep it beside the newest."""
    keep_every: Count = 0
    """Steps between two checkpoints that are kept for good; 0 keeps none."""
    async_checkpoints: bool = False
    """Train on while a checkpoint is written; costs the memory of a copy of what it holds."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A batch whose loss or gradient is NaN or infinite stops the run, or is passed over: it moves
    nothing and is recorded."""
    spikes: Spikes | None = None
    """Pass over batches of outlying loss or gradient norm too; ``{}`` takes the usual bounds."""
    skip_limit: PositiveCount = 10
    """Skipped batches in a row after which the run stops."""
    num_threads: Threads | None = None
    """CPU threads of torch; default torch's own choice."""

    @property
    def recomputed_every(self) -> int:
        """Of that many layers the activations of one are recomputed; 0: of none."""
        value = self.activation_checkpointing
        return {"none": 0, "full": 1}[value] if isinstance(value, str) else value

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step sees."""
        return self.sequence_length * self.batch_size

    @property
    def total_steps(self) -> int:
        """``steps``, or the steps that ``tokens`` take, rounded up."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.tokens or 0) / self.tokens_per_step)

    @property
    def total_tokens(self) -> int:
        """Tokens that the whole run sees."""
        return self.total_steps * self.tokens_per_step


class EndEvaluation(Settings):
    """What is measured once an arm is trained."""

    length_multiples: Annotated[list[Rows], Field(min_length=1)] = Field(
        default_factory=lambda: [1, 2, 4, 8]
    )
    """Synthetic tasks are scored at these multiples of the training length."""
    examples: PositiveCount = 512
    """Synthetic examples per task and length."""
    batch_size: Rows | None = None
    """Sequences per forward pass; default the training's."""
    max_batches: PositiveCount | None = None
    """Text: at most this many batches of validation text; default all of it."""
