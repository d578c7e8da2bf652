"""Models and tokenizers from transformers directories, with errors a person can act on."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import torch

from wuneng.errors import DataError, InputError, ModelError, file_errors, nearest, reason, shortened
from wuneng.evaluate.tokenizer_fit import check_rows, drop_appended
from wuneng.foreign import code_reference, is_trusted, refusal
from wuneng.foreign.regular import read_regular_text
from wuneng.model.token_ids import vocabulary_size
from wuneng.records import read_json, run_of, verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DTYPES",
    "LoadedModel",
    "has_tokenizer",
    "load_model",
    "load_tokenizer",
    "model_label",
    "without_tokenizer",
]

DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_LONG_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, and its tokenizer.

    Attributes:
        model: a transformers causal language model.
        tokenizer: None for a model of token ids that spell nothing (synthetic tasks).
        path: the transformers directory.
        label: how results call it.
        remark: what a user should know about how prompts are encoded, if anything.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    path: Path
    label: str
    remark: str | None = None

    def require_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer. ModelError when there is none."""
        if self.tokenizer is None:
            raise ModelError(without_tokenizer(self.path))
        return self.tokenizer

    def describe(self) -> dict[str, Any]:
        """What result files say about a model."""
        return {
            "path": str(self.path),
            "label": self.label,
            "model_type": self.model.config.model_type,
            "parameters": self.model.num_parameters(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }


def load_model(
    path: Path, *, device: torch.device, dtype: str = "auto", check: bool = True
) -> LoadedModel:
    """Load a transformers directory; code in it is run only where the user trusts it.

    What it writes by is ours, but for its end of text: see ``wuneng.evaluate.generation_settings``.

    Args:
        path: holds config.json, weights and, unless the model is synthetic, a tokenizer.
        device: where to put the model.
        dtype: "auto" (as stored), "fp32", "bf16" or "fp16".
        check: compare the files with their checksums, where there are some.

    Raises:
        DamagedError: a file is not what was written.
        ModelError: not such a directory, a model type that is not known, or files that are
            broken, incomplete or do not fit together.
        InputError: an unknown dtype.
    """
    torch_dtype = _dtype(dtype)
    if check:
        verify(path)
    _register(path, _read_config(path))
    from wuneng.evaluate.generation_settings import own_settings
    from wuneng.model.pretrained import load_whole_model

    model = load_whole_model(path, allow_unexpected=True, dtype=torch_dtype)
    model = model.to(device).eval()  # type: ignore[arg-type]
    tokenizer = load_tokenizer(path)
    remark = None
    if tokenizer is not None:
        check_rows(path, tokenizer, model.get_input_embeddings().weight.shape[0])
        _adopt_marks(path, tokenizer, model.config)
        remark = drop_appended(tokenizer)
    model.generation_config = own_settings(path, model)
    return LoadedModel(model, tokenizer, path, model_label(path), remark)


def model_label(path: Path) -> str:
    """``run/arm[/seed-n]`` for a model of a run, else the directory's name."""
    path = path.resolve()
    run = run_of(path)
    if run is None:
        return path.name
    return str(path.parent.relative_to(run.path.parent))


def _dtype(name: str) -> torch.dtype | str:
    short = _LONG_NAMES.get(name, name)
    if short not in DTYPES:
        raise InputError(
            f"--dtype: expected one of {', '.join(DTYPES)}, got {name!r}.{nearest(name, DTYPES)}"
        )
    return DTYPES[short]


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(f"{path}: no config.json; expected a model directory in transformers form")
    try:
        config = json.loads(read_regular_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON: {reason(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{file}: no 'model_type'; expected the configuration of a model")
    return config


def _register(path: Path, config: dict[str, Any]) -> None:
    """Make our Auto classes known, and refuse a model type that nobody knows."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from wuneng.model.auto_classes import register_models
    from wuneng.model.configuration import WuNengConfig

    register_models()
    name = config["model_type"]
    if name in (WuNengConfig.model_type, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return
    # What somebody else registered counts too; asking imports two hundred configurations.
    known = {kind.model_type for kind in MODEL_FOR_CAUSAL_LM_MAPPING if kind.model_type}
    if name not in known and code_reference(path) is not None:
        if not is_trusted():
            raise ModelError(refusal(path))
    elif name not in known:
        what = "is not a causal language model" if name in CONFIG_MAPPING_NAMES else "is not known"
        raise ModelError(
            f"{path / 'config.json'}: model_type {name!r} {what}.{nearest(name, known)}"
        )


def has_tokenizer(path: Path) -> bool:
    """Whether a model directory holds a tokenizer."""
    return any((path / name).is_file() for name in _TOKENIZER_FILES)


def without_tokenizer(path: Path) -> str:
    """What to say and do about a model without a tokenizer that is asked for text."""
    run = run_of(path)
    if run is not None:
        return (
            f"{model_label(path)} has no tokenizer: it was trained on synthetic tasks and reads "
            f"token ids, not text. `wuneng eval {quote(str(run.path))}` scores it on its own "
            "tasks; for text, train on text, as `wuneng train recipes/python-bytes.yaml` does."
        )
    with suppress(DataError, TypeError, KeyError):
        record = read_json(path / "convert.json")
        return f"{path} has no tokenizer: {record['without_tokenizer']}."
    return (
        f"{path} has no tokenizer ({_TOKENIZER_FILES[0]}), so it reads token ids, not text. Copy "
        "its tokenizer's files there; a model that came from an RWKV-7 .pth gets them with "
        "`wuneng convert FILE.pth NEW --tokenizer bytes`, `world` or the path of its vocabulary."
    )


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model directory; None where there is none. ModelError when broken."""
    if not has_tokenizer(path):
        return None
    from wuneng.model.pretrained import load_any_tokenizer

    with file_errors(f"{path}: cannot load the tokenizer", ModelError):
        return load_any_tokenizer(path)


def _adopt_marks(path: Path, tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """A bare tokenizer.json does not say which tokens begin and end a text; config.json may."""
    for name in ("bos_token", "eos_token"):
        index = getattr(config, f"{name}_id", None)
        index = index[0] if isinstance(index, list) and index else index
        if getattr(tokenizer, f"{name}_id") is None and isinstance(index, int):
            most = vocabulary_size(tokenizer) - 1
            if not 0 <= index <= most:
                raise ModelError(
                    f"{path / 'config.json'}: {name}_id: expected a token of the tokenizer, 0 to "
                    f"{most}, got {shortened(str(index))}"
                )
            token = tokenizer.convert_ids_to_tokens(index)
            if isinstance(token, str):
                setattr(tokenizer, name, token)
