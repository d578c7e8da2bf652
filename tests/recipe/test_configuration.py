"""The architecture is written down twice, for recipes (``ModelSettings``, light, with messages for
people) and for models (``WuNengConfig``, saved beside weights): field by field they say the same.

Values are made from the recipe's own declarations: a new field is compared without a change here.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import StringConstraints, ValidationError
from pydantic.fields import FieldInfo

from wuneng.convert.families import OWN_WIRING, WIRING
from wuneng.model import WuNengConfig, from_settings
from wuneng.recipe import ModelSettings
from wuneng.recipe.arms import resolve_model
from wuneng.recipe.consistency import model_problems

#: Fields of a recipe that a configuration spells otherwise or has no use for, and why.
ONLY_IN_RECIPES = {
    "preset": "stands for other fields",
    "rope_theta": "part of rope_parameters",
    "rope_scaling": "part of rope_parameters",
}
#: Fields of a configuration that no recipe sets, and why.
ONLY_IN_MODELS = {
    "rope_parameters": "rope_theta and rope_scaling",
    "use_cache": "of generation",
    "pad_token_id": "the tokenizer's",
    "bos_token_id": "the tokenizer's",
    "eos_token_id": "the tokenizer's",
    "state_norm_eps": "RWKV-7's constant, which some checkpoints have otherwise",
    **{
        name: "of a family of checkpoints; a recipe that starts from one keeps it"
        for name in (*WIRING, *OWN_WIRING)
        if name != "norm"
    },
}
#: Of transformers, and none that recipes offer.
OTHER_ACTIVATION = "gelu_fast"
#: The same fields under other circumstances: rules that tie fields together see all of these.
CONTEXTS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "more state heads": {"num_attention_heads": 2, "num_state_heads": 4, "head_dim": 64},
    "attention alone": {"num_state_heads": 0},
    "state heads alone": {
        "num_attention_heads": 0,
        "state_key_source": "own",
        "state_value_source": "own",
    },
    "windows": {"sliding_window": 8, "sliding_window_layers": [1]},
    "no middle heads": {"cross_head": "none", "state_head_dim": 32},
}
FIELDS = [name for name in ModelSettings.model_fields if name not in ONLY_IN_RECIPES]


def shared_fields() -> set[str]:
    return {n for n in WuNengConfig.__annotations__ if n in ModelSettings.model_fields}


def candidates(name: str) -> list[Any]:
    """Values at and beyond the edges of what a field may be, and of other types."""
    field = ModelSettings.model_fields[name]
    found = [None, True, 3, 2.5, -1, "no such choice", [0], ["no such choice"], {}, {"no such": 1}]
    found += [field.get_default(call_default_factory=True), math.nan, math.inf, -math.inf]
    found += _of_type(field.annotation, field)
    return [value for n, value in enumerate(found) if not any(_same(value, v) for v in found[:n])]


def _of_type(declared: Any, field: FieldInfo | None = None) -> Iterator[Any]:
    metadata = list(field.metadata) if field else []
    if get_origin(declared) is Annotated:
        declared, *more = get_args(declared)
        metadata += [one for m in more for one in (m.metadata if isinstance(m, FieldInfo) else [m])]
    if get_origin(declared) in (Union, types.UnionType):
        for member in get_args(declared):
            yield from _of_type(member)
    elif get_origin(declared) is Literal:
        yield from get_args(declared)
    elif get_origin(declared) is list:
        for value in [*_of_type(get_args(declared)[0]), 0, 1, 5, 6]:
            yield from ([value], [value, value])
        yield []
    elif declared is bool:
        yield from (True, False, 0, 1, "true")
    elif declared is str:
        yield from _texts(metadata)
    elif declared in (int, float):
        yield from _numbers(declared, metadata)


def _numbers(kind: type, metadata: list[Any]) -> Iterator[Any]:
    step = 1 if kind is int else 1e-6
    edges = [
        getattr(one, bound)
        for one in metadata
        for bound in ("ge", "gt", "le", "lt")
        if getattr(one, bound, None) is not None
    ]
    for edge in edges:
        yield from (edge - step, kind(edge), edge + step)
    numbers = (0, 1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 48, 62, 64, 100, 2**62, -(2**62), 2**63)
    yield from (kind(n) for n in numbers)
    if kind is float:
        yield from (1e-30, 0.5, 1.5, 1e300)


def _texts(metadata: list[Any]) -> Iterator[str]:
    yield from ("", " ", "\0")
    for one in metadata:
        pattern = one.pattern if isinstance(one, StringConstraints) else None
        letters = [c for c in str(pattern or "") if c.isalpha()]
        yield from (*letters, "".join(letters), *(c * 2 for c in letters), "".join(letters) + "x")


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)


def spelled_otherwise(name: str, value: Any, context: dict[str, Any]) -> str | None:
    """Why a recipe and a configuration may say different things of one value."""
    attention = context.get("num_attention_heads", 1)
    if name == "vocab_size" and value is None:
        return "the data decides how many token ids a recipe needs; a model has so many"
    if name == "num_key_value_heads" and value == 0 and not attention:
        return "a recipe leaves out what a model without attention heads has none of"
    if name == "state_options" and value:
        return "a kind's own settings are known to its class, which the plan of a run asks"
    if name == "cross_head" and not (attention and context.get("num_state_heads", 1)):
        return "a model with one kind of heads has no middle heads, whatever a file says of them"
    if name == "state_options" and value:
        return "what settings a kind has is written in its file, which a recipe does not import"
    if name == "state_a_max" and isinstance(value, float | int) and 1 < value < 2:
        return "a checkpoint may have been made with any rate in between; a recipe takes either end"
    if name in ("initializer_range", "rms_norm_eps") and value == 0:
        return "a checkpoint may say zero, with which nothing should be trained anew"
    if name == "hidden_act" and value == OTHER_ACTIVATION:
        return "a converted model keeps whatever activation transformers knows"
    return None


def recipe_refusal(values: dict[str, Any]) -> str | None:
    """What a recipe says against ``model:`` with these values; None: nothing."""
    try:
        settings = resolve_model({}, values)
    except ValidationError as error:
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    found = [f"{'.'.join(map(str, path))}: {text}" for path, text in model_problems(settings)]
    return "; ".join(found) or None


def model_refusal(values: dict[str, Any]) -> str | None:
    """What the configuration says; anything but ValueError is a fault."""
    try:
        WuNengConfig(**values)
    except ValueError as error:
        return str(error)
    return None


def test_every_field_is_in_both_or_has_a_reason() -> None:
    own = {n for n in WuNengConfig.__annotations__ if not n.startswith(("model_type", "keys_to"))}
    assert set(ModelSettings.model_fields) - own == set(ONLY_IN_RECIPES)
    assert own - set(ModelSettings.model_fields) == set(ONLY_IN_MODELS)
    assert shared_fields() == set(FIELDS)


def test_defaults_are_the_same() -> None:
    """What a recipe leaves out is what a configuration leaves out, and what it fills in."""
    vocabulary = {"vocab_size": 300}
    built = from_settings(ModelSettings(), 300).to_dict()
    assert WuNengConfig(**vocabulary).to_dict() | {"rope_parameters": None} == built | {
        "rope_parameters": None
    }
    for name in sorted(shared_fields() - {"vocab_size"}):  # of which the data decides
        declared = ModelSettings.model_fields[name].get_default(call_default_factory=True)
        assert getattr(WuNengConfig, name) == declared, name


@pytest.mark.parametrize("name", FIELDS)
def test_what_one_refuses_the_other_does(name: str) -> None:
    wrong = []
    for label, context in CONTEXTS.items():
        for value in candidates(name):
            if spelled_otherwise(name, value, context):
                continue
            values = {**context, name: value}
            recipe, model = recipe_refusal(values), model_refusal(values)
            if (recipe is None) != (model is None):
                wrong.append(f"{label}: {value!r}: recipe {recipe!r}, model {model!r}")
            if recipe_refusal(context) is None:
                refusals = [text for text in (recipe, model) if text is not None]
                wrong += [
                    f"{label}: {value!r}: {name} is not named in {text!r}"
                    for text in refusals
                    if not any(field in text for field in values)
                ]
    assert not wrong, "\n".join(wrong)


def test_a_converted_model_keeps_its_activation() -> None:
    assert model_refusal({"hidden_act": OTHER_ACTIVATION}) is None
    assert "hidden_act" in (recipe_refusal({"hidden_act": OTHER_ACTIVATION}) or "")
    assert "Did you mean 'gelu_fast'" in (model_refusal({"hidden_act": "gelu_fats"}) or "")


def test_settings_that_a_kind_does_not_have_are_refused_when_the_run_is_planned() -> None:
    settings = ModelSettings(state_options={"no such": 1})
    with pytest.raises(ValueError, match="state_options: rwkv7 has no setting 'no such'"):
        from_settings(settings, 300)


def test_the_comparison_sees_a_rule_that_only_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WuNengConfig, "_check_values", lambda self: None)
    with pytest.raises(AssertionError, match=r"hybrid: 17: recipe .*multiple of 16.*model None"):
        test_what_one_refuses_the_other_does("snapshot_every")


def test_the_base_of_the_rotary_embedding_is_judged_alike() -> None:
    for value in candidates("rope_theta"):
        recipe = recipe_refusal({"rope_theta": value})
        model = model_refusal({"rope_parameters": {"rope_type": "default", "rope_theta": value}})
        assert (recipe is None) == (model is None), (value, recipe, model)
        assert all("rope_theta" in text for text in (recipe, model) if text is not None)
