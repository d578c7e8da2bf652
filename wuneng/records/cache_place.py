"""Where this user's cache is. Tokens and tokenizers (``user_cache``) and C kernels are in it.

The standard library alone is imported here: an exported model's code takes this file along.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_place"]


def cache_place() -> Path | None:
    """``$XDG_CACHE_HOME/wuneng``, by default ``~/.cache/wuneng``; made by nobody here.

    None where no home is known, as in a container under a number without a name.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # counts for nothing, as that variable's specification says
        root = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "wuneng" if os.path.isabs(root) else None
