"""``using("reference")`` is the plain formula everywhere: no fast path runs, in a whole model."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.small import plainly, small_model
from tests.ops.fast_paths import (
    BEHIND_TRITON_PATHS,
    CPU_PATHS,
    FLA_PATH,
    LOADERS,
    TRITON_PATHS,
    FastPath,
    PoisonedError,
    poisoned,
)
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengForCausalLM
from wuneng.model.call_arguments import cache_of
from wuneng.ops import native, using
from wuneng.ops.linear_cross_entropy import linear_cross_entropy

HAS_COMPILER = native.library(16) is not None
HAS_TRITON = importlib.util.find_spec("triton") is not None
IDS = torch.randint(1, 61, (2, 24), generator=torch.Generator().manual_seed(1))
VARIANTS = ["default", "concat", "additive", "snapshots", "pre-shift-own", "own-removal-key"]
VARIANTS += ["gate-and-value-residual", "rwkv-ffn", "paper", "pure-rwkv7", "mha-shift"]


def model_of(variant: str) -> WuNengForCausalLM:
    sizes = {"state_head_dim": 16} if variant == "pure-rwkv7" else {}
    return small_model(variant, hidden_size=64, **sizes)


def all_paths() -> Iterator[str]:
    yield from LOADERS
    yield from (path.where for path in CPU_PATHS)
    yield FLA_PATH
    if HAS_TRITON:
        yield from TRITON_PATHS.values()


def gradient(model: WuNengForCausalLM) -> dict[str, Tensor]:
    """Logits, and the gradient of every parameter."""
    model.zero_grad()
    found: list[Tensor] = []

    def of_head(hidden: Tensor, head: Any) -> Tensor:
        found.append(head(hidden).detach())
        rows, labels = hidden[:, :-1], IDS[:, 1:]
        return linear_cross_entropy(rows, head.weight, labels, whole_bytes=0) / labels.numel()

    model(IDS, use_cache=False, head_loss=of_head).loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"logits": found[0], **gradients}


@torch.no_grad()
def prefill(model: WuNengForCausalLM) -> dict[str, Tensor]:
    return {"prefill": model(IDS, use_cache=False).logits}


@torch.no_grad()
def decode(model: WuNengForCausalLM) -> dict[str, Tensor]:
    """Left-padded prompts, then token by token."""
    out, logits = model(IDS[:, :18], use_cache=True), []
    for token in IDS[:, 18:].split(1, dim=1):
        out = model(token, past_key_values=cache_of(out), use_cache=True)
        logits.append(out.logits)
    mask = torch.ones_like(IDS[:, :9])
    mask[0, :4] = 0
    padded = model(IDS[:, :9], attention_mask=mask).logits
    return {"decoded": torch.cat(logits, 1), "padded": padded[:, 4:]}


def generate(model: WuNengForCausalLM) -> dict[str, Tensor]:
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(IDS)
    return {"ids": model.generate(IDS, attention_mask=mask, pad_token_id=0, **settings)}


ACTIONS = {"gradient": gradient, "prefill": prefill, "decode": decode}


def computed(model: WuNengForCausalLM) -> dict[str, Tensor]:
    return {**gradient(model), **prefill(model), **decode(model)}


def everything(model: WuNengForCausalLM) -> dict[str, Tensor]:
    return {**computed(model), **generate(model)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_every_fast_path_poisoned_the_reference_still_answers(variant: str) -> None:
    model = model_of(variant)
    with using("reference"):
        expected = everything(model)
        with poisoned(*all_paths()):
            found = everything(model)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_taken_unasked_is_as_exact(variant: str) -> None:
    model = model_of(variant)
    with using("reference"):
        ids = generate(model)["ids"]
    assert torch.equal(generate(model)["ids"], ids)
    sides = plainly(model, computed)
    assert_as_exact(computed(model), *sides, floor=CHUNKED_FLOOR)


@pytest.mark.parametrize("path", CPU_PATHS, ids=str)
def test_each_fast_path_is_taken_where_it_is_listed(path: FastPath) -> None:
    if path.compiled and not HAS_COMPILER:
        pytest.skip("no C compiler on this machine")
    model = model_of(path.variant)
    if path.watched:
        watch(model)
    run = ACTIONS[path.action]
    with poisoned(path.where):
        with pytest.raises(PoisonedError), using(path.backend) if path.backend else nullcontext():
            run(model)
        with using("reference"):
            run(model)


def watch(model: WuNengForCausalLM) -> None:
    for block in model.model.layers:
        block.state_heads.readout.register_forward_hook(lambda *_: None)


class _Ours(TorchDispatchMode):
    """Fails on an operator that this package has registered."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.namespace != "wuneng", func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_is_made_of_torchs_own_operations(variant: str) -> None:
    """Whether or not the list above is complete."""
    model = model_of(variant)
    with using("reference"), _Ours():
        loss = model(IDS, labels=IDS, use_cache=False).loss
        waiting, seen = [loss.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            assert not isinstance(node, BackwardCFunction), f"{node} is differentiated by hand"
            waiting += [following for following, _ in node.next_functions]
        assert len(seen) > 100
        loss.backward()
        decode(model)


def test_the_list_of_fast_paths_is_complete(repository: Path) -> None:
    """Each module that has an operator of its own, a backward by hand or a call into C is in it."""
    wheres = (*(path.where for path in CPU_PATHS), *TRITON_PATHS.values())
    listed = {where.split(":")[0] for where in wheres} | BEHIND_TRITON_PATHS
    found = set()
    for path in (repository / "wuneng").rglob("*.py"):
        module = ".".join(path.relative_to(repository / "wuneng").with_suffix("").parts)
        if any(_is_fast(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
            found.add(module)
    assert found, "nothing found: the search is broken"
    assert all(module.startswith("ops.") for module in found), found
    found.discard("ops.context.collectives")  # moves numbers between processes, computes none
    assert {module.removeprefix("ops.") for module in found} <= listed


def _is_fast(node: ast.AST) -> bool:
    if isinstance(node, ast.ClassDef):
        return any(ast.unparse(base).endswith("autograd.Function") for base in node.bases)
    if isinstance(node, ast.FunctionDef):
        decorators = [ast.unparse(d) for d in node.decorator_list]
        return any("custom_op" in d or "triton_op" in d for d in decorators)
    return isinstance(node, ast.Attribute) and node.attr == "restype"
