"""A model looked at over one text: a record of plain values."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from wuneng.errors import ModelError
from wuneng.evaluate.loading import LoadedModel
from wuneng.evaluate.not_finite import not_finite_error
from wuneng.inspect.quantities import half_life, in_context_rate, state_path
from wuneng.inspect.recording import LayerRecord, record
from wuneng.inspect.subject import Subject
from wuneng.model.finite import NotFinite

__all__ = ["SCHEMA", "inspect_model"]

SCHEMA = 1
_PLACES = 64  # at which norms and ranks are taken, at most


def inspect_model(loaded: LoadedModel, subject: Subject) -> dict[str, Any]:
    """Everything that :mod:`wuneng.inspect` knows about a model over one text, as plain values.

    Returns:
        ``model``, ``text`` (of a row of parity with its ``ones``, by number of token from 1) and
        ``layers``: for each layer what it has of

        state: ``kind``, ``half_life`` (tokens; shortest, median and longest over a head's channels;
            None: nothing decays), ``rate`` and ``rate_largest`` by head and ``rate_over_time``,
            ``tokens`` with ``norm`` and ``rank`` at them, ``turn`` and ``coordinate`` at every
            token, ``coordinate_share`` and ``flips`` by head;
        middle: ``kind``, ``gate`` by head and ``gate_over_time`` (weight of the state, None without
            a gate), ``share`` by head (None where the kind is no sum);
        attention: ``entropy`` (nats, mean over tokens) by head, ``uniform`` (what it would be if
            evenly spread) and ``entropy_over_time``;

        and under ``missing`` a sentence on what a layer has not. Lists over time are
        ``[tokens][heads]``.

    Raises:
        ModelError: the model is of no class of this package.
        NonFiniteError: its logits are NaN or infinite, and so what it holds says nothing.
    """
    try:
        records = record(loaded.model, subject.tokens)
    except NotFinite as found:
        read = found.read[None].to(loaded.model.device)
        run = partial(loaded.model, read, use_cache=False)
        raise not_finite_error(loaded.model, loaded.label, subject.source, run) from None
    if not records:
        raise ModelError(
            f"{loaded.label}: a {loaded.model.config.model_type} model; expected a wuneng model "
            "(`wuneng convert` makes one of a Llama, Qwen, Mistral or RWKV-7)"
        )
    tokens = len(subject.tokens)
    return {
        "schema": SCHEMA,
        "model": loaded.describe(),
        "text": {
            "source": subject.source,
            "tokens": tokens,
            "spelled": subject.spelled,
            "ones": list(subject.ones),
        },
        "layers": [_layer(one, tokens) for one in records],
    }


def _layer(found: LayerRecord, tokens: int) -> dict[str, Any]:
    missing = []
    layer: dict[str, Any] = {"layer": found.layer}
    if found.inputs:
        layer["state"] = _state(found, _places(tokens))
    elif found.state_kind is None:
        missing.append("no state heads")
    else:
        missing.append(
            f"state heads of kind {found.state_kind} do not run StateHeads.recurrence: nothing is "
            "known of their state"
        )
    if found.middle is not None:
        layer["middle"] = {
            "kind": found.middle.kind,
            "gate": None if found.middle.gate is None else found.middle.gate.mean(0).tolist(),
            "gate_over_time": None if found.middle.gate is None else found.middle.gate.tolist(),
            "share": None if found.middle.share is None else found.middle.share.tolist(),
        }
        if found.middle.gate is None:
            missing.append(f"middle heads of kind {found.middle.kind} have no gate")
        if found.middle.share is None:
            missing.append(f"middle heads of kind {found.middle.kind} are no sum of two terms")
    elif found.state_kind is not None:
        missing.append("no middle heads")
    if found.entropy is not None:
        visible = [min(t + 1, found.window or t + 1) for t in range(tokens)]
        layer["attention"] = {
            "entropy": found.entropy.mean(0).tolist(),
            "uniform": sum(map(math.log, visible)) / tokens,
            "entropy_over_time": found.entropy.tolist(),
        }
    else:
        missing.append("no attention heads")
    return {**layer, "missing": missing}


def _state(found: LayerRecord, places: list[int]) -> dict[str, Any]:
    _, w, *_, b = found.inputs
    times, rate, path = half_life(w), in_context_rate(b), state_path(found.inputs, places)
    return {
        "kind": found.state_kind,
        "half_life": {
            name: [None if math.isinf(one) else one for one in values.tolist()]
            for name, values in times._asdict().items()
        },
        "rate": rate.mean(0).tolist(),
        "rate_largest": rate.amax(0).tolist(),
        "rate_over_time": rate.tolist(),
        "tokens": path.places,
        "norm": path.norm.tolist(),
        "rank": path.rank.tolist(),
        "turn": path.turn.tolist(),
        "coordinate": path.coordinate.tolist(),
        "coordinate_share": path.coordinate_share.tolist(),
        "flips": path.flips.tolist(),
    }


def _places(tokens: int) -> list[int]:
    """From the first token to the last, evenly."""
    return sorted(set(torch.linspace(1, tokens, min(tokens, _PLACES)).round().int().tolist()))
