"""The peak of a training step's memory, counted: where what it holds weighs most together.

    weights + moments + the largest of
        forward's end      activations of every layer, logits
        layer l backward   activations up to l, gradients from l on, what the products work on
        the update         gradients of all that trains

Gradients of earlier micro-batches lie there from the start. What is neither a tensor nor counted
here (the interpreter, libraries, allocators' reserves) comes on top.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from wuneng.model import WuNengConfig
from wuneng.model.activations import (
    Trains,
    backward_numbers,
    kept_by_branch,
    kept_by_layer,
)
from wuneng.model.counting import total_parameters
from wuneng.model.skeleton import layout
from wuneng.ops.linear_cross_entropy import WHOLE_BYTES, chunks
from wuneng.train.lora import is_adapter
from wuneng.train.phases import Phase
from wuneng.train.plan import ArmPlan

__all__ = ["logit_bytes", "logits_of", "most_activations", "phase_memory"]

_FLOAT = 4
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_BRANCH = re.compile(r"model\.layers\.\d+\.(state_heads\.|cross_head\.|self_attn\.shift_)")


def phase_memory(arm: ArmPlan, phase: Phase, device: str, activation_bytes: int) -> dict[str, int]:
    """Bytes at the peak of one of the arm's phases, by what they hold; their sum is the peak.

    Args:
        device: ``cpu`` or another, whose chunks of logits are larger.
        activation_bytes: of a number that autograd keeps: 4, or 2 in half precision.
    """
    training = phase.training
    tokens = _tokens(phase)
    several = (training.micro_batch_size or training.batch_size) < training.batch_size
    trainable = sum(phase.trainable.values())
    weights = arm.facts.parameters + (total_parameters(arm.teacher.config) if arm.teacher else 0)
    gradients, activations = max(
        _moments(arm, phase, tokens, device, activation_bytes, several=several),
        key=sum,
    )
    lowered = 0
    if training.frozen_precision == "bf16":
        lowered = _never_trained(arm)
    return {
        "weights": _FLOAT * weights - 2 * lowered,
        "gradients": gradients,
        "optimizer": training.moment_bytes * trainable,
        "activations": activations,
    }


def _never_trained(arm: ArmPlan) -> int:
    """Numbers in matrices that no phase trains, those of a tied head aside."""
    built = layout(arm.config)
    return sum(
        built.parameters[f"{name}.weight"].numel()
        for name in built.linears
        if f"{name}.weight" in built.parameters
        and f"{name}.weight" not in arm.trainable
        and f"{name}.base_layer.weight" not in arm.trainable
    )


def logit_bytes(
    vocab_size: int, tokens: int, device: str, *, distilled: bool, head: int = 0
) -> int:
    """Of logits at work over ``tokens``: whole ones, their normalised copy and its gradient; or one
    chunk, whose gradient takes its place. With a teacher seven such, whole or chunks. ``head``:
    numbers of the head's own gradient, which chunks add up as they go."""
    whole = _FLOAT * tokens * vocab_size
    if whole <= WHOLE_BYTES:
        return (7 if distilled else 3) * whole
    copies = 7 if distilled else 1
    part = next(iter(chunks(vocab_size, tokens, torch.device(device.partition(":")[0]))))
    return copies * _FLOAT * (part.stop - part.start) * vocab_size + _FLOAT * head


def logits_of(arm: ArmPlan, phase: Phase, device: str) -> int:
    """Bytes of logits that one of the arm's phases has at work."""
    config = arm.config
    if phase.kind == "align":
        return 0
    outside = sum(size for name, size in phase.trainable.items() if not _LAYER.match(name))
    head = config.vocab_size * config.hidden_size
    return logit_bytes(
        *(config.vocab_size, _tokens(phase), device),
        distilled=_distilled(arm, phase),
        head=head if outside >= head else 0,
    )


