"""Papers that travel with weights: licence texts, and the card that the source came with.

LICENSE, NOTICE, ...     as they are
README.md                becomes README-source.md: README.md is the new model's
README-source.md         becomes README-source-2.md, and so on: nothing is written over
"""

from __future__ import annotations

from pathlib import Path

from wuneng.errors import ModelError
from wuneng.foreign import regular_file_inside
from wuneng.records import disk_errors

__all__ = ["PAPERS", "copy_papers", "kept_cards", "licence_files"]

_LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
_CARD = "README.md"
#: What a snapshot of the hub has to be asked for.
PAPERS = (*_LICENCES, _CARD, "README-source*.md")
#: Nobody has converted a conversion as often.
_MOST = 20


def licence_files(directory: Path) -> list[str]:
    """Names of the licence texts in ``directory``, in order."""
    found = {path.name for pattern in _LICENCES for path in directory.glob(pattern)}
    return sorted(name for name in found if _is_paper(directory / name))


def kept_cards(directory: Path) -> list[str]:
    """Names of the sources' own cards that are kept in ``directory``, the latest first."""
    names = [_kept(number) for number in range(1, _MOST)]
    return [name for name in names if (directory / name).is_file()]


def copy_papers(source: Path, destination: Path, *, card: bool = True) -> list[str]:
    """Copy licence texts and cards; returns the names that they have in ``destination``.

    Args:
        card: keep README.md of ``source`` as well; otherwise it is one that is written anew.

    Raises:
        ModelError: one is a link that leads out of ``source``, or cannot be read.
        DiskError: the disk is full or refuses.
    """
    wanted = {name: _free(destination, name) for name in licence_files(source)}
    cards = [_CARD] if card and _is_paper(source / _CARD) else []
    cards += [name for name in kept_cards(source) if _is_paper(source / name)]
    wanted |= {name: _kept(number) for number, name in enumerate(cards, start=1)}
    for name, target in wanted.items():
        copy_file(source / name, source, destination / target)
    return list(wanted.values())


def copy_file(path: Path, source: Path, target: Path) -> None:
    """One file of the directory ``source``. Raises as ``copy_papers``."""
    try:
        data = regular_file_inside(path, source).read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _kept(number: int) -> str:
    return "README-source.md" if number == 1 else f"README-source-{number}.md"


def _free(directory: Path, name: str) -> str:
    """``name``, or ``name-2`` and so on: a tokenizer from elsewhere has a licence of its own."""
    found, number = name, 2
    while (directory / found).exists():
        found, number = f"{name}-{number}", number + 1
    return found


def _is_paper(path: Path) -> bool:
    """Whether it is there, and is neither a directory nor code."""
    return path.is_symlink() or (path.exists() and not path.is_dir() and path.suffix != ".py")
