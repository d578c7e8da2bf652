"""The weights an arm begins with: drawn from its seed, or those of the model in ``init_from``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Protocol

import torch

from wuneng.errors import InputError, ModelError, RecipeError, shortened
from wuneng.model import WuNengConfig
from wuneng.recipe import ModelSettings
from wuneng.records import find_model, read_json, verify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from wuneng.model import WuNengForCausalLM

__all__ = [
    "PLAIN",
    "OwnModels",
    "Sources",
    "check_agreement",
    "load_start",
    "source_tokenizer",
    "starting_config",
]


#: For models that are loaded without adding heads to them.
PLAIN = ModelSettings.model_validate({"num_state_heads": 0, "cross_head": "none"})


class Sources(Protocol):
    """Finds what ``init_from`` and ``distill.teacher`` name, as a WuNeng.

    ``wuneng.convert.upgrade.ConvertedSources`` converts Transformers; ``OwnModels`` does not.
    """

    def config(self, source: str, model: ModelSettings) -> WuNengConfig:
        """The architecture of ``source`` with the state and middle heads of ``model``."""
        ...

    def directory(
        self,
        source: str,
        model: ModelSettings,
        destination: Path,
        seed: int,
        note: Callable[[str], None],
    ) -> Path:
        """A WuNeng directory of that architecture, made at ``destination`` where need be."""
        ...

    def converts(self, source: str, model: ModelSettings) -> bool:
        """Whether ``directory`` makes one."""
        ...


class OwnModels:
    """Sources that are WuNeng models already."""

    def config(self, source: str, model: ModelSettings) -> WuNengConfig:
        """The model's own configuration. ModelError when it is not a WuNeng."""
        path = find_model(source)
        stored = read_json(path / "config.json")
        kind = stored.get("model_type") if isinstance(stored, dict) else None
        if kind != "wuneng":
            raise ModelError(
                f"init_from: {source} is a {kind}; `wuneng train` converts it on the way, "
                f"or do it first: wuneng convert {quote(source)} DIRECTORY"
            )
        _refuse_quantised(source, stored)
        try:
            return WuNengConfig.from_dict(stored)
        except Exception as error:  # configuration classes raise whatever a bad value leads to
            raise ModelError(f"{path / 'config.json'}: not usable: {error}") from error

    def directory(
        self,
        source: str,
        model: ModelSettings,
        destination: Path,
        seed: int,
        note: Callable[[str], None],
    ) -> Path:
        """The model's own directory."""
        return find_model(source)

    def converts(self, source: str, model: ModelSettings) -> bool:
        """Never."""
        return False


def _refuse_quantised(source: str, stored: Mapping[str, Any]) -> None:
    quantised = stored.get("quantization_config")
    if quantised is None:
        return
    way = quantised.get("quant_method") if isinstance(quantised, dict) else None
    raise ModelError(
        f"init_from: {source} holds quantised weights (quantization_config: "
        f"{shortened(str(way or 'of no named method'))}), and a run trains floating-point ones. "
        "Start from the model that it was made of; training.frozen_precision: bf16 keeps what is "
        "frozen small"
    )


def starting_config(
    arm: str,
    source: str,
    settings: ModelSettings,
    sources: Sources,
    *,
    vocab_size: int,
    sequence_length: int,
) -> WuNengConfig:
    """The configuration of an arm that starts from ``source``.

    Args:
        settings: the arm's ``model:``.
        vocab_size: token ids that the data needs.

    Raises:
        ModelError: no usable model is there.
        RecipeError: fields of ``model:`` contradict it, or the data does not fit it.
    """
    try:
        config = sources.config(source, settings)
    except ModelError:
        raise
    except InputError as error:
        raise RecipeError(f"arms.{arm}: {error}") from error
    check_agreement(settings, config, source, arm)
    if config.vocab_size < vocab_size:
        raise RecipeError(
            f"arms.{arm}: the data needs {vocab_size} token ids, {source} has "
            f"{config.vocab_size}; leave data.tokenizer out to use its own tokenizer"
        )
    if sequence_length > config.max_position_embeddings:
        raise RecipeError(
            f"training.sequence_length: expected at most {config.max_position_embeddings}, the "
            f"max_position_embeddings of {source}, got {sequence_length}"
        )
    return config


def check_agreement(settings: ModelSettings, config: WuNengConfig, source: str, arm: str) -> None:
    """Raise RecipeError for fields that the recipe sets and the loaded model has otherwise."""
    wrong = []
    for name in sorted(settings.model_fields_set - {"preset"}):
        asked, has = getattr(settings, name), _of(config, name)
        if asked is not None and asked != has:
            wrong.append(f"model.{name} is {asked}, {source} has {has}")
    if wrong:
        raise RecipeError(
            f"arms.{arm}: {'; '.join(wrong)}. A model that is loaded keeps its own architecture: "
            "leave these fields out"
        )


def _of(config: WuNengConfig, name: str) -> Any:
    rope = dict(config.rope_parameters or {})
    if name == "rope_theta":
        return rope.get("rope_theta")
    if name == "rope_scaling":
        rope.pop("rope_theta", None)
        return rope
    return getattr(config, name)


def source_tokenizer(source: str, sources: Sources) -> PreTrainedTokenizerFast:
    """The tokenizer of what a recipe starts from.

    Raises:
        ModelError: no usable model is there.
        DataError: it has no tokenizer.
    """
    from wuneng.data.tokenizer import load_tokenizer

    sources.config(source, PLAIN)
    try:
        place = str(find_model(source))
    except ModelError:
        place = source  # a name on the hub
    return load_tokenizer(place, "init_from")


def load_start(directory: Path, *, check: bool = True) -> WuNengForCausalLM:
    """The WuNeng in ``directory``, in float32.

    Args:
        check: compare its files with their checksums, where there are some.

    Raises:
        DamagedError: a file is not what was written.
        ModelError: files are broken, or tensors missing, misshapen or left over.
    """
    from wuneng.model.pretrained import load_whole_model  # not needed for planning, and slow

    if check:
        verify(directory)
    model = load_whole_model(directory, dtype=torch.float32)
    from wuneng.model import WuNengForCausalLM

    if not isinstance(model, WuNengForCausalLM):
        raise ModelError(f"{directory}: a {model.config.model_type}, expected a WuNeng")
    return model
