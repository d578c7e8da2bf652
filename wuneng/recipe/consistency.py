"""Rules that tie several fields of a recipe together, in one place.

Each rule yields ``(path, message)`` for what it finds wrong; the message says what was expected
and what came.
"""

from __future__ import annotations

from collections.abc import Iterator

from wuneng.layer_pattern import expand_layers, layer_problem
from wuneng.recipe.data import HubDataset, MixturePart, SyntheticData, TextData
from wuneng.recipe.model import ModelSettings
from wuneng.recipe.rope import rope_problems
from wuneng.recipe.source import FieldPath
from wuneng.recipe.training import Training

__all__ = ["Problem", "data_problems", "model_problems", "training_problems"]

Problem = tuple[FieldPath, str]


def model_problems(model: ModelSettings) -> Iterator[Problem]:
    """What contradicts itself in one arm's architecture; paths start at the model's fields."""
    yield from _head_problems(model)
    yield from _state_problems(model)
    yield from _layer_list_problems(model)
    yield from _pattern_problems(model)
    yield from _middle_head_problems(model)
    yield from _rope_problems(model)


def _head_problems(model: ModelSettings) -> Iterator[Problem]:
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    if heads == 0 and model.num_state_heads == 0:
        yield ("num_state_heads",), "expected 1 or more where num_attention_heads is 0, got 0"
    if not heads:
        return
    if groups is not None and heads % groups:
        yield (
            ("num_key_value_heads",),
            f"expected a divisor of num_attention_heads ({heads}), got {groups}",
        )
    if model.head_dim is None and model.hidden_size % heads:
        yield (
            ("num_attention_heads",),
            f"expected a divisor of hidden_size ({model.hidden_size}) where head_dim is left "
            f"out, got {heads}",
        )
    if model.attention_head_size % 2:
        derived = " (hidden_size / num_attention_heads)" if model.head_dim is None else ""
        yield ("head_dim",), f"expected an even size, got {model.attention_head_size}{derived}"


def _state_problems(model: ModelSettings) -> Iterator[Problem]:
    # What these may be does not hang on whether there are state heads: arms take them away.
    if model.state_a_max not in (None, 1.0, 2.0):
        yield ("state_a_max",), f"expected 1.0 or 2.0, got {model.state_a_max}"
    if model.snapshot_every % 16:
        yield ("snapshot_every",), f"expected a multiple of 16, got {model.snapshot_every}"
    if len(set(model.token_shift_on)) < len(model.token_shift_on):
        yield ("token_shift_on",), f"expected each letter once, got {model.token_shift_on!r}"
    if not model.num_state_heads:
        return
    if not model.num_attention_heads:
        for name in ("state_key_source", "state_value_source"):
            value = getattr(model, name)
            if value != "own":
                yield (name,), f"expected own where num_attention_heads is 0, got {value}"
        if model.state_layers is not None:
            yield ("state_layers",), "expected all layers where num_attention_heads is 0"


def _layer_list_problems(model: ModelSettings) -> Iterator[Problem]:
    last = model.num_hidden_layers - 1
    for name in ("state_layers", "sliding_window_layers"):
        outside = [layer for layer in getattr(model, name) or [] if layer > last]
        if outside:
            yield (name,), f"expected layers from 0 to {last}, got {outside[0]}"
    if model.sliding_window_layers is not None and model.sliding_window is None:
        yield ("sliding_window_layers",), "expected sliding_window to be set as well"


def _pattern_problems(model: ModelSettings) -> Iterator[Problem]:
    wrong = layer_problem(
        model.layers,
        model.num_hidden_layers,
        attention_heads=model.num_attention_heads,
        state_heads=model.num_state_heads,
    )
    if wrong is not None:
        yield ("layers",), wrong
    elif model.layers is not None and model.state_layers is not None:
        yield ("layers",), "says the same as state_layers: give one of them"
    elif model.layers is not None:
        kinds = expand_layers(model.layers, model.num_hidden_layers)
        without = [i for i in model.sliding_window_layers or () if kinds[i : i + 1] == ("state",)]
        if without:
            yield ("sliding_window_layers",), f"expected layers with attention, got {without[0]}"
    for name in ("state_short_conv", "attention_short_conv"):
        if getattr(model, name) == 1:
            yield (name,), "expected 0 or 2 and more taps, got 1"


