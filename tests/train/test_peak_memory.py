"""The counted peak of a step against the measured one, on the CPU, and what stages hold."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.controls.names import Control
from wuneng.controls.switch import controlled
from wuneng.data.batch import Batch
from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.model.counting import total_parameters
from wuneng.recipe import AlignStage, DistillStage, Training
from wuneng.train.optimizer import build_optimizer
from wuneng.train.peak_memory import logit_bytes, phase_memory
from wuneng.train.phases import Phase
from wuneng.train.replacing import begin_replacing
from wuneng.train.step import Numerics, prepare_model, take_step
from wuneng.train.trainable import freeze, lower_frozen

SMALL: dict[str, Any] = {
    **MIDDLE_WIRING,
    "vocab_size": 2048,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 384,
    "num_state_heads": 4,
    "cross_head": "none",
}
SIZES: dict[str, tuple[dict[str, Any], int, int]] = {
    "small": (SMALL, 4, 256),
    "large vocabulary": ({**SMALL, "vocab_size": 16384}, 1, 1024),
    "wide": (
        {**SMALL, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
         "tie_word_embeddings": False, "state_key_source": "own", "state_value_source": "own"},
        2, 256,
    ),
    "as it is by default": (
        {**SMALL, "state_key_source": "own", "state_output_gate": True,
         "state_gate_sigmoid": "output", "attention_token_shift": True},
        4, 256,
    ),
}  # fmt: skip
SETTINGS = {"align": AlignStage(), "distill": DistillStage(), "tune": None, "": None}


def is_new(name: str) -> bool:
    return "state_heads" in name or "cross_head" in name


def phase_of(config: WuNengConfig, model: WuNengForCausalLM, kind: str, **training: Any) -> Phase:
    trainable = {n: p.numel() for n, p in model.named_parameters() if not kind or is_new(n)}
    layers = tuple(range(config.num_hidden_layers))
    own = Training(steps=2, **training)
    return Phase(kind, kind, 0, own, trainable, SETTINGS[kind], layers)  # type: ignore[arg-type]


def measured(
    model: WuNengForCausalLM, phase: Phase, vocabulary: int, cache: Path | None = None
) -> int:
    """Bytes that a second step allocates at most at once, as torch's allocator tells."""
    training = phase.training
    freeze(model, phase.trainable)
    numerics = Numerics.pick(torch.device("cpu"), None)
    optimizer, teacher = build_optimizer(model, training), phase.teacher(model, cache)
    called = prepare_model(model, training)
    shape = training.batch_size, training.sequence_length

    def step(number: int) -> None:
        ids = torch.randint(vocabulary, shape)
        batch = Batch(ids, ids, None, "text", shape[1])
        given: Any = (called, optimizer, batch, training, numerics)
        take_step(*given, step=number, arm="a", teacher=teacher)

    step(1)
    optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step(2)
    assert watched.profiler is not None
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("kind", ["align", "distill", "tune", ""])
@pytest.mark.parametrize("size", SIZES)
def test_the_counted_peak_is_the_measured_one(size: str, kind: str) -> None:
    """Within 15 %: weights and moments are there before the step, the rest comes in it."""
    _agrees(*SIZES[size], kind)


