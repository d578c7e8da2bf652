"""Which files of a directory are its own: links and names that lead out of it are not followed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from wuneng.errors import ModelError, RecipeError
from wuneng.foreign.regular import read_regular_text

__all__ = ["check_index", "check_link", "regular_file_inside"]

_OF_A_RUN = "recipe.yaml"
#: A file of weights, where there is no list of several.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def regular_file_inside(path: Path, directory: Path) -> Path:
    """``path`` itself, a regular file whose content lies inside ``directory``.

    A snapshot of the Hugging Face cache consists of links to ``blobs/`` beside it; they count as
    inside.

    Raises:
        ModelError: it is a device, a pipe or the like, or a link that leads elsewhere.
    """
    try:
        real, root = path.resolve(strict=True), directory.resolve(strict=True)
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "links in a circle"
        raise ModelError(f"{path}: cannot be read: {reason}") from None
    if not regular:
        raise ModelError(f"{path}: expected a regular file")
    if not any(real.is_relative_to(place) for place in (root, *_blobs(root))):
        raise ModelError(
            f"{path}: a link to {real}, outside of {directory}; put the file itself there"
        )
    return path


def check_index(directory: Path) -> None:
    """Check the weight files of a model directory and the lists of them, where it has any.

    Raises:
        ModelError: a list names a file anywhere else, or a file of weights is a link that leads
            out of the directory, or no regular file.
    """
    for name in _INDEXES:
        file = directory / name
        weight_map = _weight_map(file)
        for tensor, shard in weight_map.items() if isinstance(weight_map, dict) else ():
            if not isinstance(shard, str) or shard != Path(shard).name or shard in ("", ".."):
                raise ModelError(
                    f"{file}: {tensor} is said to be in {str(shard)[:200]!r}; expected the name "
                    "of a safetensors file in the same directory"
                )
        for shard in set(weight_map.values()) if isinstance(weight_map, dict) else ():
            if os.path.lexists(directory / shard):  # whoever opens it says that it is not there
                regular_file_inside(directory / shard, directory)
    for name in _WEIGHTS:
        if os.path.lexists(directory / name):
            regular_file_inside(directory / name, directory)


def check_link(path: Path) -> None:
    """Refuse a recipe that is a link out of the working directory and out of its own.

    Messages about a recipe quote it. A link that came with somebody's files must not make them
    quote another file, which they never meant to show. Above a run's own ``recipe.yaml`` there may
    be links: ``runs`` is often one, to a larger disk.

    Raises:
        RecipeError: it leads elsewhere.
    """
    try:
        real, here = path.resolve(strict=True), Path.cwd()
        beside = path.parent.resolve()
    except (OSError, RuntimeError):
        return  # whoever reads it says why
    inside = Path(os.path.abspath(path)).is_relative_to(here)
    allowed = [here.resolve()] if inside else []
    if path.name == _OF_A_RUN or not inside:
        allowed.append(beside)
    if not any(real.is_relative_to(place) for place in allowed):
        raise RecipeError(f"recipe {path} is a link to {real}; name that file itself")


def _blobs(root: Path) -> list[Path]:
    """``<repository>/blobs`` of a snapshot ``<repository>/snapshots/<revision>[/...]``."""
    places = (root, *root.parents)
    return [
        snapshots.parent / "blobs"
        for snapshots in places
        if snapshots.name == "snapshots" and (snapshots.parent / "blobs").is_dir()
    ][:1]


def _weight_map(file: Path) -> Any:
    try:
        value = json.loads(read_regular_text(file))
    except (OSError, ValueError, RecursionError):
        return None  # whoever opens it says so
    return value.get("weight_map") if isinstance(value, dict) else None
