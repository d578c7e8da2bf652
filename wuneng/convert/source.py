"""What SOURCE is: a transformers directory, a hub name, a run, an RWKV-7 file, a DCP checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuneng.convert.families import FAMILIES, Family
from wuneng.convert.tensor_files import PthFile, SafetensorsFiles, TensorSource, read_json_object
from wuneng.convert.unsupported import check_supported
from wuneng.errors import ModelError, reason, shortened
from wuneng.hub.connection import NAME_PATIENCE, NAME_WAITS, asked_again
from wuneng.hub.papers import PAPERS
from wuneng.records import find_model, may_be_on_the_hub

__all__ = ["DCP_METADATA", "Located", "locate", "open_tensors"]

DCP_METADATA = ".metadata"
_HUB_FILES = [
    "*.json",
    "*.jinja",
    "model*.safetensors",
    "tokenizer.model",
    "*.txt",
    *PAPERS,
]


@dataclass(frozen=True)
class Located:
    """A source that was found and whose kind is known.

    Attributes:
        label: how the user called it.
        path: a directory, or an RWKV-7 file.
        family: what it is a checkpoint of; None for a distributed checkpoint, which its own
            reader looks into.
        config: config.json's content; empty for files without one.
    """

    label: str
    path: Path
    family: Family | None
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """The model type, or ``dcp``, for messages and records."""
        return "dcp" if self.family is None else self.family.model_type

    @property
    def is_distributed(self) -> bool:
        """Whether it is a distributed checkpoint (DCP)."""
        return self.family is None

    @property
    def is_rwkv7(self) -> bool:
        """Whether it is an RWKV-7, of either layout."""
        return self.family is not None and self.family.role == "state"

    @property
    def is_wuneng(self) -> bool:
        """Whether it is a model of ours."""
        return self.family is not None and self.family.role == "wuneng"

    @property
    def is_file(self) -> bool:
        """Whether the source is a lone weights file under RWKV-LM's names."""
        return self.path.is_file()


def locate(source: str) -> Located:
    """Find out what ``source`` is.

    Raises:
        ModelError: nothing is there, or it is an architecture that does not convert.
    """
    path = Path(source)
    try:
        is_file = path.is_file()
    except OSError as error:  # a name too long, no access
        raise ModelError(f"{shortened(source, 200)}: {reason(error)}") from None
    if is_file:
        if path.suffix == ".gguf":
            raise ModelError(_of_gguf(path))
        if path.suffix not in (".pth", ".safetensors"):
            raise ModelError(
                f"{path}: a file; expected a model directory, or an RWKV-7 .pth or .safetensors"
            )
        return Located(source, path, FAMILIES["rwkv7"], {})
    if may_be_on_the_hub(source):
        path = _from_hub(source)
    if (path / DCP_METADATA).is_file():
        file = path / "config.json"
        return Located(source, path, None, read_json_object(file) if file.is_file() else {})
    if path.is_dir() and _only_pth(path):
        return locate(str(_only_pth(path)))
    if path.is_dir() and (gguf := _only_gguf(path)):
        raise ModelError(_of_gguf(gguf))
    path = find_model(path)
    config = read_json_object(path / "config.json")
    return Located(source, path, check_supported(config, str(path / "config.json")), config)


def open_tensors(located: Located) -> TensorSource:
    """The source's tensors. ModelError when its files are broken, incomplete or pickles."""
    if not located.is_file:
        return SafetensorsFiles.of_directory(located.path)
    if located.path.suffix == ".pth":
        return PthFile(located.path)
    return SafetensorsFiles([located.path])


def _only_pth(directory: Path) -> Path | None:
    """The one ``.pth`` of a directory without a config.json."""
    if (directory / "config.json").exists() or (directory / "recipe.yaml").exists():
        return None
    found = sorted(directory.glob("*.pth"))
    return found[0] if len(found) == 1 else None


def _only_gguf(directory: Path) -> Path | None:
    """A ``.gguf`` of a directory without a config.json."""
    if (directory / "config.json").exists() or (directory / "recipe.yaml").exists():
        return None
    return next(iter(sorted(directory.glob("*.gguf"))), None)


def _of_gguf(file: Path) -> str:
    """Why it is not read, and what reads it: weights that were rounded when it was made."""
    return (
        f"{file}: a GGUF file, which is not read here. transformers reads those of many models "
        "(pip install gguf): AutoModelForCausalLM.from_pretrained("
        f"{str(file.parent)!r}, gguf_file={file.name!r}).save_pretrained('DIRECTORY'), "
        "AutoTokenizer likewise; then convert DIRECTORY. Its weights are as the file rounded them"
    )


def _from_hub(name: str) -> Path:
    """A snapshot of the model ``owner/name``: configuration, tokenizer and safetensors only."""
    from huggingface_hub import snapshot_download

    try:
        place = asked_again(
            lambda: snapshot_download(name, allow_patterns=_HUB_FILES), NAME_WAITS, NAME_PATIENCE
        )
        return Path(place)
    except Exception as error:  # offline, unknown, gated, interrupted: many classes of errors
        raise ModelError(
            f"{name} is no directory here, and it cannot be fetched from the hub: {reason(error)}"
        ) from error
