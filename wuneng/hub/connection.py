"""Whether an error is of a connection, and how long to wait before the next try."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from wuneng.errors import reason

__all__ = ["NAME_PATIENCE", "NAME_WAITS", "WAITS", "asked_again", "is_away", "said"]

Answer = TypeVar("Answer")

#: Seconds before each further try.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
#: The same for a model or tokenizer by its name, which may as well be a directory mistyped.
NAME_WAITS = WAITS[:3]
#: Seconds after which a name is not asked for again: the hub's client may have tried long enough.
NAME_PATIENCE = sum(NAME_WAITS)
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500


def asked_again(
    ask: Callable[[], Answer],
    waits: tuple[float, ...] | None = None,
    patience: float = math.inf,
) -> Answer:
    """What ``ask`` returns; a hub that does not answer is asked again, after each of ``waits``
    (default :data:`WAITS`), unless ``patience`` seconds are over.

    Raises whatever ``ask`` raises of anything else, or at last.
    """
    began = time.monotonic()
    for wait in WAITS if waits is None else waits:
        try:
            return ask()
        except Exception as error:
            if time.monotonic() - began > patience or not is_away(error):
                raise
        time.sleep(wait)
    return ask()


def is_away(error: BaseException) -> bool:
    """Whether it may be otherwise in a moment: no connection, or a server that is busy or broken;
    not where the user has said that there is no network."""
    away: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError, *_client_errors())
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        if isinstance(cause, away) or (status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR):
            return not _no_network()
        cause = cause.__cause__ or cause.__context__
    return False


def _no_network() -> bool:
    """Whether the user has said so, to the hub's client or to ``datasets``."""
    told = [sys.modules.get(name) for name in ("huggingface_hub.constants", "datasets.config")]
    return any(getattr(module, "HF_HUB_OFFLINE", False) for module in told)


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
