"""A user's regular expressions over parameters' names, tried where they can be given up.

Python's ``re`` backtracks: ``(.+)+!`` tries every way to divide a name, and would be at it for
years. Expressions that can repeat or choose are therefore tried in a process of their own, which
may use so many seconds of the processor and no more.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache

from wuneng.errors import RecipeError, shortened

__all__ = ["names_found"]

#: Of the processor, for all expressions together; plain ones need a thousandth of it.
_SECONDS = 5
#: Of the clock, where the system sets no limit or the machine has other things to do.
_PATIENCE = 60
#: Without any of these an expression takes one look at each place of a name.
_REPEATS_OR_CHOOSES = re.compile(r"[*+?{|]")
_MOST_PLAIN_SEARCHES = 1_000_000

_TRY = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
except (ImportError, OSError, ValueError):
    pass  # the caller's clock stops this process, then
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    search = re.compile(pattern).search
    print(json.dumps([index for index, name in enumerate(names) if search(name)]), flush=True)
"""


def names_found(patterns: Iterable[str], names: Iterable[str], field: str) -> dict[str, list[str]]:
    """For each regular expression the names that it is found in, in their order.

    Args:
        field: the recipe's, for messages.

    Raises:
        RecipeError: an expression is not done with the names after five seconds of the processor.
    """
    chosen, known = tuple(dict.fromkeys(patterns)), tuple(names)
    plain = not any(map(_REPEATS_OR_CHOOSES.search, chosen))
    if plain and len(chosen) * len(known) <= _MOST_PLAIN_SEARCHES:
        return {pattern: [n for n in known if re.search(pattern, n)] for pattern in chosen}
    found = _tried(chosen, known)
    if len(found) < len(chosen):
        raise RecipeError(
            f"{field}: expected regular expressions that are soon done with the names of "
            f"{len(known):,} parameters; {shortened(chosen[len(found)])!r} is still being tried "
            f"after {_SECONDS} seconds. A repetition inside a repetition, as in (.+)+, is often "
            "the reason"
        )
    return {
        pattern: [known[index] for index in indices]
        for pattern, indices in zip(chosen, found, strict=True)
    }


@lru_cache(maxsize=32)
def _tried(patterns: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """The places in ``names`` for each pattern, up to the first that took too long."""
    # Isolated, without site packages: it starts in a moment, and runs nothing of the user's.
    command = [sys.executable, "-I", "-S", "-c", _TRY.replace("SECONDS", str(_SECONDS))]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([patterns, names]).encode("ascii"),
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as late:
        done = late.stdout or b""
    *lines, _torn = done.split(b"\n")
    return [json.loads(line) for line in lines]
