"""Processes of a gloo group on one machine, for what has to be tested across ranks.

They are forked by a server that has imported everything and computed nothing: torch is imported
once for all of them, and no thread is lost in a fork.
"""

from __future__ import annotations

import datetime
import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

#: Of a rank that has not come; a machine with other work is slow.
PATIENCE = datetime.timedelta(seconds=300)


def run_group(work: Callable[[], Any], ranks: int, place: Path) -> list[Any]:
    """What ``work()`` returns on each of ``ranks`` processes, in their order.

    Args:
        work: a function of a module that can be imported; its result goes through ``torch.save``.
        place: an empty directory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    processes = [
        context.Process(target=_enter, args=(work, rank, ranks, str(place)), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    wrong = [place / f"wrong-{rank}" for rank in range(ranks)]
    told = [path.read_text(encoding="utf-8") for path in wrong if path.exists()]
    assert not told, "\n".join(told)
    assert [process.exitcode for process in processes] == [0] * ranks
    return [torch.load(place / f"rank-{rank}", weights_only=True) for rank in range(ranks)]


def _enter(work: Callable[[], Any], rank: int, ranks: int, place: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/meet", rank=rank, world_size=ranks, timeout=PATIENCE
    )
    try:
        torch.save(work(), f"{place}/rank-{rank}")
    except BaseException:
        Path(place, f"wrong-{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    dist.destroy_process_group()