@pytest.mark.parametrize("size", SIZES)
def test_so_it_is_where_what_the_teacher_says_is_kept(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step whose rows the teacher is asked for."""
    monkeypatch.setitem(SETTINGS, "distill", DistillStage(teacher_top_k=64, temperature=2.0))
    _agrees(*SIZES[size], "distill", tmp_path)


@pytest.mark.parametrize("kind", ["distill", ""])
@pytest.mark.parametrize(
    "change",
    [
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": 2},
        {"micro_batch_size": 2},
    ],
)
def test_so_it_is_with_less_at_once(kind: str, change: dict[str, Any]) -> None:
    _agrees(*SIZES["small"], kind, **change)


@pytest.mark.parametrize("kind", ["align", "distill", "tune"])
@pytest.mark.parametrize("kept", [0, 4], ids=["attention", "heads"])
def test_so_it_is_where_something_is_replaced(kind: str, kept: int) -> None:
    _agrees(*SIZES["wide"], kind, changed=lambda model: begin_replacing(model, (1, 3), kept))


@pytest.mark.parametrize("size", ["wide", "as it is by default"])
def test_so_it_is_with_another_rows_state(size: str) -> None:
    with ExitStack() as stack:

        def changed(model: WuNengForCausalLM) -> None:
            stack.enter_context(controlled(model, Control("donor")))

        _agrees(*SIZES[size], "tune", changed=changed, state="donor")


def _agrees(
    fields: dict[str, Any],
    rows: int,
    length: int,
    kind: str,
    cache: Path | None = None,
    changed: Callable[[WuNengForCausalLM], None] = lambda model: None,
    state: str = "keep",
    **training: Any,
) -> None:
    config = WuNengConfig(**fields)
    model = WuNengForCausalLM(config)
    changed(model)
    given = {"batch_size": rows, "sequence_length": length, **training}
    phase = phase_of(config, model, kind, **given)
    arm: Any = SimpleNamespace(
        config=config,
        teacher=None,
        adapters=None,
        facts=SimpleNamespace(parameters=total_parameters(config), state=state),
    )
    held = phase_memory(arm, phase, "cpu", 4)
    before = held["weights"] + held["optimizer"]
    assert held["weights"] == sum(p.nbytes for p in model.parameters())
    assert held["optimizer"] == 8 * sum(phase.trainable.values())
    found = measured(model, phase, config.vocab_size, cache)
    counted = held["gradients"] + held["activations"]
    assert counted == pytest.approx(found, rel=0.15), f"of {before:,} before"


def test_logits_that_are_never_whole_cost_a_few_chunks() -> None:
    """Beyond the head's own gradient."""
    whole = [logit_bytes(words, 4096, "cpu", distilled=False) for words in (1024, 2048)]
    assert whole[1] - whole[0] == 3 * 4 * 4096 * 1024
    cut = [logit_bytes(words, 4096, "cpu", distilled=True) for words in (50_304, 151_936)]
    assert cut[1] - cut[0] == 7 * 4 * 256 * (151_936 - 50_304)
    own = logit_bytes(50_304, 4096, "cpu", distilled=False, head=1000)
    assert own == 4 * 256 * 50_304 + 4 * 1000


def test_a_frozen_base_in_bf16_weighs_half() -> None:
    """Its matrices do; the embedding, norms and new heads stay in float32."""
    config = WuNengConfig(**SMALL)
    model = WuNengForCausalLM(config)
    phase = phase_of(config, model, "tune", frozen_precision="bf16", precision="bf16")
    arm: Any = SimpleNamespace(
        config=config,
        teacher=None,
        adapters=None,
        trainable=phase.trainable,
        facts=SimpleNamespace(parameters=total_parameters(config), state="keep"),
    )
    freeze(model, phase.trainable)
    lower_frozen(model)
    held = phase_memory(arm, phase, "cpu", 2)
    assert held["weights"] == sum(parameter.nbytes for parameter in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.bfloat16}


def test_a_step_hardly_grows_with_the_vocabulary() -> None:
    """At width 256 and 4,096 tokens, 151k words take at most 1.3 times the memory of 8k once the
    embedding's weights, gradient and moments are taken off (``benchmarks/vocabulary.py``)."""
    beside = {}
    for words in (8_192, 151_936):
        config = WuNengConfig(
            vocab_size=words, hidden_size=256, num_hidden_layers=6, num_attention_heads=4,
            num_state_heads=2, max_position_embeddings=4096,
        )  # fmt: skip
        with torch.device("meta"):
            model = WuNengForCausalLM(config)
        phase = phase_of(config, model, "", batch_size=1, sequence_length=4096)
        arm: Any = SimpleNamespace(
            config=config,
            teacher=None,
            adapters=None,
            facts=SimpleNamespace(parameters=total_parameters(config), state="keep"),
        )
        beside[words] = sum(phase_memory(arm, phase, "cpu", 4).values()) - 16 * words * 256
        assert logit_bytes(words, 4096, "cpu", distilled=False) < 4 * 4096 * words / 4
    assert 1.0 < beside[151_936] / beside[8_192] <= 1.3