def _middle_head_problems(model: ModelSettings) -> Iterator[Problem]:
    if model.cross_head == "none":
        return
    kinds = expand_layers(model.layers or ["hybrid"], model.num_hidden_layers)
    if "hybrid" not in kinds:
        return  # no layer has both kinds of heads, hence none has middle heads
    heads, states = model.num_attention_heads, model.num_state_heads
    if not heads or not states:
        kind = "num_attention_heads" if not heads else "num_state_heads"
        yield ("cross_head",), f"expected none where {kind} is 0, got {model.cross_head}"
        return
    if model.state_head_size != model.attention_head_size:
        yield (
            ("state_head_dim",),
            f"expected the size of an attention head ({model.attention_head_size}) where "
            f"cross_head is {model.cross_head}, got {model.state_head_size}",
        )
    if heads % states and states % heads:
        yield (
            ("num_state_heads",),
            f"expected a divisor or a multiple of num_attention_heads ({heads}) where cross_head "
            f"is {model.cross_head}, got {states}",
        )


def _rope_problems(model: ModelSettings) -> Iterator[Problem]:
    if model.rope_scaling is not None:
        for text in rope_problems(model.rope_scaling, model.attention_head_size):
            yield ("rope_scaling",), text


def training_problems(training: Training) -> Iterator[Problem]:
    """What contradicts itself in ``training:``; paths start at its fields."""
    if (training.steps is None) == (training.tokens is None):
        given = "neither" if training.steps is None else "both (null takes one of them away)"
        yield (), f"expected either steps or tokens, got {given}"
        return
    micro = training.micro_batch_size
    if micro is not None and training.batch_size % micro:
        yield (
            ("micro_batch_size",),
            f"expected a divisor of batch_size ({training.batch_size}), got {micro}",
        )
    if training.frozen_precision == "bf16" and training.precision in ("fp32", "fp16"):
        yield (
            ("frozen_precision",),
            f"expected fp32 where precision is {training.precision}, got bf16",
        )
    if training.cuda_graph and training.recomputed_every:
        found = training.activation_checkpointing
        yield ("cuda_graph",), f"expected false where activation_checkpointing is {found}, got true"
    if training.cuda_graph and training.precision == "fp16":
        yield ("cuda_graph",), "expected false where precision is fp16, got true"
    if training.keep_best and not training.validate_every:
        yield ("keep_best",), "expected validate_every to be set as well"
    if training.warmup_steps >= training.total_steps:
        yield (
            ("warmup_steps",),
            f"expected fewer than the {training.total_steps} steps of the run, "
            f"got {training.warmup_steps}",
        )


def _mixture_problems(data: TextData) -> Iterator[Problem]:
    """Of parts that are scored and not trained on."""
    aside = [index for index, part in enumerate(data.mixture or ()) if not part.weight]
    if aside and len(aside) == len(data.mixture or ()):
        yield ("train",), "expected a weight above 0, got none: nothing would be trained on"
    elif aside and data.validation is not None:
        yield (
            ("train", aside[0], "weight"),
            "expected a value above 0 where data.validation says what is scored, got 0",
        )


def data_problems(data: TextData | SyntheticData) -> Iterator[Problem]:
    """What contradicts itself in ``data:``; paths start at its fields."""
    if isinstance(data, TextData):
        for name in ("train", "validation") if data.questions else ():
            found = getattr(data, name)
            if isinstance(found, list) and isinstance(found[0], MixturePart):
                yield (name,), "expected .jsonl files where there are questions, got a mixture"
            if isinstance(found, HubDataset):
                yield (name,), "expected .jsonl files where there are questions, got a data set"
        yield from _mixture_problems(data)
        return
    labels: dict[str, int] = {}
    for index, task in enumerate(data.tasks):
        path: FieldPath = ("tasks", index)
        if task.label in labels:
            found = f"got {task.label!r} as tasks.{labels[task.label]} has"
            yield path, f"expected a name of its own, {found}"
        labels.setdefault(task.label, index)
        yield from (((*path, field), text) for field, text in task.contradictions())
