"""``wuneng cache``: what is kept between commands, where, and how to be rid of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wuneng_cli import options
from wuneng_cli.render import print_fact, print_json, print_line, short_bytes

if TYPE_CHECKING:
    from wuneng.records.user_cache import CacheEntry

__all__ = ["cache", "clear", "register"]

_EXAMPLES = """Examples:

\b
  wuneng cache         what is kept, and how large it is
  wuneng cache clear   delete all of it; it is made again when needed
  wuneng cache clear --kind tokens
  wuneng cache --dir /scratch/tokens
                       a recipe's data.cache_dir

Tokenised text, learned tokenizers and C kernels are kept in $XDG_CACHE_HOME/wuneng, by default
~/.cache/wuneng. $WUNENG_CACHE, or data.cache_dir in a recipe, is another place for the first two.
Only what this package made is deleted; runs and models are not in the cache.
"""

Place = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="This directory alone, as a recipe's cache_dir."),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    group = typer.Typer(
        help="Show what is kept between commands, with sizes; `clear` deletes it.",
        epilog=_EXAMPLES,
        rich_markup_mode=None,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.callback(short_help="Show or clear what is kept between commands.")(cache)
    group.command("clear", short_help="Delete it.", epilog=_EXAMPLES)(clear)
    app.add_typer(group, name="cache")


def cache(
    context: typer.Context,
    directory: Place = None,
    as_json: options.Json = False,
) -> None:
    """Show what is kept between commands, by kind and with sizes; `clear` deletes it."""
    if context.invoked_subcommand is not None:
        return
    from wuneng.records.user_cache import entries

    found = {place: entries(place) for place in _places(directory)}
    if as_json:
        print_json({"schema": 1, "places": [_record(*item) for item in found.items()]})
        return
    for place, kept in found.items():
        note = _note(place)
        print_fact(f"{place}{f' ({note})' if note else ''}: {_size(kept)}")
        for kind in dict.fromkeys(entry.kind for entry in kept):
            those = [entry for entry in kept if entry.kind == kind]
            print_line(f"  {kind:<11}{len(those):>5}   {_size(those)}")
    if any(found.values()):
        print_fact("`wuneng cache clear` deletes it; what is needed is made again.")


def clear(
    directory: Place = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="tokens, tokenizers, teachers, kernels or leftovers; may be repeated. "
            "[default: all]",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Delete what is kept between commands: only what this package made, links never followed.

    What another process is writing stays, and what one is reading it keeps until it ends.
    """
    from wuneng.records.user_cache import KINDS
    from wuneng.records.user_cache import clear as clear_place

    chosen = tuple(kinds or KINDS)
    gone = {place: clear_place(place, chosen) for place in _places(directory)}
    if as_json:
        print_json({"schema": 1, "deleted": [_record(*item) for item in gone.items()]})
        return
    for place, entries in gone.items():
        print_line(f"{place}: {len(entries)} deleted, {_size(entries)}")


def _places(directory: Path | None) -> list[Path]:
    """The one that was named, else all that there may be."""
    from wuneng.records.user_cache import OLD_CACHE, named_cache, user_cache

    if directory is not None:
        return [directory]
    places = [user_cache()]
    if named := named_cache():
        places.insert(0, named)
    if OLD_CACHE.is_dir():
        places.append(OLD_CACHE.absolute())
    return list(dict.fromkeys(places))


def _note(place: Path) -> str:
    from wuneng.records.user_cache import OLD_CACHE, named_cache

    if place == named_cache():
        return "$WUNENG_CACHE"
    return "of an earlier version, not used any more" if place == OLD_CACHE.absolute() else ""


def _record(place: Path, entries: list[CacheEntry]) -> dict[str, object]:
    return {
        "path": str(place),
        "note": _note(place),
        "bytes": sum(entry.bytes for entry in entries),
        "entries": [
            {
                "kind": entry.kind,
                "path": str(entry.path),
                "bytes": entry.bytes,
                "modified": entry.modified,
            }
            for entry in entries
        ],
    }


def _size(entries: list[CacheEntry]) -> str:
    return short_bytes(sum(entry.bytes for entry in entries))
