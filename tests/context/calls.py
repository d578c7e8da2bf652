"""Calls of a small model in two groups of two ranks, and what each of them answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from tests.context.cases import IGNORED, Case, arm, batch
from wuneng import WuNengCache
from wuneng.controls.names import Control
from wuneng.controls.switch import controlled
from wuneng.distributed.processes import Processes
from wuneng.kinds import register
from wuneng.layers.middle.gated import Gated
from wuneng.layers.state.rwkv7 import RWKV7
from wuneng.ops import wkv7
from wuneng.ops.context import context_parallel, piece_of, sum_gradients

FIRST_OF_SECOND = 27  # of 53 tokens on two ranks


def given(**changes: Any) -> dict[str, Any]:
    """The whole batch with labels as transformers takes them, and packed documents."""
    whole = batch()
    labels = whole["input_ids"].clone()
    labels[0, 3:9] = IGNORED
    kept = {"input_ids": whole["input_ids"], "labels": labels}
    return kept | {"document_ids": whole["document_ids"], "use_cache": False} | changes


def _positions() -> Tensor:
    documents = batch()["document_ids"]
    places = [(documents[:, : t + 1] == documents[:, t : t + 1]).sum(1) - 1 for t in range(53)]
    return torch.stack(places, 1)


def _only_across_the_cut() -> Tensor:
    """One label alone: what the last token of the first rank is to predict."""
    labels = torch.full((2, 53), IGNORED)
    labels[1, FIRST_OF_SECOND] = 7
    return labels


def _starts_at_the_cut() -> Tensor:
    return (torch.arange(53) >= FIRST_OF_SECOND).long().expand(2, -1)


#: Of the packed batch: how the model is called otherwise.
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "labels": given,
    "a label across the cut": lambda: given(labels=_only_across_the_cut()),
    "shift_labels": lambda: given(labels=None, shift_labels=batch()["shifted"]),
    "num_items_in_batch": lambda: given(num_items_in_batch=torch.tensor(1000)),
    "ignore_index": lambda: given(labels=batch()["input_ids"], ignore_index=7),
    "seq_idx": lambda: given(document_ids=None, seq_idx=batch()["document_ids"]),
    "restarting position_ids": lambda: given(document_ids=None, position_ids=_positions()),
    "a mask without pads": lambda: given(attention_mask=torch.ones(2, 53)),
    "documents that start at the cut": lambda: given(document_ids=_starts_at_the_cut()),
}


def answer(call: dict[str, Any], group: Any = None, *, again: bool = False) -> dict[str, Tensor]:
    """Logits, loss and gradients in float32; ``again``: with activation checkpointing."""
    model = Case(arm("wuneng"), dtype=torch.float32).model()
    if again:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    with nullcontext() if group is None else context_parallel(group):
        out = model(**(call if group is None else piece_of(call, group)))
    out.loss.backward()
    if group is not None:
        sum_gradients(model.parameters(), group)
    gradients = {f"d {name}": p.grad for name, p in model.named_parameters()}
    return {"loss": out.loss.detach(), "logits": out.logits.detach(), **gradients}


def halved(group: Any = None) -> Tensor:
    """Logits under autocast to bfloat16."""
    model, call = Case(arm("wuneng"), dtype=torch.float32).model(), given(labels=None)
    call = call if group is None else piece_of(call, group)
    cut = nullcontext() if group is None else context_parallel(group)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), cut:
        return model(**call).logits.float()


class Unsaid(RWKV7):
    """A kind from elsewhere that does not say what it can."""


class UnsaidMiddle(Gated):
    """The same, between the heads."""


def _generate(model: Any, call: dict[str, Any]) -> None:
    model.generate(call["input_ids"], max_new_tokens=1)


def _replaced(model: Any, call: dict[str, Any]) -> None:
    model.model.layers[1].state_heads.recurrence = wkv7
    model(**call)


def _controlled(model: Any, call: dict[str, Any]) -> None:
    with controlled(model, Control("permute")):
        model(**call)


def _of_kind(**fields: Any) -> Callable[[Any, dict[str, Any]], Any]:
    def run(model: Any, call: dict[str, Any]) -> None:
        Case(arm("wuneng") | fields, dtype=torch.float32).model()(**call)

    return run


def _with(**changes: Any) -> Callable[[Any, dict[str, Any]], Any]:
    return lambda model, call: model(**(call | changes))


def _on_the_first_rank(name: str) -> Callable[[Any, dict[str, Any]], Any]:
    def run(model: Any, call: dict[str, Any]) -> None:
        model(**(call if dist.get_rank() % 2 == 0 else call | {name: None}))

    return run


def _fewer_rows(model: Any, call: dict[str, Any]) -> None:
    rows = 2 - dist.get_rank() % 2
    model(input_ids=call["input_ids"][:rows])


#: Each is refused on both ranks, with these words.
REFUSED: dict[str, tuple[Callable[[Any, dict[str, Any]], Any], str]] = {
    "a cache": (
        lambda model, call: model(call["input_ids"], past_key_values=WuNengCache(model.config)),
        "a cache cannot be cut",
    ),
    "use_cache": (_with(use_cache=True), "use_cache=True"),
    "generate": (_generate, "generate() runs in one process"),
    "pads": (
        lambda model, call: model(
            call["input_ids"], attention_mask=(call["input_ids"] != call["input_ids"][0, 0]).long()
        ),
        "attention_mask has pads",
    ),
    "a mask of pairs": (
        lambda model, call: model(
            call["input_ids"], attention_mask=torch.ones((2, 1, *2 * call["input_ids"].shape[1:]))
        ),
        "a mask of pairs cannot be cut",
    ),
    "cu_seq_lens_q": (
        _with(document_ids=None, cu_seq_lens_q=torch.tensor([0, 54])),
        "cu_seq_lens_q cannot be cut; give document_ids",
    ),
    "logits_to_keep": (_with(logits_to_keep=1), "logits_to_keep counts the positions of a whole"),
    "flex_attention": (_of_kind(attn_implementation="flex_attention"), "got 'flex_attention'"),
    "a state kind": (_of_kind(state_kind="unsaid"), "state_kind 'unsaid' (tests.context.calls.Un"),
    "a middle kind": (_of_kind(cross_head="unsaid"), "cross_head 'unsaid' (tests.context.calls.U"),
    "another recurrence": (_replaced, "the state's recurrence is replaced"),
    "a control": (_controlled, "a control of the state needs whole sequences"),
    "documents of one rank": (
        _on_the_first_rank("document_ids"),
        "expected the same document_ids on every rank, or on none, got rank 0 has document_ids",
    ),
    "labels of one rank": (_on_the_first_rank("labels"), "got rank 0 has labels of 2 ranks"),
    "rows": (_fewer_rows, "expected the same rows on every rank, got 2 on rank 0, 1 on rank 1"),
    "no tokens": (
        lambda model, call: model(call["input_ids"][:, : 9 * (1 - dist.get_rank() % 2)]),
        "every rank needs a token or more, got pieces of [9, 0]",
    ),
    "a mesh of two dimensions": (
        lambda model, call: context_parallel(_mesh()).__enter__(),
        "expected a process group or a device mesh of one dimension",
    ),
    "another's group": (
        lambda model, call: context_parallel(dist.GroupMember.NON_GROUP_MEMBER).__enter__(),
        "this process is not in the group",
    ),
}


def _mesh() -> Any:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "context"))


def _refusal(run: Callable[[Any, dict[str, Any]], Any], group: Any) -> str:
    model = Case(arm("wuneng"), dtype=torch.float32).model()
    with context_parallel(group):
        try:
            run(model, piece_of(given(), group))
        except ValueError as error:
            return str(error)
    return "not refused"


def answers(processes: Processes) -> dict[str, Any]:
    """Every call and every refusal in this one of ``processes``."""
    register("state", "unsaid")(Unsaid)
    register("middle", "unsaid")(UnsaidMiddle)
    mesh = _mesh()["context"]
    alone = [dist.new_group([rank]) for rank in range(processes.size)]
    return {
        "calls": {name: answer(call(), mesh) for name, call in CALLS.items()},
        "checkpointed": answer(given(), mesh, again=True),
        "alone": answer(given(), alone[processes.rank]),
        "bfloat16": halved(mesh),
        "refused": {name: _refusal(run, mesh) for name, (run, _) in REFUSED.items()},
    }