def most_activations(arm: ArmPlan, phase: Phase, device: str, activation_bytes: int) -> int:
    """Bytes of activations and logits where there are most of them, whatever gradients weigh."""
    moments = _moments(arm, phase, _tokens(phase), device, activation_bytes, several=True)
    return max(activations for _, activations in moments)


def _tokens(phase: Phase) -> int:
    training = phase.training
    return (training.micro_batch_size or training.batch_size) * training.sequence_length


def _distilled(arm: ArmPlan, phase: Phase) -> bool:
    return phase.kind == "distill" or arm.teacher is not None


def _moments(
    arm: ArmPlan, phase: Phase, tokens: int, device: str, size: int, *, several: bool
) -> list[tuple[int, int]]:
    """Bytes of gradients and of activations at each moment that may be the peak."""
    config = arm.config
    layers = config.num_hidden_layers
    by_layer = [0] * layers
    outside = 0
    for name, count in phase.trainable.items():
        found = _LAYER.match(name)
        if found:
            by_layer[int(found[1])] += count
        else:
            outside += count
    every = _FLOAT * (outside + sum(by_layer))
    if phase.kind == "align":
        return [(every, _aligned(config, phase, tokens, size)), (every, 0)]
    trains = [_trains(phase.trainable, arm, layer) for layer in range(layers)]
    kept = _kept(config, trains, tokens, size, outside=outside > 0)
    working = int(tokens * size * backward_numbers(config))
    logits = logits_of(arm, phase, device)
    last = 3 if outside else 2  # the final norm's input and output, and what its weight multiplies
    last += _distilled(arm, phase)
    top = tokens * size * last * config.hidden_size
    every_nth, inputs = phase.training.recomputed_every, tokens * size * config.hidden_size
    held = [inputs if every_nth and n % every_nth == 0 else kept[n] for n in range(layers)]
    before = [sum(held[:layer]) + kept[layer] for layer in range(layers)]
    at_end = sum(held)
    moments = [(every if several else 0, at_end + top + logits), (every, 0)]
    for layer in range(layers):
        made = every if several else _FLOAT * sum(by_layer[layer:])
        moments.append((made, before[layer] + working))
    return moments


def _trains(trainable: Mapping[str, int], arm: ArmPlan, layer: int) -> Trains:
    names = [name for name in trainable if name.startswith(f"model.layers.{layer}.")]
    branch = any(_BRANCH.match(name) for name in names)
    ranks = arm.adapters.ranks if arm.adapters is not None else {}
    adapted = sum(
        rank
        for name, rank in ranks.items()
        if name.startswith(f"model.layers.{layer}.")
        and f"{name}.lora_A.default.weight" in trainable
    )
    base = any(not _BRANCH.match(name) and not is_adapter(name) for name in names)
    donor = branch and arm.facts.state == "donor"
    return Trains(base=base, adapters=adapted, branch=branch, donor=donor)


def _kept(
    config: WuNengConfig, trains: list[Trains], tokens: int, size: int, *, outside: bool
) -> list[int]:
    """Bytes that each layer keeps; ``outside``: the embedding trains, so its output has a graph."""
    kept, first = [], not outside
    for layer, of_layer in enumerate(trains):
        anything = of_layer != Trains(base=False)
        if first and not anything:
            kept.append(0)
            continue
        kept.append(int(tokens * size * kept_by_layer(config, layer, of_layer, first=first)))
        first = False
    return kept


def _aligned(config: WuNengConfig, phase: Phase, tokens: int, size: int) -> int:
    """Of branches that are watched: what they keep, their input and their error, of all that learn;
    and what one silent layer works on."""
    D = config.hidden_size
    numbers = sum(kept_by_branch(config, layer) + 2 * D for layer in phase.layers)
    if phase.settings is not None and getattr(phase.settings, "target", "") == "hidden":
        numbers += 2 * D
    working = 4 * (config.intermediate_size or 0) + 3 * D
    return int(tokens * size * (numbers + working))
