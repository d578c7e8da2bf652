"""One optimiser step: micro-batches, loss, backward, the finiteness check, clipping, the update.

The loss is the mean over every scored token of the *whole* batch: each micro-batch contributes its
sum divided by the batch's count, so cutting a batch in pieces changes rounding and nothing else,
even when the pieces score different numbers of tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.data.batch import IGNORED, Batch
from wuneng.distributed.degrees import SINGLE, Degrees
from wuneng.distributed.processes import ALONE, Processes
from wuneng.distributed.whole import whole
from wuneng.distributed.wrapping import blocks, joined_copies, synchronised
from wuneng.errors import DataError, NonFiniteError, RunError
from wuneng.model.head_loss import ask, summed_cross_entropy, unwrapped
from wuneng.ops.context import context_parallel
from wuneng.recipe import Training
from wuneng.train.alignment import Aligner
from wuneng.train.captured import CapturedPasses
from wuneng.train.compiled_blocks import compile_blocks
from wuneng.train.distillation import Teacher
from wuneng.train.shares import piece_of_rows, share_of
from wuneng.train.skipping import Skipping

__all__ = [
    "Numerics",
    "StepOutcome",
    "compilation_error",
    "micro_batches",
    "prepare_model",
    "take_step",
]

# fp16 skips an update now and then while its loss scale settles; a scale below this means that the
# gradients overflow whatever the scale is.
_SMALLEST_LOSS_SCALE = 2.0**-10


@dataclass
class Numerics:
    """Where and in what precision an arm is trained."""

    device: torch.device
    autocast_dtype: torch.dtype | None = None
    """None: everything in float32."""
    scaler: torch.amp.GradScaler | None = None
    """Only for float16, whose gradients underflow unscaled."""
    processes: Processes = ALONE
    """That train it together."""
    degrees: Degrees = SINGLE
    """How they share the model and the batch."""
    captured: CapturedPasses | None = None
    """The arm's passes as CUDA graphs; None: every kernel is launched by itself."""

    @classmethod
    def pick(
        cls,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        processes: Processes = ALONE,
        degrees: Degrees = SINGLE,
    ) -> Numerics:
        """Numerics for a device; float16 gets a gradient scaler."""
        scaler = torch.amp.GradScaler(device.type) if autocast_dtype is torch.float16 else None
        return cls(device, autocast_dtype, scaler, processes, degrees)

    def capturing(self) -> Numerics:
        """The same, with the passes of one model, yet to be captured."""
        return replace(self, captured=CapturedPasses(self.device, self.autocast))

    def share(self, batch: Batch) -> Batch:
        """The rows of ``batch`` that this process trains on, or its piece of them."""
        number, place = divmod(self.processes.rank, self.degrees.context)
        rows = share_of(batch, number, self.degrees.data)
        return piece_of_rows(rows, place, self.degrees.context)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """In which the model computes its piece of a sequence, where processes share one."""
        if self.degrees.context == 1:
            return contextlib.nullcontext()
        return context_parallel(self.processes.mesh(self.degrees, self.device)["context"])

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model is called."""
        if self.autocast_dtype in (None, torch.float32):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)


@dataclass(frozen=True)
class StepOutcome:
    """What one step reports."""

    loss: float
    """Nats per scored token."""
    grad_norm: float
    """Global 2-norm before clipping."""
    tokens: int
    """Tokens read, scored or not."""
    skipped: bool = False
    """Nothing moved: see ``reason``; or float16's scaled gradients overflowed, and the scale was
    lowered."""
    reason: str = ""
    """Why the batch was skipped, where the recipe has it so (``wuneng.train.skipping``)."""
    parts: dict[str, float] = field(default_factory=dict)
    """With a teacher that has logits: ``kl`` and ``ce``, in nats per scored token, before they are
    weighted."""


def prepare_model(
    model: nn.Module, training: Training, numerics: Numerics | None = None
) -> nn.Module:
    """Switch on activation checkpointing and compilation as the recipe asks, and join the copies of
    several processes.

    Returns the module to call; its parameters are those of ``model``, which stays the one to save.
    """
    model.train()
    if every := training.recomputed_every:
        kind = {"use_reentrant": False}
        transformer: Any = model
        if hasattr(transformer, "activation_checkpointing_enable"):
            transformer.activation_checkpointing_enable(activation_checkpointing_kwargs=kind)
        else:  # transformers before the method was renamed
            transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)
        for number, block in enumerate(blocks(model)):
            block.gradient_checkpointing = number % every == 0  # type: ignore[assignment]
    if training.compile:
        compile_blocks(model)
    if numerics is not None and numerics.processes.size > 1:
        return joined_copies(model, numerics.processes, numerics.degrees, numerics.device)
    return model


def compilation_error(error: Exception, training: Training) -> RunError | None:
    """What to tell the user if ``error`` comes from torch.compile; None if it does not."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    reason = str(error).partition("\n")[0]
    of_moments = training.has_low_bit_moments and not training.compile
    field, plain = ("optimizer", "adamw") if of_moments else ("compile", "false")
    return RunError(
        f"training.{field}: torch.compile failed ({reason}). Set training.{field} to {plain}, or "
        "install what it misses: a C++ compiler on the CPU, triton on CUDA"
    )


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    training: Training,
    numerics: Numerics,
    *,
    step: int,
    arm: str,
    teacher: Teacher | Aligner | None = None,
    skipping: Skipping | None = None,
) -> StepOutcome:
    """Train on ``batch`` once. ``step`` (1-based) and ``arm`` are for messages.

    The loss is the cross-entropy, or with a ``teacher`` what it makes of both. ``skipping`` judges
    the batch; by default without a memory of others.

    ``model(input_ids=[B, T], document_ids=[B, T] | None, use_cache=False, head_loss=…).loss``; one
    that is not WuNeng gives ``.logits`` ``[B, T, V]`` instead.

    Raises:
        NonFiniteError: the loss or a gradient is NaN or infinite, or too many batches in a row had
            to be skipped; the weights are untouched.
        DataError: nothing in the batch is scored.
    """
    scored = int((batch.labels != IGNORED).sum())
    if scored == 0:
        raise DataError(f"step {step}: no token of the batch (task {batch.task!r}) is scored")
    optimizer.zero_grad(set_to_none=True)
    each = _backward(model, batch, training, numerics, scored, teacher)
    loss, *parts = each.sum(0)
    if numerics.scaler is not None:
        numerics.scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    foreach = numerics.device.type in ("cpu", "cuda")
    norm = whole(nn.utils.get_total_norm(gradients, foreach=foreach))
    loss_value, norm_value, *shares = torch.stack([loss, norm.to(loss), *parts]).tolist()
    problem = _problem(loss_value, norm_value, model, numerics)
    judged = (skipping or Skipping(training)).judge(loss_value, norm_value, problem)
    if judged.stops:
        where = f"step {step}, arm {arm!r}{_whose(each[:, 0])}"
        raise NonFiniteError(
            f"{where}: {judged.reason}; the weights were not updated. {_what_to_try(numerics)}"
        )
    named = dict(zip(() if teacher is None else teacher.parts, shares, strict=True))
    if judged.reason:
        if numerics.scaler is not None:
            numerics.scaler.update()
        return StepOutcome(
            loss_value, norm_value, batch.input_ids.numel(), True, judged.reason, named
        )
    if training.clip:
        nn.utils.clip_grads_with_norm_(model.parameters(), training.clip, norm, foreach=foreach)
    skipped = _update(optimizer, numerics)
    return StepOutcome(loss_value, norm_value, batch.input_ids.numel(), skipped, parts=named)


