"""Of every arm, recipe and field: whether a decoded token goes through all layers in one call, and
that the logits are right either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.decoded import counted
from tests.model.small import BASE, disturbed, in_pieces, plainly
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.built_in_arms import BUILT_IN_ARMS
from wuneng.convert.families import OWN_WIRING, WIRING
from wuneng.model import from_settings
from wuneng.ops import native
from wuneng.recipe import load_recipe

pytestmark = pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
#: Bases that arms are made of: the defaults, and what the recipes for text have.
BASES: dict[str, dict[str, Any]] = {
    "default": {},
    "text": {
        "num_attention_heads": 2,
        "head_dim": 16,
        "num_state_heads": 4,
        "cross_head": "none",
        "state_key_source": "own",
        "state_a_max": 2.0,
        "attention_token_shift": True,
    },
}
#: What every field of a configuration makes of a layer, and whether the one call computes it.
FIELDS: dict[str, tuple[dict[str, Any], bool]] = {
    "num_hidden_layers": ({"num_hidden_layers": 3}, True),
    "num_attention_heads": ({"num_attention_heads": 2}, True),
    "num_key_value_heads": ({"num_key_value_heads": 1}, True),
    "head_dim": ({"head_dim": 8}, False),
    "hidden_act": ({"hidden_act": "gelu"}, False),
    "rms_norm_eps": ({"rms_norm_eps": 0.5}, True),
    "rope_parameters": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        False,
    ),
    "attention_bias": ({"attention_bias": True}, True),
    "attention_output_bias": ({"attention_output_bias": True}, True),
    "qk_norm": ({"qk_norm": True}, True),
    "sliding_window": ({"sliding_window": 4}, True),
    "sliding_window_layers": ({"sliding_window": 4, "sliding_window_layers": [1]}, True),
    "attention_token_shift": ({"attention_token_shift": True}, True),
    "attention_short_conv": ({"attention_short_conv": 3}, True),
    "attention_output_gate": ({"attention_output_gate": True}, True),
    "mlp_bias": ({"mlp_bias": True}, True),
    "ffn": ({"ffn": "rwkv7"}, False),
    "embedding_norm": ({"embedding_norm": True}, True),
    "layers": ({"layers": ["state", "attention"]}, True),
    "num_state_heads": ({"num_state_heads": 1}, True),
    "state_kind": ({"state_kind": "kda", "token_shift": "none", "state_output_gate": True}, True),
    "state_options": (
        {"state_kind": "gated_delta", "state_options": {}, "state_output_gate": True},
        True,
    ),
    "state_head_dim": (
        {
            "state_head_dim": 32,
            "cross_head": "none",
            "state_key_source": "own",
            "state_value_source": "own",
        },
        False,
    ),
    "state_layers": ({"state_layers": [1]}, True),
    "state_key_source": ({"state_key_source": "own"}, True),
    "state_value_source": ({"state_value_source": "attention_output"}, False),
    "state_removal_key": ({"state_removal_key": "own"}, False),
    "token_shift": ({"token_shift": "pre"}, True),
    "token_shift_on": ({"token_shift_on": "vr"}, True),
    "state_short_conv": ({"state_short_conv": 3, "token_shift": "none"}, True),
    "state_a_max": ({"state_a_max": 2.0}, True),
    "state_reads": ({"state_reads": 2}, False),
    "state_output_gate": ({"state_output_gate": True}, True),
    "state_gate_sigmoid": ({"state_output_gate": True, "state_gate_sigmoid": "output"}, True),
    "state_value_residual": ({"state_value_residual": True, "token_shift": "none"}, True),
    "state_bonus": ({"state_bonus": False}, True),
    "state_norm": ({"state_norm": "none"}, True),
    "state_norm_eps": ({"state_norm_eps": 0.5}, True),
    "state_output_scale": ({"state_output_scale": "scalar"}, True),
    "cross_head": ({"cross_head": "none"}, True),
    "snapshots": ({"snapshots": 2}, False),
    "snapshot_every": ({"snapshots": 1, "snapshot_every": 32}, False),
}
#: Those that say how wide a layer is, how it starts or is trained, or what is around the layers.
ELSEWHERE = {"vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"}
ELSEWHERE |= {"initializer_range", "output_init", "use_cache", "tie_word_embeddings"}
ELSEWHERE |= {"pad_token_id", "bos_token_id", "eos_token_id", "attention_dropout"}
ELSEWHERE |= {"decay_rank", "rate_rank", "value_rank", "gate_rank", "state_init"}
ELSEWHERE |= {"state_branch_init"}


def _ids(batch: int, tokens: int) -> Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(1))


def _model(config: WuNengConfig) -> WuNengForCausalLM:
    torch.manual_seed(0)
    return disturbed(WuNengForCausalLM(config).eval())


def _decoded(model: Any) -> Tensor:
    return in_pieces(model, _ids(3, 9), [4, *[1] * 5])


def _check(model: Any, served: bool) -> None:
    with counted() as taken:
        found = _decoded(model)
    assert taken == [False, *[served] * 5]
    assert_as_exact(found, *plainly(model, _decoded), floor=CHUNKED_FLOOR)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("arm", BUILT_IN_ARMS)
def test_every_built_in_arm(arm: str, base: str) -> None:
    layers = 4 if arm == "interleaved" else 2
    fields = {"hidden_size": 64, "num_hidden_layers": layers}
    config = WuNengConfig(**(BASE | fields | BASES[base]))
    _check(_model(config.changed(BUILT_IN_ARMS[arm].changes(config))), True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_arm_of_the_shipped_recipes(path: Path) -> None:
    """As they are wired, of a small width; where they ask for snapshots, the modules run."""
    recipe = load_recipe(path)
    small = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    small |= {"state_head_dim": 16, "value_rank": 4, "gate_rank": 4, "layers": None}
    small |= {"decay_rank": 4, "rate_rank": 4, "max_position_embeddings": 64}
    small |= {"num_key_value_heads": None} if recipe.model.num_key_value_heads is None else {}
    for name in recipe.arms:
        config = from_settings(recipe.arm_model(name), 61).changed(small | {"vocab_size": 61})
        model = _model(config)
        with counted() as taken:
            _decoded(model)
        assert taken == [False, *[not config.snapshots] * 5], name


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_computed_or_left(field: str) -> None:
    changes, served = FIELDS[field]
    _check(_model(WuNengConfig(**(BASE | {"hidden_size": 64} | changes))), served)


def test_no_field_is_forgotten() -> None:
    """One that is in no table is one that nobody asked the one call about; those of families of
    checkpoints are asked in ``test_decoded_token.py``."""
    assert set(WuNengConfig.__annotations__) - {"model_type", "keys_to_ignore_at_inference"} == (
        set(FIELDS) | ELSEWHERE | set(WIRING) | set(OWN_WIRING)
    )
