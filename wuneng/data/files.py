"""From what a recipe names (files, globs, directories, ``stdlib``) to a list of files.

A directory is walked for files of a readable kind; hidden files and directories are left out. The
order is the recipe's, and alphabetical within a glob or a directory, so that it is the same on
every machine. A file that is reached twice counts once.
"""

from __future__ import annotations

import glob
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from wuneng.errors import DataError, nearest, reason, shortened
from wuneng.foreign.regular import read_regular_text

__all__ = [
    "READABLE",
    "STDLIB",
    "file_kind",
    "find_files",
    "readable_kinds",
    "standard_library_files",
]

#: Kinds of file that can be read, by suffix.
READABLE = (".txt", ".md", ".py", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

#: The source string that stands for the Python standard library's own sources.
STDLIB = "stdlib"

# Installed packages are not the library; its tests hold files that are broken on purpose.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}


def file_kind(path: PurePath) -> str | None:
    """The member of ``READABLE`` that the file's name ends with, or None."""
    name = path.name.lower()
    # ".jsonl.gz" must win over a shorter suffix, hence the longest first.
    matching = (kind for kind in sorted(READABLE, key=len, reverse=True) if name.endswith(kind))
    return next(matching, None)


def find_files(sources: Sequence[str], field: str) -> list[Path]:
    """The files that the strings of the recipe's ``field`` stand for.

    Raises DataError, naming ``field``, for a path that does not exist, a glob or directory without
    readable files, a file of unknown kind and an empty file that was named itself.
    """
    if not sources:
        raise DataError(f"{field}: expected at least one file, glob or directory, got none")
    found: dict[Path, Path] = {}
    for source in sources:
        try:
            for path in _files_of(source, field):
                found.setdefault(path.resolve(), path)
        except (OSError, RuntimeError) as error:  # a name too long, no access, ~nobody
            raise DataError(
                f"{field}: {shortened(source, 200)!r} cannot be read: {reason(error)}"
            ) from None
    return list(found.values())


def standard_library_files() -> list[Path]:
    """The ``.py`` files of the running Python's standard library, without its tests.

    Packages installed below it, ``lib2to3`` (old grammar on purpose) and files that are not UTF-8
    are left out. The list differs between Python versions, as the library does.
    """
    library = Path(sysconfig.get_path("stdlib"))
    paths = _walk(library, _NOT_LIBRARY)
    return [path for path in paths if path.suffix == ".py" and _is_utf8(path)]


def _files_of(source: str, field: str) -> Iterable[Path]:
    if source == STDLIB:
        files = standard_library_files()
        if not files:
            raise DataError(f"{field}: this Python has no standard library sources on disk")
        return files
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_below(path, field)
    if path.exists():
        return [_named_file(path, field)]
    if glob.has_magic(source):
        return _files_matching(str(path), field)
    raise DataError(_not_found(path, source, field))


def _files_below(directory: Path, field: str) -> list[Path]:
    files = [path for path in _walk(directory, set()) if file_kind(path)]
    if not files:
        raise DataError(
            f"{field}: directory {directory} holds no readable file; looked for {readable_kinds()}"
        )
    return files


def _files_matching(pattern: str, field: str) -> list[Path]:
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    files = [match for match in matches if match.is_file() and file_kind(match)]
    if not files:
        reason = (
            f"the {len(matches)} matches are none of {readable_kinds()}" if matches else "no match"
        )
        raise DataError(f"{field}: glob {pattern!r} finds no readable file ({reason})")
    return files


def _named_file(path: Path, field: str) -> Path:
    if file_kind(path) is None:
        raise DataError(
            f"{field}: {path} is of no kind that can be read; expected {readable_kinds()}"
        )
    if not path.is_file():
        raise DataError(f"{field}: {path}: expected a regular file, not a pipe or a device")
    if path.stat().st_size == 0:
        raise DataError(f"{field}: {path} is empty")
    return path


def _not_found(path: Path, source: str, field: str) -> str:
    parent = path.parent
    beside = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    near = nearest(path.name, [*beside, STDLIB])
    if not near and source.count("/") == 1 and file_kind(path) is None:
        near = f" For a Hugging Face data set write {{dataset: {source}}}."
    return f"{field}: no file or directory {source!r}.{near}"


def _walk(directory: Path, excluded: set[str]) -> Iterator[Path]:
    """Files below a directory in alphabetical order, hidden and excluded ones left out."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name in excluded:
            continue
        if path.is_dir():
            if not path.is_symlink():  # a link may lead back up
                yield from _walk(path, excluded)
        else:
            yield path


def _is_utf8(path: Path) -> bool:
    try:
        read_regular_text(path)
    except (UnicodeDecodeError, OSError):
        return False
    return True


def readable_kinds() -> str:
    """``READABLE`` in words."""
    return ", ".join(READABLE)