def micro_batches(batch: Batch, rows: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """``(input_ids, labels, document_ids)`` in pieces of at most ``rows`` rows; None: one piece."""
    total = batch.input_ids.shape[0]
    rows = rows or total
    for start in range(0, total, rows):
        part = slice(start, start + rows)
        documents = None if batch.document_ids is None else batch.document_ids[part]
        yield batch.input_ids[part], batch.labels[part], documents


def _backward(
    model: nn.Module,
    batch: Batch,
    training: Training,
    numerics: Numerics,
    scored: int,
    teacher: Teacher | Aligner | None,
) -> Tensor:
    """Accumulate gradients over the micro-batches; returns what every process (here one) adds to
    the batch's loss, float32 ``[processes, 1]``.

    With a teacher its parts follow: of one that has logits the divergence and the cross-entropy.
    """
    device = numerics.device
    total = torch.zeros(1 if teacher is None else 1 + len(teacher.parts), device=device)
    pieces = list(micro_batches(numerics.share(batch), training.micro_batch_size))
    captured = numerics.captured
    if captured is not None and teacher is None and captured.takes(pieces):
        return captured.backward(model, pieces, scored).reshape(1, 1)
    for number, piece in enumerate(pieces, 1):
        input_ids, labels, documents = (None if x is None else x.to(device) for x in piece)
        assert input_ids is not None
        assert labels is not None
        with synchronised(model, number == len(pieces)):
            with numerics.autocast(), numerics.context():
                wanted = (
                    summed_cross_entropy(labels)
                    if teacher is None
                    else teacher.loss(input_ids, documents, labels)
                )
                found = ask(model, input_ids, documents, wanted)
            loss, *parts = found if found.dim() else (found,)
            loss = loss / scored
            (loss if numerics.scaler is None else numerics.scaler.scale(loss)).backward()
        total += torch.stack([loss.detach(), *(part / scored for part in parts)])
    return numerics.processes.gathered(total)


def _update(optimizer: torch.optim.Optimizer, numerics: Numerics) -> bool:
    """Move the weights; True when float16's scaler refused to."""
    scaler = numerics.scaler
    if scaler is None:
        optimizer.step()
        return False
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() < before


def _problem(loss: float, norm: float, model: nn.Module, numerics: Numerics) -> str:
    """What is not finite, in words; empty where nothing is, or the scaler can mend it."""
    if not _finite(loss):
        return f"the loss is {loss}"
    scaler = numerics.scaler
    if _finite(norm) or (scaler is not None and scaler.get_scale() >= _SMALLEST_LOSS_SCALE):
        return ""  # an overflow of the scaled gradients: the scaler skips this update by itself
    culprits = [
        name
        for name, parameter in unwrapped(model).named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(whole(parameter.grad)).all())
    ]
    if not culprits:
        return f"the gradients' norm is {norm}, though each gradient is finite"
    more = f" (and those of {len(culprits) - 1} more parameters)" if len(culprits) > 1 else ""
    return f"the gradient of {culprits[0]} is not finite{more}"


def _whose(losses: Tensor) -> str:
    """Which processes' ``losses`` ``[processes]`` are not finite; nothing where there is one."""
    bad = [str(rank) for rank, loss in enumerate(losses.tolist()) if not _finite(loss)]
    several = len(losses) > 1 and bad
    return f", process {' and '.join(bad)} of {len(losses)}" if several else ""


def _what_to_try(numerics: Numerics) -> str:
    tries = [
        "lower training.learning_rate",
        "raise training.warmup_steps",
        "lower training.clip",
    ]
    if numerics.autocast_dtype is torch.float16:
        tries.insert(0, "set training.precision to bf16 or fp32")
    elif numerics.autocast_dtype is torch.bfloat16:
        tries.append("set training.precision to fp32")
    return f"Try: {'; '.join(tries)}. The last checkpoint is kept."


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
