"""Cases of ``ops``: the model's cross-head interaction and its projection, forward and backward.

eager      the equations, plain autograd
fused      by hand (``backend="chunked"``)
native     in C, on a CPU with a compiler
compiled   the equations through torch.compile, from ``COMPILED_FROM`` tokens on, where operators
           are all that was asked for: the first compilation takes half a minute
triton     the fused kernels, on CUDA
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.bench import roofline
from wuneng.bench.draws import generator_on, normal
from wuneng.bench.engine import Case, Missing, Prepared
from wuneng.bench.gate import GateResult, judge, relative_error
from wuneng.bench.memory import tensor_bytes
from wuneng.bench.shapes import OperatorShapes
from wuneng.ops import native

__all__ = ["COMPILED_FROM", "fusion_cases"]

#: Compiling takes as long as thousands of calls; no short length is worth the wait.
COMPILED_FROM = 256
Fuse = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def fusion_cases(shapes: OperatorShapes, config: Any, compiled: bool) -> list[Case]:
    """One case for each way to compute it, at the model's own numbers of heads."""
    return [_case(shapes, config, arm) for arm in _arms(shapes, config.cross_head, compiled)]


def _arms(shapes: OperatorShapes, kind: str, compiled: bool) -> Iterator[str]:
    yield "eager"
    if kind == "none":
        return  # nothing but a product with lambda
    yield "fused"
    if shapes.device.type == "cpu" and native.library(shapes.size) is not None:
        yield "native"
    if compiled and shapes.tokens >= COMPILED_FROM:
        yield "compiled"
    if shapes.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        yield "triton"


def _case(shapes: OperatorShapes, config: Any, arm: str) -> Case:
    row = shapes.row("fusion", arm)

    def prepare() -> Prepared:
        layer = _layer(shapes, config, shapes.dtype)
        fuse, leaves = _fuse(layer, arm), list(layer.parameters())
        sets = [_inputs(shapes, config, seed) for seed in range(shapes.sets(2))]
        grads = [torch.ones_like(x) for x in fuse(*sets[0])]
        for x in (x for own in sets for x in own):
            x.requires_grad_()

        def both(index: int) -> Any:
            own = sets[index % len(sets)]
            return torch.autograd.grad(fuse(*own), [*own, *leaves], grads)

        return Prepared(both, tensor_bytes(*sets[0], *leaves, *grads))

    work = roofline.fusion(config, shapes.batch, shapes.tokens, shapes.element)
    return Case(
        row,
        shapes.batch * shapes.tokens,
        work,
        prepare,
        lambda: _gate(row, shapes, config, arm),
        int(work.bytes),
    )


def _layer(shapes: OperatorShapes, config: Any, dtype: torch.dtype) -> Any:
    from wuneng.kinds import load_kind

    built = load_kind("middle", config.cross_head)(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in built.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) / config.hidden_size**0.5
        parameter.data.copy_(drawn)
    return built.to(shapes.device, dtype)


def _fuse(layer: Any, arm: str) -> Fuse:
    if not layer.mixes:
        return layer
    backend = {"fused": "chunked", "native": "native", "triton": "triton"}.get(arm, "reference")

    def fuse(A: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        attention, branch = layer.interaction(A, R, backend)
        return attention, layer.branch_proj(branch)

    return _Compiled(fuse) if arm == "compiled" else fuse


class _Compiled:
    """torch.compile of a function; where no compiler works, the first call raises Missing."""

    def __init__(self, function: Fuse) -> None:
        self.call: Fuse = torch.compile(function, dynamic=False)
        self.works = False

    def __call__(self, A: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        if self.works:
            return self.call(A, R)
        try:
            outputs = self.call(A, R)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0][:160]
            raise Missing(f"torch.compile does not work here: {reason}") from error
        self.works = True
        return outputs


def _inputs(shapes: OperatorShapes, config: Any, seed: int) -> list[Tensor]:
    generator = generator_on(shapes.device, seed)
    lead = (shapes.batch, shapes.tokens)
    width = config.num_attention_heads * config.head_dim
    A = normal((*lead, width), generator)
    R = normal((*lead, config.num_state_heads, config.state_head_dim), generator)
    return [x.to(shapes.device, shapes.dtype) for x in (A, R)]


def _gate(row: Any, shapes: OperatorShapes, config: Any, arm: str) -> GateResult:
    """Outputs, and gradients relative to the largest of all: where a group is one head, the
    norm undoes the mix and that gradient is a small difference of large terms."""
    layer, exact = (_layer(shapes, config, dtype) for dtype in (shapes.dtype, torch.float64))
    inputs = _inputs(shapes, config, 0)
    found = _outputs_and_gradients(_fuse(layer, arm), layer, inputs)
    expected = _outputs_and_gradients(_fuse(exact, "eager"), exact, [x.double() for x in inputs])
    largest = max(float(x.abs().max()) for x in expected[1].values())
    errors = {
        name: relative_error(x, y)
        for name, x, y in zip(("attention", "branch"), found[0], expected[0], strict=True)
    }
    for name, y in expected[1].items():
        difference = float((found[1][name].double() - y).abs().max()) / largest
        errors[f"gradient of {name}"] = difference if difference == difference else float("inf")
    return judge(row, errors, shapes.dtype, gradients=True)


def _outputs_and_gradients(
    fuse: Fuse, layer: nn.Module, inputs: list[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    leaves = {"A": inputs[0].detach(), "R": inputs[1].detach()}
    for x in leaves.values():
        x.requires_grad_()
    outputs = fuse(leaves["A"], leaves["R"])
    leaves |= dict(layer.named_parameters())
    generator = generator_on(outputs[0].device, 1)
    seeds = [normal(x.shape, generator).to(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), seeds)
    return [x.detach() for x in outputs], dict(zip(leaves, gradients, strict=True))
