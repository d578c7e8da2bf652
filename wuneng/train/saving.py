"""When an arm's checkpoints are written, which stay, and writing one while training goes on.

Stay: the newest ``keep_checkpoints``, the one from before the decay of a wsd schedule, and as the
recipe says the one of the best validation (``keep_best``) and every n-th (``keep_every``).

Written aside (``async_checkpoints``), a thread copies the tensors while the next step runs forward
and backward; its update, which is the first to change them, waits until they are copied. The thread
then writes, and training waits for it only before the next checkpoint and at the end. What it fails
with is raised there, or after the step that runs then.

Of several processes the first writes what all hold, or each its own shard.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from wuneng.distributed.processes import ALONE, Processes
from wuneng.recipe import Training
from wuneng.train import checkpoint, sharded
from wuneng.train.schedule import steps_before_decay
from wuneng.train.signals import Interrupted
from wuneng.train.trainer_state import TrainerState

__all__ = ["Saver"]

Content = checkpoint.Content | sharded.ShardedContent


class Saver:
    """One arm's checkpoints below ``place``. As a context, it waits for what it writes."""

    def __init__(
        self,
        place: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        training: Training,
        *,
        warn: Callable[[str], None],
        processes: Processes = ALONE,
        shards: bool = False,
    ) -> None:
        self._place, self._model = place, model
        self._training, self._warn, self._processes = training, warn, processes
        self._decay_begins = _decay_begins(training)
        self._writer: _Writer | None = None
        self._waited = 0.0
        self._group = processes.save_group() if shards else None
        self.follow(optimizer)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on ``optimizer`` is the one whose moments are saved."""
        if getattr(self, "_optimizer", None) is optimizer:
            return
        self._optimizer = optimizer
        if self._training.async_checkpoints:
            # Weakly: the optimiser, and files that its state is mapped from, go with the arm.
            wait = weakref.WeakMethod(self._wait)
            optimizer.register_step_pre_hook(lambda *_: _call(wait))

    @property
    def waited(self) -> float:
        """Seconds in which training stood still for checkpoints."""
        return self._waited

    def due(self, state: TrainerState) -> bool:
        """Whether the step that ``state`` is at is to be saved."""
        training, step = self._training, state.step
        every = (training.checkpoint_every, training.keep_every)
        is_best = training.keep_best and state.best.get("step") == step
        return is_best or step == self._decay_begins or any(n and step % n == 0 for n in every)

    def save(self, state: TrainerState) -> None:
        """Write a checkpoint of ``state``, or begin to. Raises as ``checkpoint.write``, also for
        the one before."""
        self.finish()
        began = time.perf_counter()
        content = self._content(state)
        stays = self._staying(state)
        if not self._training.async_checkpoints:
            self._by_writers(lambda: self._write(content, stays))
        elif self._group is not None or self._processes.is_first:
            self._writer = _Writer(content, lambda copy: self._write(copy, stays))
        self._waited += time.perf_counter() - began

    def _content(self, state: TrainerState) -> Content:
        if self._group is not None:
            return sharded.content(self._model, self._optimizer, state)
        return checkpoint.content(self._model, self._optimizer, state, self._processes)

    def _by_writers(self, act: Callable[[], None]) -> None:
        """``act`` in those that write; it fails in all or in none."""
        if self._group is not None:
            act()
        else:
            self._processes.first(act)

    def _write(self, content: Content, stays: Callable[[int], bool]) -> None:
        if isinstance(content, checkpoint.Content):
            checkpoint.write(self._place, content)
            self._rotate(content.step, stays)
        else:
            assert self._group is not None
            sharded.write(
                self._place,
                content,
                self._group,
                trainer=checkpoint.TRAINER,
                manifest=checkpoint.MANIFEST,
                written=lambda: self._rotate(content.step, stays),
            )

    def tidy(self, state: TrainerState) -> None:
        """Delete what a process that was killed after it had saved ``state`` left."""
        self.finish()
        stays = self._staying(state)
        self._processes.first(lambda: self._rotate(state.step, stays))

    def check(self) -> None:
        """Raise what writing aside has failed with, if it has. Several processes hear of it at the
        next checkpoint: one alone must not leave the others."""
        failed = self._writer is not None and self._writer.failed
        if failed and self._processes.size == 1:
            self.finish()

    def finish(self) -> None:
        """Wait until everything is written; all processes together. Raises as
        ``checkpoint.write``."""
        if self._training.async_checkpoints:
            self._by_writers(self._finish)

    def _finish(self) -> None:
        self._wait()
        writer, self._writer = self._writer, None
        if writer is not None and writer.error is not None:
            raise writer.error

    def _wait(self, *, copied: bool = False) -> None:
        if self._writer is None:
            return
        began = time.perf_counter()
        self._writer.wait(copied=copied)
        self._waited += time.perf_counter() - began

    def _staying(self, state: TrainerState) -> Callable[[int], bool]:
        single = {self._decay_begins, state.best.get("step") if self._training.keep_best else None}
        every = self._training.keep_every
        return lambda step: step in single or (bool(every) and step % every == 0)

    def _rotate(self, step: int, stays: Callable[[int], bool]) -> None:
        checkpoint.rotate(self._place, step, self._training.keep_checkpoints, stays)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, Exception) and not isinstance(error, Interrupted):
            try:  # what went wrong first is told; a second Ctrl-C waits for nothing
                self._finish()
            except Exception as second:
                self._warn(str(second))


def _call(wait: weakref.WeakMethod[Callable[..., None]]) -> None:
    found = wait()
    if found is not None:
        found(copied=True)


class _Writer:
    """A thread that copies a checkpoint's tensors, and calls ``write`` with the copy."""

    def __init__(self, content: Content, write: Callable[[Content], None]) -> None:
        self.error: Exception | None = None
        self._copied = threading.Event()
        self._write = write
        # A daemon: a second Ctrl-C leaves at once, and half a checkpoint is never taken for one.
        self._thread = threading.Thread(
            target=self._run, args=(content,), name="checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def failed(self) -> bool:
        return self.error is not None

    def wait(self, *, copied: bool = False) -> None:
        """Until it is done, or has at least ``copied``."""
        if copied:
            self._copied.wait()
        else:
            self._thread.join()

    def _run(self, content: Content) -> None:
        try:
            content = content.copied()
            self._copied.set()
            self._write(content)
        except Exception as error:
            self.error = error
        finally:
            self._copied.set()


def _decay_begins(training: Training) -> int | None:
    """The step at which a longer run parts from this one: its checkpoint is kept."""
    if training.schedule != "wsd":
        return None
    return steps_before_decay(training.total_steps, training) or None
