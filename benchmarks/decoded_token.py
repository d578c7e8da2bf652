"""A decoded token in one call through all layers, and module by module, beside each other.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.decoded_token --out benchmarks/decoded_token.json

Both ways of all arms are timed in turn, in one process: a busy machine is busy for all of them.
The arms have as many parameters each, and heads of 64; beside ``wuneng`` and ``mha`` there may be
any built-in one, and ``text``, wired as ``recipes/text.yaml``. With one thread it is processor time
that is measured, without what other processes take; with more it is the clock. ``gained`` says how
many times as fast as its modules an arm is, ``of_mha`` how fast beside ``mha`` the same way;
``roof`` is the share of the best copy of 128 MiB in that run, by the same clock: weights and cache
once a token. Each arm is checked against its reference first (``gates``). ``--compiled`` adds
torch.compile's way (Inductor, one graph, a static cache, :mod:`benchmarks.static_token`), which is
not timed unless it chooses the modules' tokens; ``compile_seconds`` is what its first call took by
the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.gated import gated
from benchmarks.static_token import StaticStep
from wuneng.bench.architectures import Architecture
from wuneng.bench.machine import load_average
from wuneng.bench.models import ModelStore, decode_case
from wuneng.built_in_arms import BUILT_IN_ARMS
from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.device import environment
from wuneng.errors import nearest
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.model.counting import total_parameters
from wuneng.records import write_json

#: Width, layers, attention heads, state heads.
MODELS = ((256, 6, 4, 2), (768, 12, 12, 4))
WAYS = ("modules", "one call")
COMPILED = "compiled"
#: The wiring of ``recipes/text.yaml``, whatever the sizes.
TEXT = {
    "cross_head": "none",
    "state_key_source": "own",
    "state_a_max": 2.0,
    "state_output_gate": True,
    "state_gate_sigmoid": "output",
    "attention_token_shift": True,
}
COPIED = 32 * 2**20


def architecture(name: str, width: int, layers: int, heads: int, state_heads: int) -> Architecture:
    """One arm, whose outputs are not zero."""
    config = WuNengConfig(
        vocab_size=260,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        head_dim=64,
        num_state_heads=state_heads,
        max_position_embeddings=2**16,
        output_init="normal",
        **MIDDLE_WIRING,
    )
    return _architecture(name, config)


def _architecture(name: str, config: WuNengConfig) -> Architecture:
    return Architecture(name, config, partial(WuNengForCausalLM, config), total_parameters(config))


def matched(
    width: int, layers: int, heads: int, state_heads: int, others: Sequence[str] = ()
) -> list[Architecture]:
    """WuNeng, and attention alone and other arms, whose feed-forward layers are as much wider."""
    ours = architecture("wuneng", width, layers, heads, state_heads)
    found = [ours]
    for name in ("mha", *others):
        changes = TEXT if name == "text" else BUILT_IN_ARMS[name].changes(ours.config)
        config = ours.config.changed(changes)
        more = (ours.parameters - total_parameters(config)) / (3 * width * layers)
        inner = config.intermediate_size + 4 * round(more / 4)
        found.append(_architecture(name, config.changed({"intermediate_size": inner})))
    return found


def measured(
    shape: tuple[int, int, int, int],
    context: int,
    batch: int,
    rounds: int,
    others: Sequence[str] = (),
    compiler: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Rows of all arms and ways at one shape, and the copy that they are compared with.

    Args:
        compiler: what ``torch.compile`` is given for its way; None leaves it out.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    store, arms = ModelStore(torch.device("cpu"), torch.float32, "fp32"), matched(*shape, others)
    cases = {arm.arm: decode_case(store, arm, batch, context) for arm in arms}
    gates = gated(cases.values())
    steps = {name: case.prepare().call for name, case in cases.items()}
    norms = {arm.arm: store.inference(arm).model.norm for arm in arms}
    calls = {(arm, way): steps[arm] for arm in cases for way in WAYS}
    compile_seconds = {}
    if compiler is not None:
        for arm, step in steps.items():
            calls[arm, COMPILED], compile_seconds[arm] = _compiled(arm, step, compiler)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    source, target, copies = torch.zeros(COPIED), torch.zeros(COPIED), []

    def timed(call: Callable[[], Any]) -> float:
        began = clock()
        call()
        return clock() - began

    for number in range(rounds + 2):
        for (arm, way), call in calls.items():
            with _watched(norms[arm], way == "modules"):
                seconds[arm, way].append(timed(partial(call, number)))
        copies.append(timed(partial(target.copy_, source)))
    rate = 2 * source.nbytes / min(copies)
    seconds = {key: times[2:] for key, times in seconds.items()}
    rows = [
        {
            "arm": arm,
            "way": way,
            "parameters": _parameters(arms, arm),
            "milliseconds": 1e3 * median(times),
            "fastest_milliseconds": 1e3 * min(times),
            "tokens_per_second": batch / median(times),
            "gained": median(map(truediv, seconds[arm, "modules"], times)),
            "of_mha": median(map(truediv, seconds["mha", way], times)),
            "roof": cases[arm].work.bytes / median(times) / rate,
            **({"compile_seconds": compile_seconds[arm]} if way == COMPILED else {}),
        }
        for (arm, way), times in seconds.items()
    ]
    names = ("width", "layers", "heads", "state_heads")
    shown = dict(zip(names, shape, strict=True)) | {"context": context, "batch": batch}
    shown |= {"threads": torch.get_num_threads(), "copies": rate, "gates": gates}
    return {**shown, "rows": rows}


@contextmanager
def _watched(module: nn.Module, watched: bool) -> Iterator[None]:
    """Whoever watches a module has all of them called."""
    hook = module.register_forward_hook(lambda *_: None) if watched else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _compiled(arm: str, step: Any, compiler: dict[str, Any]) -> tuple[StaticStep, float]:
    """The compiled step, and the seconds of its first call. RuntimeError: other tokens than
    ``step``, a benchmark's own step of decoding, chooses."""
    static = StaticStep(step.model, step.cache, step.tokens).compiled(**compiler)
    began = time.perf_counter()
    static(0)
    taken = time.perf_counter() - began
    for index in range(len(step.tokens)):
        if not torch.equal(static(index), step(index)):
            raise RuntimeError(f"{arm}, compiled: another token than the modules choose")
    return static, taken


