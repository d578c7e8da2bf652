"""Small WuNeng models in many configurations, with every parameter made to matter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from tests.precision import Result, rounded_again, worst
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.convert.rwkv7 import RWKV7_WIRING
from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.ops import using
from wuneng.recipe.model import PAPER_WIRING

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_state_heads": 2,
    "decay_rank": 4,
    "rate_rank": 4,
    "value_rank": 4,
    "gate_rank": 4,
    "snapshot_every": 16,
    "output_init": "normal",  # from zero, what is computed before would not show in the logits
    # With middle heads, which most of what is tested here is about; "today" is without.
    **{name: value for name, value in MIDDLE_WIRING.items() if name != "state_gate_sigmoid"},
}

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "today": {
        "cross_head": "none",
        "state_key_source": "own",
        "state_a_max": 2.0,
        "state_output_gate": None,
        "attention_token_shift": None,
    },
    "concat": {"cross_head": "concat"},
    "additive": {"cross_head": "additive"},
    "no-middle": {"cross_head": "none"},
    "more-state-than-attention": {"num_attention_heads": 2, "head_dim": 8, "num_state_heads": 4},
    "more-state-additive": {
        "num_attention_heads": 2,
        "head_dim": 8,
        "num_state_heads": 4,
        "cross_head": "additive",
    },
    "gqa": {"num_key_value_heads": 1},
    "gqa-qk-norm-bias": {"num_key_value_heads": 2, "qk_norm": True, "attention_bias": True},
    "own-key-value": {"state_key_source": "own", "state_value_source": "own"},
    "own-key": {"state_key_source": "own"},
    "own-key-other-size": {
        "state_key_source": "own",
        "state_value_source": "own",
        "state_head_dim": 12,
        "cross_head": "none",
    },
    "value-from-output": {"state_value_source": "attention_output"},
    "own-removal-key": {"state_removal_key": "own"},
    "no-shift": {"token_shift": "none"},
    "shift-on-k": {"token_shift_on": "k"},
    "pre-shift": {"token_shift": "pre"},
    "pre-shift-own": {
        "token_shift": "pre",
        "state_key_source": "own",
        "state_value_source": "own",
        "state_output_gate": True,
        "state_gate_sigmoid": "hidden",
        "state_value_residual": True,
    },
    "a-max-2": {"state_a_max": 2.0},
    "gate-and-value-residual": {
        "state_output_gate": True,
        "state_gate_sigmoid": "hidden",
        "state_value_residual": True,
    },
    "gate-of-two-matrices": {"state_output_gate": True, "state_gate_sigmoid": "output"},
    "no-bonus-no-norm-scalar": {
        "state_bonus": False,
        "state_norm": "none",
        "state_output_scale": "scalar",
    },
    "snapshots": {"snapshots": 2},
    "sliding": {"sliding_window": 6},
    "sliding-second-layer": {"sliding_window": 6, "sliding_window_layers": [1]},
    "post-norm-multipliers": {
        "norm": "rmsnorm_wide",
        "norm_placement": "post",
        "qk_norm": True,
        "qk_norm_over": "width",
        "rope_float32": True,
        "rope_layers": [0],
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
        "logits_scaling": 0.7,
    },
    "four-norms-soft-caps": {
        "norm": "rmsnorm_plus_one",
        "norm_placement": "both",
        "scaled_embedding": True,
        "attention_softcap": 3.0,
        "logit_softcap": 4.0,
        "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "sliding_window": 6,
        "sliding_window_layers": [1],
        "sliding_rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "state-in-second-layer": {"state_layers": [1]},
    "mlp-layernorm-untied": {"ffn": "mlp", "norm": "layernorm", "tie_word_embeddings": False},
    "rwkv-ffn": {"ffn": "rwkv7", "embedding_norm": True},
    "mlp-bias": {"mlp_bias": True},
    "mha": {"num_state_heads": 0},
    "mha-shift": {"num_state_heads": 0, "attention_token_shift": True},
    "mha-gate": {
        "attention_output_gate": True,
        "num_state_heads": 0,
        "num_key_value_heads": 2,
    },
    "pure-state": {
        "num_attention_heads": 0,
        "state_head_dim": 8,
        "num_state_heads": 4,
        "state_key_source": "own",
        "state_value_source": "own",
    },
    "pure-rwkv7": {
        **RWKV7_WIRING,
        "state_head_dim": 8,
        "num_state_heads": 4,
        "embedding_norm": True,
        "snapshots": 1,
    },
    "paper": PAPER_WIRING,
}


#: State heads of the other kinds and short convolutions, which pass code of their own.
OTHER_KINDS: dict[str, dict[str, Any]] = {
    "kda": {
        "state_kind": "kda",
        "state_output_gate": True,
        "token_shift": "none",
        "state_short_conv": 4,
    },
    "gated-delta": {"state_kind": "gated_delta", "state_output_gate": True},
    "short-conv": {"state_short_conv": 3, "attention_short_conv": 2, "token_shift": "none"},
}


def small_model(variant: str = "default", **overrides: Any) -> WuNengForCausalLM:
    """A small model of the named variant; zero-initialised parameters are shaken awake."""
    torch.manual_seed(0)
    config = WuNengConfig(**(BASE | (VARIANTS | OTHER_KINDS)[variant] | overrides))
    return disturbed(WuNengForCausalLM(config).eval())


def disturbed(model: WuNengForCausalLM) -> WuNengForCausalLM:
    """The model itself, with every parameter away from its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def in_pieces(
    model: WuNengForCausalLM,
    ids: torch.Tensor,
    lengths: list[int],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of ``ids`` ``[B, T]``, fed in pieces of these lengths through the cache; ``mask``
    ``[B, T]`` is zero at pads."""
    cache, parts, end = None, [], 0
    with torch.no_grad():
        for part in ids.split(lengths, 1):
            end += part.shape[1]
            so_far = None if mask is None else mask[:, :end]
            out = model(part, attention_mask=so_far, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    return torch.cat(parts, 1)


def plainly(model: Any, run: Callable[[Any], Result]) -> tuple[Result, Result]:
    """What ``run`` makes of a model by the plain formulas: the reference and the oracle of
    ``tests.precision``.

    The reference is float32, once with the model's weights and twice with each of them rounded
    again in float32, whichever loses most of a tensor; the oracle is a twin in float64.
    """
    others = [copy.deepcopy(model) for _ in range(2)]
    with torch.no_grad():
        for seed, other in enumerate(others):
            for number, parameter in enumerate(other.parameters()):
                parameter.copy_(rounded_again(parameter, torch.float32, 1000 * seed + number))
    with using("reference"):
        exact = run(copy.deepcopy(model).double())
        return worst([run(x) for x in (model, *others)], exact), exact
