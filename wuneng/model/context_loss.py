"""The loss of a sequence that is cut in pieces: of labels, the mean over all that are scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wuneng.model.context_call import agreed
from wuneng.ops.context import Context, gather_integers, summed_over_ranks
from wuneng.ops.linear_cross_entropy import IGNORED


def refuse_head_arguments(
    context: Context,
    device: torch.device,
    use_cache: bool | None,
    logits_to_keep: int | Tensor,
    labels: Tensor | None,
    shift_labels: Tensor | None,
) -> None:
    """Refuse what a head is asked for and pieces cannot give; a collective call.

    Raises:
        ValueError: a cache, or some of a sequence's logits; on every rank unless all were given
            ``labels``, or ``shift_labels``, or none.
    """
    if use_cache:
        raise ValueError("context_parallel: use_cache=True, but a cache cannot be cut")
    if not isinstance(logits_to_keep, int) or logits_to_keep:
        raise ValueError(
            "context_parallel: logits_to_keep counts the positions of a whole sequence; leave it "
            "out to get those of this rank's piece"
        )
    given = {"labels": labels is not None, "shift_labels": shift_labels is not None}
    agreed(context, device, given)


def loss_of_piece(
    context: Context,
    loss_function: Callable[..., Tensor],
    logits: Any,
    labels: Tensor | None,
    arguments: dict[str, Any],
) -> Tensor:
    """The whole sequence's loss on every rank, whose gradient is this rank's share.

    Args:
        loss_function: transformers', of logits ``[B, T, vocab]`` of this rank.
        labels: ``[B, T]``, not shifted: a piece's last token has the next piece's first label.
        arguments: of the loss; ``shift_labels`` ``[B, T]`` in place of labels.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    ignored = given.get("ignore_index", IGNORED)
    shifted = given.pop("shift_labels", None)
    if shifted is None:
        assert labels is not None
        first = gather_integers(labels[:, 0].long(), context)
        after = context.rank + 1
        last = first[after] if after < context.ranks else torch.full_like(first[0], ignored)
        shifted = torch.cat([labels[:, 1:], last[:, None].to(labels)], dim=1)
    scored = given.pop("num_items_in_batch", None)
    if scored is None:
        scored = gather_integers((shifted != ignored).sum()[None], context).sum()
    share = loss_function(
        logits=logits, labels=None, shift_labels=shifted, num_items_in_batch=scored, **given
    )
    return summed_over_ranks(share, context)
