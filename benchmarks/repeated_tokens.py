"""How far WKV-7 implementations are off on runs of identical tokens, against float64.

    python -m benchmarks.repeated_tokens [--out benchmarks/repeated_tokens.json]

Text is full of such runs (padding, white space, rules in tables), and a chunked delta rule has to
invert I - A there with every entry of A near 1: an inverse that forms powers of A loses it all.
Compared are our backends and, where it can be imported, flash-linear-attention's ``chunk_rwkv7``.
A sequence is a number of runs, one after the other; inputs are float32. With a GPU the kernels run
on it; without one they run in Triton's interpreter, which takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton

NAMES = ("r", "w", "k", "v", "a", "b")
TOKENS, RUNS = 160, (1, 8, 16, 40, 80, 160)
RATE, LOG_DECAY, SIZE = 0.9, -0.01, 64

# What fla 0.6.0's layers/rwkv7.py passes. They choose its fast inverse (a Neumann series in float16
# on 16-blocks); without them it inverts by forward substitution.
LAYER_OPTIONS = {"safe_gate": True, "lower_bound": -0.6065306597126334, "chunk_size": 64}

Operator = Callable[..., tuple[Tensor, Tensor]]


def inputs(run: int, seed: int = 0) -> list[Tensor]:
    """Six inputs ``[1, TOKENS, 1, SIZE]`` float64, float32 values: runs of ``run`` equal tokens."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, TOKENS // run, 1, SIZE)
    r, k, v, kappa = (
        torch.randn(shape, generator=generator, dtype=torch.float64).repeat_interleave(run, dim=1)
        for _ in range(4)
    )
    kappa = F.normalize(kappa, dim=-1)
    w = torch.full_like(r, LOG_DECAY)
    return [x.float().double() for x in (r, w, 0.3 * k, v, -kappa, RATE * kappa)]


def our_operators() -> Iterator[tuple[str, Operator]]:
    """Backends of this package: ``wkv7(r, w, k, v, a, b) -> (y, state [value, key])``. The C
    kernels are a CPU's."""
    from wuneng.ops import native, wkv7

    names = ["chunked"] + (["native"] if not ON_GPU and native.library(SIZE) else [])
    try:
        import_module("triton")
        names.append("triton")
    except ImportError:
        print("triton is not installed: backend 'triton' is left out")
    for name in names:
        yield f"wuneng {name}", lambda *six, name=name: wkv7(*six, backend=name)


def peer_operators() -> Iterator[tuple[str, Operator]]:
    """flash-linear-attention's chunked operator, if it is there; its state is [key, value]."""
    try:
        if not ON_GPU:
            keep_one_configuration()
        chunk_rwkv7 = import_module("fla.ops.rwkv7").chunk_rwkv7
        if not ON_GPU:
            make_ready_for_the_interpreter()
        version = metadata.version("flash-linear-attention")
    except ImportError as error:
        print(f"flash-linear-attention is left out: {error}")
        return

    def called(**options: Any) -> Operator:
        def operator(*six: Tensor) -> tuple[Tensor, Tensor]:
            y, state = chunk_rwkv7(*six, output_final_state=True, **options)
            return y, state.transpose(-1, -2)

        return operator

    name = f"flash-linear-attention {version} chunk_rwkv7"
    yield f"{name}, as its RWKV-7 layer calls it", called(**LAYER_OPTIONS)
    yield f"{name}, default arguments", called()


def keep_one_configuration() -> None:
    """Triton's autotuner times configurations on a driver; the interpreter has none to ask."""
    triton = import_module("triton")
    original = triton.autotune

    def autotune(configs: list[Any], *arguments: Any, **options: Any) -> Any:
        return original(configs[:1], *arguments, **options)

    triton.autotune = autotune


def make_ready_for_the_interpreter() -> None:
    """Give fla's kernels two names the interpreter does not: their arithmetic stays as it is.

    They hold their own reference to tl.gather, past the interpreter's replacement; and they call
    ``.to`` on loop counters, which are tensors when compiled but plain integers in the interpreter.
    """
    language = import_module("triton.language")
    as_tensor = import_module("triton.runtime.interpreter")._implicit_cvt
    original = language.gather

    def gather(*arguments: Any, **options: Any) -> Any:
        return language.gather(*arguments, **options)

    def counters(*bounds: Any) -> Iterator[Any]:
        return (as_tensor(index) for index in range(*(int(bound) for bound in bounds)))

    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops.generalized_delta_rule.dplr"):
            module.range = counters  # type: ignore[attr-defined]
            if getattr(module, "gather", None) is original:
                module.gather = gather  # type: ignore[attr-defined]


def results(operator: Operator, six: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """y, state and the six gradients of a fixed scalar."""
    leaves = [x.detach().requires_grad_() for x in six]
    outputs = operator(*leaves)
    total = sum((x * g).sum() for x, g in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(total, leaves)]


def errors(operator: Operator, run: int) -> dict[str, float]:
    """Relative error of y, the state and every gradient at one run length."""
    from wuneng.ops import wkv7

    exact = inputs(run)
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(shape, generator=generator).double()
        for shape in (exact[0].shape, (1, 1, SIZE, SIZE))
    ]
    expected = results(lambda *six: wkv7(*six, backend="reference"), exact, weights)
    device = "cuda" if ON_GPU else "cpu"
    tested = results(
        operator,
        [x.float().to(device) for x in exact],
        [x.float().to(device) for x in weights],
    )
    names = ("y", "state", *("d" + name for name in NAMES))
    return {
        name: float((x.detach().cpu().double() - y).norm() / y.norm())
        for name, x, y in zip(names, tested, expected, strict=True)
    }


def environment() -> dict[str, str]:
    """Where the figures come from."""
    versions = {}
    for package in ("torch", "triton", "flash-linear-attention"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    device = torch.cuda.get_device_name(0) if ON_GPU else f"{platform.machine()} CPU, interpreter"
    return {"device": device, "python": platform.python_version(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    record: dict[str, Any] = {"environment": environment(), "rate": RATE, "log_decay": LOG_DECAY}
    record |= {"size": SIZE, "tokens": TOKENS, "relative_error": {}}
    for name, operator in [*our_operators(), *peer_operators()]:
        print(f"\n{name}: relative error against float64")
        record["relative_error"][name] = {}
        for run in RUNS:
            found = errors(operator, run)
            record["relative_error"][name][run] = found
            print(f"  run {run:3d}  " + "  ".join(f"{n} {x:.1e}" for n, x in found.items()))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
