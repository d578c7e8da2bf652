"""The one way in for models, configurations and tokenizers of transformers directories.

Whoever calls ``from_pretrained`` goes through here: files outside the directory are refused, and
code that comes along is run only where :func:`wuneng.foreign.is_trusted`. A directory of ours that
was exported with its modelling code needs no trust: its classes are those of this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.errors import DataError, ModelError, file_errors
from wuneng.foreign import check_index, is_trusted, refusal
from wuneng.foreign.regular import read_regular_text
from wuneng.model.auto_classes import register_configuration, register_models
from wuneng.model.quiet import quiet_transformers
from wuneng.model.token_ids import check_ids, check_stored_ids

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "encoded",
    "load_any_tokenizer",
    "load_causal_model",
    "load_configuration",
    "load_whole_model",
    "readable_text",
    "try_tokenizer",
]


_INV_FREQ = "rotary_emb.inv_freq"


def load_causal_model(directory: Path, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A causal language model, and transformers' report on keys that are missing or left over.

    Args:
        directory: holds config.json and weights.
        options: handed on to ``from_pretrained``.

    Raises:
        ModelError: it needs code of its own, or names files outside the directory.
        Exception: whatever transformers raises over broken files.
    """
    from transformers import AutoModelForCausalLM

    register_models()
    check_index(directory)
    options = {**_attention_of(directory), **options}
    with _no_unasked_code(directory), quiet_transformers():
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=is_trusted(),
            output_loading_info=True,
            **options,
        )
    found = report if isinstance(report, dict) else vars(report)
    return model, found


def load_whole_model(
    directory: Path, *, allow_unexpected: bool = False, **options: Any
) -> PreTrainedModel:
    """A causal language model every tensor of which came from its files.

    transformers fills missing tensors with random numbers, and only warns.

    Args:
        allow_unexpected: whether the files may hold tensors that the model does not have.
        options: handed on to ``from_pretrained``.

    Raises:
        ModelError: the files are broken; tensors are missing, misshapen or left over.
    """
    with file_errors(f"{directory}: cannot load the model", ModelError):
        # Misshapen tensors are told below, by name.
        model, report = load_causal_model(directory, ignore_mismatched_sizes=True, **options)
    faults = sorted(map(str, report["missing_keys"]))
    faults += sorted(map(_misshapen, report["mismatched_keys"]))
    if faults:
        raise ModelError(
            f"{directory}: the weights lack or misshape {len(faults)} tensors that config.json "
            f"calls for: {_first(faults)}"
        )
    # Computed when a model is made; old checkpoints hold it.
    left = sorted(key for key in map(str, report["unexpected_keys"]) if _INV_FREQ not in key)
    if left and not allow_unexpected:
        raise ModelError(
            f"{directory}: the weights hold {len(left)} tensors that config.json does not call "
            f"for: {_first(left)}"
        )
    return model


def _misshapen(key: Any) -> str:
    """``name (shape, not shape)`` from transformers' triple of name, stored and wanted shape."""
    if not isinstance(key, tuple | list) or len(key) != 3:
        return str(key)
    name, stored, wanted = key
    return f"{name} ({list(stored)}, not {list(wanted)})"


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def load_configuration(directory: Path) -> PreTrainedConfig:
    """The configuration of a model directory.

    Raises:
        ModelError: it needs code of its own.
        Exception: whatever transformers raises over a broken file.
    """
    from transformers import AutoConfig

    register_configuration()
    with _no_unasked_code(directory):
        return AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=is_trusted()
        )


def load_any_tokenizer(
    place: str | Path, field: str = "", *, local: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, or one of the hub by its name.

    Args:
        place: the directory or name.
        field: what named it, for messages.
        local: read nothing from the network.

    Raises:
        ModelError: it needs code of its own.
        BaseException: whatever transformers and tokenizers raise over broken files.
    """
    from transformers import AutoTokenizer

    register_configuration()  # the directory may be one of our models
    check_stored_ids(Path(place) / "tokenizer.json")
    with _no_unasked_code(place, field), quiet_transformers():
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(place), local_files_only=local, trust_remote_code=is_trusted()
        )
    try_tokenizer(found)
    return found


def try_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Use a tokenizer once: files of wrong types load, and break down over the first text.

    Raises:
        ModelError: an id beyond any vocabulary, up to which tokenizers would count.
        BaseException: whatever the tokenizer raises; Rust's panics are no ``Exception``.
    """
    check_ids(tokenizer)
    try:
        _use(tokenizer, "Hello, wörld 1\n")
    except Exception:
        # Without an unknown token it may lack a letter of ours, but it can read its own words.
        for text in _own_texts(tokenizer):
            with suppress(Exception):
                return _use(tokenizer, text)
        raise


def _use(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    # More tokens than any limit of an ordinary model would only make transformers warn.
    tokenizer.decode(tokenizer(text, verbose=False)["input_ids"])


def readable_text(tokenizer: PreTrainedTokenizerBase, wanted: str) -> str | None:
    """``wanted``, or where the tokenizer lacks a letter of it something that it can read."""
    for text in (wanted, *_own_texts(tokenizer)):
        with suppress(Exception):
            _use(tokenizer, text)
            return text
    return None


def encoded(tokenizer: PreTrainedTokenizerBase, text: str | list[str], **options: Any) -> Any:
    """Token ids of a text, or of each of several.

    Args:
        options: handed on to the tokenizer.

    Raises:
        DataError: the tokenizer has no tokens for a part of it, and none that says so.
    """
    what = f"{tokenizer.name_or_path or 'the tokenizer'}: cannot encode the text"
    with file_errors(what, DataError):
        return tokenizer(text, **options)["input_ids"]


def _own_texts(tokenizer: PreTrainedTokenizerBase, most: int = 64) -> Iterator[str]:
    """What some tokens spell, spread over the vocabulary. Special ones prove nothing."""
    known = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    for index in known[:: 1 + len(known) // most]:
        if text := tokenizer.decode([index]).strip():
            yield text


@contextmanager
def _no_unasked_code(place: str | Path, field: str = "") -> Iterator[None]:
    """transformers' refusal names an argument of Python; ours names the file and the option."""
    try:
        yield
    except ValueError as error:
        if is_trusted() or "trust_remote_code" not in str(error):
            raise
        raise ModelError(refusal(place, field)) from None


def _attention_of(directory: Path) -> dict[str, str]:
    """How attention is to be computed, where transformers may not be left to choose: 5.17 takes
    torch's attention for a Gemma 2, which knows no soft caps.

    Raises:
        ModelError: it is named by a hub repository: code that transformers would fetch and run.
    """
    try:
        config = json.loads(read_regular_text(directory / "config.json"))
    except (OSError, ValueError, RecursionError):
        return {}  # the loader says what is wrong
    for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        for value in _texts_below(config, name):
            if "/" in value and not is_trusted():
                raise ModelError(
                    f"{directory / 'config.json'}: {name} is {value!r}, code from the hub. Give "
                    "--trust-remote-code if you trust it"
                )
    capped = isinstance(config, dict) and config.get("attn_logit_softcapping")
    return {"attn_implementation": "eager"} if capped else {}


def _texts_below(value: Any, name: str, *, inside: bool = False) -> Iterator[str]:
    """Every text below a key ``name``, at any depth: parts of a model have configurations of their
    own, and attention may be named for each part. json.loads bounds the depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts_below(inner, name, inside=inside or key == name)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_below(inner, name, inside=inside)
    elif inside and isinstance(value, str):
        yield value
