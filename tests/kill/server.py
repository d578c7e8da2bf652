"""A process with torch imported and the shim loaded: forks a child for every command it is told.

One JSON object a line on stdin, ``{"place", "arguments", "mode", "at", "page", "patience"}``; one
on stdout, ``{"status", "hung", "operations", "last", "kinds", "output"}``: how the child ended
(negative: by a signal), whether it had to be ended since it did not by itself, how many file
operations it had done by then, the name of the last, the initials of all, and what it printed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from typing import Any

_BETWEEN_LOOKS = 0.01


class _Shared(ctypes.Structure):
    _fields_ = (
        ("done", ctypes.c_long),
        ("last", ctypes.c_char * 64),
        ("kinds", ctypes.c_char * 8192),
    )


def _child(shim: Any, place: str, arguments: list[str], mode: int, at: int, output: int) -> int:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(place)
    from wuneng_cli.main import app

    shim.shim_arm(place.encode(), mode, at)
    try:
        app(arguments, prog_name="wuneng")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 0


def _waited_for(child: int, patience: float) -> tuple[int, bool]:
    """How it ended, and whether it was ended here after ``patience`` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found, ended = os.waitpid(child, os.WNOHANG)
        if found:
            return ended, False
        time.sleep(_BETWEEN_LOOKS)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], True


def main() -> None:
    """Serve until stdin ends."""
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.shim_shared.restype = ctypes.POINTER(_Shared)
    shared = shim.shim_shared().contents
    # What is imported here, once, is imported in no child.
    import matplotlib.pyplot  # noqa: F401
    import torch  # noqa: F401

    import wuneng.bench.session
    import wuneng.convert
    import wuneng.evaluate.session
    import wuneng.report.write
    import wuneng.train.arm_run  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        os.environ["WUNENG_REPORT"] = str(int(asked["page"]))
        with tempfile.TemporaryFile() as output:
            shared.done, shared.last, shared.kinds = 0, b"", b""
            child = os.fork()
            if child == 0:
                arguments = (asked["place"], asked["arguments"], asked["mode"], asked["at"])
                status = _child(shim, *arguments, output.fileno())
                os._exit(status)
            ended, hung = _waited_for(child, asked["patience"])
            output.seek(0)
            answer = {
                "status": os.waitstatus_to_exitcode(ended),
                "hung": hung,
                "operations": shared.done,
                "last": shared.last.decode(),
                "kinds": shared.kinds.decode(),
                "output": output.read().decode("utf-8", "replace")[-20_000:],
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
