"""Whether an error is of a connection, and how long to wait before the next try."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from wuneng.errors import reason

__all__ = ["WAITS", "is_away", "said"]

#: Seconds before each further try.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500


def is_away(error: BaseException) -> bool:
    """Whether it may be otherwise in a moment: no connection, or a server that is busy or broken;
    not where the user has said that there is no network."""
    from datasets import config

    away: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError, *_client_errors())
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        if isinstance(cause, away) or (status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR):
            return not config.HF_HUB_OFFLINE
        cause = cause.__cause__ or cause.__context__
    return False


def _client_errors() -> Iterator[type[BaseException]]:
    """Errors of a connection, of what the hub's client is built on: it has changed its library."""
    names = ("httpx.TransportError", "httpx2.TransportError", "requests.ConnectionError")
    for module, _, name in (full.partition(".") for full in names):
        if module in sys.modules:
            yield getattr(sys.modules[module], name)


def said(error: BaseException) -> str:
    """What an error says and, of one that only says that there was another, that other one."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    said, because = reason(error), reason(cause)
    return said if because in said else f"{said}: {because}"
