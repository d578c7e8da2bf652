"""A cache entry made by one process while the others that want it wait.

Whoever makes it claims ``<cache>/claims/<entry>`` (``wuneng.records.claim``): also processes of
other hosts see that, where they share the cache. A claim whose process has ended is taken over at
once on its own host, after a minute elsewhere, and the entry is then begun anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wuneng.data.cache_directory import is_intact, publish, working_directories
from wuneng.errors import DiskError
from wuneng.records.claim import Vacancy, Watch, remove_ended
from wuneng.records.claimant import Claimant
from wuneng.records.leftovers import remove_abandoned

__all__ = ["made_once"]

_log = logging.getLogger(__name__)
_BETWEEN_LOOKS = 0.1
#: Seconds in which what another process makes has to grow. Then this one makes it as well: two may
#: write the same entry at once.
PATIENCE = 600.0


def made_once(
    entry: Path,
    fill: Callable[[Path], None],
    *,
    claimant: Claimant | None = None,
    patience: float | None = None,
) -> None:
    """``entry`` is intact afterwards; where it was not, one process has made it by ``publish``.

    Args:
        claimant: as whom this process claims it; by default as any process of this machine.
        patience: seconds, by default ``PATIENCE``.

    Raises as ``publish``: what ``fill`` raises in another process does not end this one, which
    then tries by itself.
    """
    place = entry.parent.parent / "claims" / entry.name
    if is_intact(entry):
        if place.parent.exists():  # of one that was killed when it had just made it
            remove_ended(place)
            _tidy(place)
        return
    claimant = claimant or Claimant()
    watch, growth = Watch(place, claimant), _Growth(entry)
    while True:
        found = watch.look()
        try:
            claim = found.claim(claimant) if isinstance(found, Vacancy) else None
        except DiskError:  # where nothing can be claimed everybody makes it, or says why it cannot
            publish(entry, fill)
            return
        if claim is not None:
            break
        if growth.seconds_without() > (PATIENCE if patience is None else patience):
            _log.warning(
                "%s: %s, which makes it, has written nothing for %g seconds; it is made here as "
                "well",
                *(entry, watch.last_holder, growth.seconds_without()),
            )
            publish(entry, fill)
            return
        time.sleep(min(_BETWEEN_LOOKS, claimant.beat))
    try:
        if not is_intact(entry):
            publish(entry, fill)
    finally:
        claim.release()
        _tidy(place)


def _tidy(place: Path) -> None:
    """Remove the directory of claims that nobody has; others may claim, or have done so before."""
    remove_abandoned(place)
    for directory in (place, place.parent):
        with suppress(OSError):
            directory.rmdir()


class _Growth:
    """Watches what other processes have written of an entry that is not there yet."""

    def __init__(self, entry: Path) -> None:
        self._entry = entry
        self._seen, self._since = self._written(), time.monotonic()

    def seconds_without(self) -> float:
        """Since it was last seen to have grown, or something else to have changed in it."""
        now = self._written()
        if now != self._seen:
            self._seen, self._since = now, time.monotonic()
        return time.monotonic() - self._since

    def _written(self) -> list[tuple[str, int]]:
        found = []
        for directory in working_directories(self._entry):
            with suppress(OSError):  # it is just being renamed
                found += [(str(file), file.stat().st_size) for file in directory.iterdir()]
        return sorted(found)
