"""A function's kernels recorded in a CUDA graph, which launches them all at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["CudaGraphs"]

WARM_UP = 3
"""Calls before the capture: they compile kernels, and libraries choose theirs at first use."""


class CudaGraphs:
    """Graphs on one device. They share their memory: what one leaves behind must be held."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._device = device

    def warm_up(self, run: Callable[[], None]) -> None:
        """Call ``run`` a few times on the stream it is to be captured on."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    run()
            torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """What replays the kernels of ``run``, which is called once and leaves nothing computed.

        Raises:
            RuntimeError: ``run`` does what a graph cannot hold, such as waiting for the device.
        """
        graph = torch.cuda.CUDAGraph()
        # Other threads, which read data and write checkpoints, go on meanwhile.
        context = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        with torch.cuda.device(self._device), context:
            run()
        replay: Callable[[], None] = graph.replay
        return replay
