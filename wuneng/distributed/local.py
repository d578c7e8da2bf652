"""Several processes on this machine, started and watched by torchrun's own launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from wuneng.errors import RunError

__all__ = ["run_locally"]

#: Seconds that processes have to finish a step and save before they are killed.
_SECONDS_TO_SAVE = 600


def run_locally(number: int, arguments: Sequence[str]) -> int:
    """Run ``python ARGUMENTS`` in ``number`` processes that know of each other.

    Where one fails the others are ended. A signal is passed on to all of them, who then have ten
    minutes to save; a second one kills them.

    Returns:
        The exit code: that of the first process that failed; 128 and its number for a signal.

    Raises:
        RunError: a signal that was not sent here ended one of them; it is named.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // number)))
    settings: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": number,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "127.0.0.1:0",
        "local_addr": "127.0.0.1",
        "max_restarts": 0,
        "logs_specs": DefaultLogsSpecs(os.devnull),
    }
    if "shutdown_timeout" in LaunchConfig.__dataclass_fields__:  # of later releases of torch
        settings["shutdown_timeout"] = _SECONDS_TO_SAVE
    try:
        elastic_launch(LaunchConfig(**settings), sys.executable)(*arguments)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)  # it has said why
        name = signal.Signals(-failure.exitcode).name
        hint = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        raise RunError(f"process {rank} of {number} was ended by {name}{hint}") from None
    return 0
