"""AdamW with RWKV-7's parameter groups, and how the state of any optimiser is saved by name.

As RWKV-LM trains RWKV-7: weight decay on matrices only; the decay's base ``w0`` learns at twice
the learning rate, without weight decay; Adam's betas are (0.9, 0.99). Which parameter belongs
where is known by the model's room (``wuneng.model.parameter_groups``); attention-only arms have
no ``w0`` and so get the usual two groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.distributed.whole import cut_like
from wuneng.errors import CheckpointError
from wuneng.model.parameter_groups import groups_of
from wuneng.recipe import Training
from wuneng.train.low_bit import SCALE, low_bit_adamw, put_together, taken_apart
from wuneng.train.muon import HIDDEN, MuonAndAdamW, is_hidden_matrix
from wuneng.train.name_patterns import names_found

__all__ = [
    "GROUPS",
    "Group",
    "build_optimizer",
    "load_named_state",
    "named_state",
    "owner",
    "set_learning_rate",
]


@dataclass(frozen=True)
class Group:
    """How one kind of parameter is updated, relative to the recipe's numbers."""

    learning_rate_scale: float
    decays: bool


GROUPS: dict[str, Group] = {
    "decay": Group(learning_rate_scale=1.0, decays=True),
    "no_decay": Group(learning_rate_scale=1.0, decays=False),
    "double_lr": Group(learning_rate_scale=2.0, decays=False),
    HIDDEN: Group(learning_rate_scale=1.0, decays=True),
}


def build_optimizer(
    model: nn.Module,
    training: Training,
    kinds: Mapping[str, str] | None = None,
) -> torch.optim.Optimizer:
    """AdamW, or what ``training.optimizer`` says, over the trainable parameters of ``model``: one
    group per kind in ``GROUPS``, and per multiplier where ``training.learning_rates`` gives some.

    ``kinds`` names the kind of every parameter; the default is the model room's rule. Groups
    carry ``kind`` and ``learning_rate_scale`` beside AdamW's own keys.
    """
    kinds = groups_of(model) if kinds is None else kinds
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    scales = _multipliers(trained, training)
    members: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        kind = kinds[name]
        by_muon = training.optimizer == "muon" and kind == "decay"
        if by_muon and is_hidden_matrix(name, parameter):
            kind = HIDDEN
        members.setdefault((kind, scales.get(name, 1.0)), []).append(parameter)
    order = list(GROUPS)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": training.weight_decay if GROUPS[kind].decays else 0.0,
            "kind": kind,
            "learning_rate_scale": GROUPS[kind].learning_rate_scale * multiplier,
        }
        for (kind, multiplier), parameters in sorted(
            members.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
        )
    ]
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    # The fused kernel is element-wise (bit-deterministic at a fixed number of threads) and, for
    # models as small as the shipped recipes', several times faster than one op after another.
    options: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": (training.betas[0], training.betas[1]),
        "eps": training.eps,
        "fused": devices <= {"cpu", "cuda"},
    }
    if training.optimizer == "muon":
        return MuonAndAdamW(groups, options)
    if training.has_low_bit_moments:
        return low_bit_adamw(groups, options, training.optimizer)
    return torch.optim.AdamW(groups, **options)


def _multipliers(names: Iterable[str], training: Training) -> dict[str, float]:
    """By parameter's name, that of the first regular expression found in it; the rest has none."""
    found = names_found(training.learning_rates, names, "training.learning_rates")
    scales: dict[str, float] = {}
    for pattern, scale in training.learning_rates.items():
        scales = dict.fromkeys(found[pattern], scale) | scales
    return scales


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group ``learning_rate`` times its own scale."""
    for group in optimizer.param_groups:
        rate = learning_rate * group["learning_rate_scale"]
        if isinstance(group["lr"], Tensor):  # what is compiled reads it there
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors as ``<quantity>/<parameter name>``, ready for safetensors.

    Names instead of AdamW's own running indices: a file that was written for another model is then
    recognised instead of being poured into the wrong parameters.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for quantity, value in optimizer.state.get(parameter, {}).items():
            for part, tensor in taken_apart(value).items():
                tensors[f"{quantity}{part}/{name}"] = tensor.detach().contiguous()
    return tensors


def load_named_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put back what ``named_state`` returned.

    Raises:
        CheckpointError: a tensor belongs to no parameter of ``model``, or has another shape.
    """
    by_parameter: dict[nn.Parameter, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter = owner(model, key, value.shape)
        if value.shape == parameter.shape:
            value = cut_like(value, parameter)
        by_parameter.setdefault(parameter, {})[key.partition("/")[0]] = value
    state = optimizer.state_dict()
    loaded: dict[int, dict[str, Any]] = {}
    for group, indexed in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, index in zip(group["params"], indexed["params"], strict=True):
            if parameter in by_parameter:
                loaded[index] = put_together(optimizer, parameter, by_parameter[parameter])
    optimizer.load_state_dict({"state": loaded, "param_groups": state["param_groups"]})


def owner(model: nn.Module, key: str, shape: torch.Size) -> nn.Parameter:
    """The parameter whose state ``key`` of ``named_state``, of that shape, is.

    Raises:
        CheckpointError: ``model`` has none, or one of another shape.
    """
    quantity, _, name = key.partition("/")
    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        parameter = None
    of_all = bool(shape) and not quantity.endswith(f".{SCALE}")
    if parameter is None or (of_all and shape != parameter.shape):
        raise CheckpointError(f"the optimiser state {key!r} does not fit this model")
    return parameter