def _parameters(arms: list[Architecture], name: str) -> int:
    """Parameters of an arm."""
    return next(arm.parameters for arm in arms if arm.arm == name)


def _names(given: str) -> list[str]:
    """Of arms, by commas."""
    known = {"text", *BUILT_IN_ARMS} - {"wuneng", "mha"}
    for name in (names := given.split(",")):
        if name not in known:
            text = (
                f"expected some of {', '.join(sorted(known))}, got {name!r}{nearest(name, known)}"
            )
            raise argparse.ArgumentTypeError(text)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--arms", type=_names, default=[], help="others, as text,mha-shift,rwkv7")
    parser.add_argument("--compiled", action="store_true", help="torch.compile's way too: minutes")
    parser.add_argument("--width", type=int, help="of the models above the one of this width")
    chosen = parser.parse_args()
    began, found = load_average(), []
    compiler: dict[str, Any] | None = {} if chosen.compiled else None
    for shape in MODELS:
        if chosen.width not in (None, shape[0]):
            continue
        sizes = (chosen.context, chosen.batch, chosen.rounds)
        found.append(measured(shape, *sizes, chosen.arms, compiler))
        print(f"width {shape[0]}, copies {found[-1]['copies'] / 1e9:.1f} GB/s")
        for row in found[-1]["rows"]:
            print(
                f"  {row['arm']:11s} {row['way']:9s} {row['milliseconds']:8.2f} ms "
                f"{row['tokens_per_second']:8.1f} tokens/s, {row['gained']:.2f} of the modules', "
                f"{row['of_mha']:.2f} of mha, "
                f"{row['roof']:.0%} of the roof"
            )
    if chosen.out is not None:
        command = environment(["python", "-m", "benchmarks.decoded_token", *sys.argv[1:]])
        write_json(chosen.out, {"environment": command, "load_average": began, "models": found})


if __name__ == "__main__":
    main()
