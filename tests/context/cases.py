"""Small models of every wiring and arm over one batch, whole and in pieces."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tests.model.ropes import SCALED
from tests.model.small import BASE, OTHER_KINDS, VARIANTS, disturbed
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.built_in_arms import BUILT_IN_ARMS
from wuneng.distributed.processes import Processes
from wuneng.model.head_loss import summed_cross_entropy
from wuneng.ops.context import context_parallel, piece_of, sum_gradients

#: Not a multiple of 2 or 4: pieces differ in length. Snapshots lie at 16, 32 and 48.
TOKENS = 53
#: Documents of two rows: one that ends within a piece, one of a single token, one that ends where
#: the second of four pieces does (27) and one over several pieces; a document across all cuts.
STARTS = ((0, 5, 6, 27, 30), (0, 47))
IGNORED = -100


#: Wirings that no built-in arm has.
WIRINGS = (
    "more-state-than-attention",
    "gqa-qk-norm-bias",
    "value-from-output",
    "shift-on-k",
    "pre-shift",
    "gate-and-value-residual",
    "sliding-second-layer",
    "four-norms-soft-caps",
    "rwkv-ffn",
    "pure-rwkv7",
    "paper",
    "short-conv",
)


class Case(NamedTuple):
    """A model and what it is called with."""

    fields: dict[str, Any]
    packed: bool = False
    ranks: int = 4
    dtype: torch.dtype = torch.float64
    tokens: int = TOKENS

    def model(self) -> WuNengForCausalLM:
        torch.manual_seed(0)
        model = WuNengForCausalLM(WuNengConfig(**(BASE | self.fields)))
        return disturbed(model.eval()).to(self.dtype)


def arm(name: str) -> dict[str, Any]:
    """The fields of a built-in arm, of a model that has snapshots."""
    base = WuNengConfig(**BASE, snapshots=2)
    return {"snapshots": 2, **BUILT_IN_ARMS[name].changes(base)}


def cases() -> dict[str, Case]:
    """By name: every arm packed on four ranks and whole on two, further wirings, four in
    float32."""
    found = {}
    for name in BUILT_IN_ARMS:
        found[f"{name} packed 4"] = Case(arm(name), packed=True)
        layers = {} if name in ("interleaved", "rwkv7") else {"num_hidden_layers": 1}
        found[f"{name} whole 2"] = Case(arm(name) | layers, ranks=2)
    for number, name in enumerate(WIRINGS):
        packed = number % 2 == 1
        found[f"{name} wiring"] = Case((VARIANTS | OTHER_KINDS)[name], packed, 4 - 2 * packed)
    scaled = {"rope_parameters": SCALED["dynamic"], "max_position_embeddings": 16}
    found["dynamic rope"] = Case({"num_state_heads": 0, "num_hidden_layers": 1} | scaled)
    # Its softmax is float32 whatever the model is, and rounds rows of another length otherwise.
    eager = {"sliding_window": 6, "attn_implementation": "eager"}
    found["eager"] = Case(eager, packed=True, dtype=torch.float32)
    found["pieces shorter than a convolution"] = Case(arm("kda"), tokens=5)
    for name in ("wuneng", "rwkv7", "kda"):
        found[f"{name} float32"] = Case(arm(name), packed=True, dtype=torch.float32)
    return found


def batch(tokens: int = TOKENS) -> dict[str, Tensor]:
    """Ids, labels (already shifted, some of them not scored) and documents ``[2, tokens]``."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, BASE["vocab_size"], (2, TOKENS + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0, 3:9] = IGNORED
    documents = torch.zeros(2, TOKENS, dtype=torch.long)
    for row, starts in enumerate(STARTS):
        for start in starts:
            documents[row, start:] += 1
    whole = {"input_ids": ids[:, :-1], "shifted": labels, "document_ids": documents}
    return {name: x[:, :tokens] for name, x in whole.items()}


def computed(case: Case, group: Any = None, *, widened: bool = False) -> dict[str, Tensor]:
    """Logits, loss and gradients: of one process, or of this rank and its group; ``widened``: in
    float64, of the case's own weights."""
    given = batch(case.tokens)
    scored = (given["shifted"] != IGNORED).sum()
    if not case.packed:
        del given["document_ids"]
    if group is not None:
        given = piece_of(given, group)
    labels, model = given.pop("shifted"), case.model()
    model = model.double() if widened else model
    with nullcontext() if group is None else context_parallel(group):
        kept: dict[str, Tensor] = {}

        def loss(hidden: Tensor, head: Any) -> Tensor:
            kept["logits"] = head(hidden)
            return summed_cross_entropy(labels)(hidden, head) / scored

        share = model(**given, use_cache=False, head_loss=loss).loss
    share.backward()
    total = share.detach().clone()
    if group is not None:
        sum_gradients(model.parameters(), group)
        dist.all_reduce(total, group=group)
    gradients = {f"d {name}": p.grad for name, p in model.named_parameters()}
    return {"loss": total, "logits": kept["logits"].detach(), **gradients}


def pieces(processes: Processes) -> dict[str, dict[str, Tensor]]:
    """Every case in this one of ``processes``."""
    pair = dist.new_group([0, 1])
    groups = {2: pair, 4: dist.group.WORLD}
    found = {}
    for name, case in cases().items():
        if processes.rank < case.ranks:
            found[name] = computed(case, groups[case.ranks])
    return found
