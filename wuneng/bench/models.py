"""Cases of ``prefill``, ``decode`` and ``train``: whole models, called as their users call them."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wuneng.bench import roofline
from wuneng.bench.architectures import Architecture
from wuneng.bench.engine import Case, Missing, Prepared, Unsupported
from wuneng.bench.gate import GateResult
from wuneng.bench.memory import model_bytes, tensor_bytes
from wuneng.bench.model_gate import MODEL_TOKENS, decode_gate, gradient_gate, prefill_gate
from wuneng.bench.record import Row
from wuneng.model.cache_bytes import cache_bytes
from wuneng.model.call_arguments import cache_of, with_cache

__all__ = ["ModelStore", "decode_case", "prefill_case", "train_case"]

_INPUT_SETS = 4


@dataclass
class ModelStore:
    """Models in use, built when first asked for, and what is known about each."""

    device: torch.device
    dtype: torch.dtype
    dtype_name: str
    training: dict[str, Any] = field(default_factory=dict)
    _built: dict[tuple[str, str], Any] = field(default_factory=dict)
    _gates: dict[tuple[str, str], GateResult] = field(default_factory=dict)

    @property
    def element(self) -> int:
        """Bytes of a number in inference."""
        return torch.empty((), dtype=self.dtype).element_size()

    def inference(self, architecture: Architecture) -> Any:
        """The model in evaluation mode in the benchmarked type."""

        def build() -> Any:
            architecture.requires(self.device)
            return architecture.build().to(self.device, self.dtype).eval().requires_grad_(False)

        return self._once(("inference", architecture.arm), build)

    def trainee(self, architecture: Architecture) -> _Trainee:
        """The float32 model with its optimiser."""
        return self._once(("train", architecture.arm), lambda: _Trainee(self, architecture))

    def gate(self, what: str, arm: str, check: Callable[[], GateResult]) -> GateResult:
        """A model is checked once for each kind of use."""
        if (what, arm) not in self._gates:
            self._gates[what, arm] = check()
        return self._gates[what, arm]

    def drop(self) -> None:
        """Forget all models, so that their memory can be used."""
        self._built.clear()

    def _once(self, key: tuple[str, str], build: Callable[[], Any]) -> Any:
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]


def _inputs(store: ModelStore, config: Any, batch: int, tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, tokens)
    drawn = [
        torch.randint(config.vocab_size, shape, generator=generator) for _ in range(_INPUT_SETS)
    ]
    return [ids.to(store.device) for ids in drawn]


def _looped(config: Any, tokens: int) -> int:
    """Tokens that the layers with state heads go through one by one, in the reference."""
    return tokens * config.num_hidden_layers if config.num_state_heads else 0


def _cached_row(
    store: ModelStore, architecture: Architecture, case: tuple[str, str], batch: int, tokens: int
) -> Row:
    """A row of the record, with the bytes that a cache of ``tokens`` tokens should take."""
    row = Row(*case, architecture.arm, tokens, batch, store.dtype_name)
    counted = cache_bytes(architecture.config, batch, tokens, store.element)
    row.cache_bytes_counted = sum(counted.values())
    return row


def prefill_case(store: ModelStore, architecture: Architecture, batch: int, tokens: int) -> Case:
    """From a prompt to its first token: the whole prompt into a new cache, logits of the last."""
    config, arm = architecture.config, architecture.arm
    row = _cached_row(store, architecture, ("prefill", "first token"), batch, tokens)

    def prepare() -> Prepared:
        model = store.inference(architecture)
        prompts = _inputs(store, config, batch, tokens)

        @torch.inference_mode()
        def call(index: int) -> Any:
            out = model(input_ids=prompts[index % _INPUT_SETS], use_cache=True, logits_to_keep=1)
            return out.logits[:, -1].argmax(-1), cache_of(out)

        kv, state = _held_by(call(0)[1])
        elsewhere = architecture.allocates_elsewhere
        return Prepared(call, model_bytes(model), kv, state, allocates_elsewhere=elsewhere)

    def gate() -> GateResult:
        model = store.inference(architecture)
        return store.gate(
            "prefill", arm, lambda: prefill_gate(row, model, architecture.twin(model))
        )

    work = roofline.prefill(config, architecture.parameters, batch, tokens, store.element)
    checked = _looped(config, MODEL_TOKENS)
    return Case(row, batch * tokens, work, prepare, gate, int(work.bytes), checked)


def decode_case(
    store: ModelStore, architecture: Architecture, batch: int, context: int, *, graph: bool = True
) -> Case:
    """One more token after ``context`` tokens, for ``batch`` sequences at once.

    ``graph``: on CUDA, capture the step in a graph.
    """
    config, arm = architecture.config, architecture.arm
    row = _cached_row(store, architecture, ("decode", "next token"), batch, context)

    def prepare() -> Prepared:
        model = store.inference(architecture)
        prompt = _inputs(store, config, 1, context)[0]
        cache = _after(model, prompt, batch)
        step = _DecodeStep(model, cache, _inputs(store, config, batch, 1))
        kv, state = _held_by(cache)
        graphed = step.capture() if graph and store.device.type == "cuda" else None
        held, elsewhere = model_bytes(model) + kv + state, architecture.allocates_elsewhere
        return Prepared(step, held, kv, state, graphed, elsewhere)

    def gate() -> GateResult:
        model = store.inference(architecture)
        return store.gate("decode", arm, lambda: decode_gate(row, model, architecture.twin(model)))

    work = roofline.decode(config, architecture.parameters, batch, context, store.element)
    checked = _looped(config, MODEL_TOKENS)
    return Case(row, batch, work, prepare, gate, int(work.bytes), checked)


@torch.inference_mode()
def _after(model: Any, prompt: Tensor, batch: int) -> Any:
    """The cache after ``prompt`` ``[1, T]`` in each of ``batch`` sequences.

    The last token goes in by itself: the first decoded token is the one that makes room in a cache.
    """
    first, last = prompt[:, :-1], prompt[:, -1:]
    cache = None
    if first.shape[1]:
        cache = cache_of(model(input_ids=first, use_cache=True, logits_to_keep=1))
        if batch > 1:
            cache.batch_repeat_interleave(batch)
    last = last.expand(batch, -1)
    return cache_of(model(input_ids=last, use_cache=True, **with_cache(cache, model)))


class _DecodeStep:
    """The same next token again and again: each call starts from the same cache.

    On CUDA the step is captured in a graph, as decoding loops do it, where capture succeeds.
    """

    def __init__(self, model: Any, cache: Any, tokens: list[Tensor]) -> None:
        self.model, self.cache, self.tokens = model, cache, tokens
        self.graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def _step(self, token: Tensor) -> Tensor:
        out = self.model(
            input_ids=token, use_cache=True, **with_cache(_fork(self.cache), self.model)
        )
        chosen: Tensor = out.logits[:, -1].argmax(-1)
        return chosen

    def __call__(self, index: int) -> Any:
        token = self.tokens[index % len(self.tokens)]
        if self.graph is None:
            return self._step(token)
        self._captured.copy_(token)
        self.graph.replay()
        return self._chosen

    def capture(self) -> bool:
        """Whether the step could be captured and gives the same token as without."""
        self._captured = self.tokens[0].clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._step(self._captured)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._chosen = self._step(self._captured)
        except RuntimeError:  # something in the step waits for the device
            return False
        graph.replay()
        if not torch.equal(self._chosen, self._step(self._captured)):
            return False
        self.graph = graph
        return True


def _fork(cache: Any) -> Any:
    """A cache that starts where this one stands and leaves it as it is; no tensor is copied."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in twin.layers:
        for name in ("states", "state"):  # ours, and flash-linear-attention's
            if isinstance(getattr(layer, name, None), dict):
                setattr(layer, name, dict(getattr(layer, name)))
        if hasattr(layer, "reclaim"):
            layer.reclaim()
    return twin


def _held_by(cache: Any) -> tuple[int, int]:
    """Bytes of keys and values, and of everything else that is kept."""
    if hasattr(cache, "held_bytes"):  # llama.cpp's
        kv_and_state: tuple[int, int] = cache.held_bytes()
        return kv_and_state
    kv = sum(
        tensor_bytes(layer.keys, layer.values)
        for layer in cache.layers
        if isinstance(getattr(layer, "keys", None), Tensor)
    )
    if hasattr(cache, "state_bytes"):
        return kv, cache.state_bytes()
    held = (getattr(layer, "state", None) or {} for layer in cache.layers)
    return kv, sum(
        tensor_bytes(x) for state in held for x in state.values() if isinstance(x, Tensor)
    )


class _Trainee:
    """A model, its optimiser and training's own step."""

    def __init__(self, store: ModelStore, architecture: Architecture) -> None:
        architecture.requires(store.device)
        if not architecture.trains:
            raise Unsupported(f"{architecture.arm} does not train")
        settings = training_settings(store.training, 1, 2)
        from wuneng.train.optimizer import build_optimizer
        from wuneng.train.step import Numerics, prepare_model

        if settings.compile:
            # Training has one length: no other one's kernels, nor those for any length.
            importlib.import_module("torch._dynamo").config.automatic_dynamic_shapes = False
        self.arm = architecture.arm
        self.model = architecture.build().to(store.device)
        self.optimizer = build_optimizer(self.model, settings)
        self.called = prepare_model(self.model, settings)
        autocast = None if store.dtype == torch.float32 else store.dtype
        numerics = Numerics.pick(store.device, autocast)
        captures = settings.cuda_graph and store.device.type == "cuda"
        self.numerics = numerics.capturing() if captures else numerics

    def step(self, batch: Any, settings: Any) -> Any:
        """One optimiser step; the loss comes back."""
        from wuneng.train.step import take_step

        numerics = self.numerics
        outcome = take_step(
            self.called, self.optimizer, batch, settings, numerics, step=1, arm=self.arm
        )
        # The next step would do this first. Done here, gradients belong to the step's own peak.
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def held_bytes(self) -> int:
        """Weights, buffers and AdamW's two moments, once a step has been taken."""
        weights = tensor_bytes(*self.model.parameters())
        return tensor_bytes(*self.model.buffers()) + 3 * weights


def train_case(store: ModelStore, architecture: Architecture, batch: int, tokens: int) -> Case:
    """One optimiser step, training's own: forward, backward, clipping, AdamW."""
    config, arm = architecture.config, architecture.arm
    row = Row("train", "step", arm, tokens, batch, store.dtype_name)

    def prepare() -> Prepared:
        from wuneng.data.batch import Batch

        trainee = store.trainee(architecture)
        settings = training_settings(store.training, batch, tokens)
        batches = [
            Batch(ids, ids.roll(-1, 1), None, "bench", tokens)
            for ids in _inputs(store, config, batch, tokens)
        ]

        def call(index: int) -> Any:
            return trainee.step(batches[index % _INPUT_SETS], settings)

        return Prepared(call, trainee.held_bytes())

    def gate() -> GateResult:
        trainee = store.trainee(architecture)

        def check() -> GateResult:
            model = trainee.model
            return gradient_gate(row, model, store.dtype, architecture.twin(model))

        return store.gate("train", arm, check)

    work = roofline.training_step(config, architecture.parameters, batch, tokens)
    checked = 5 * _looped(config, MODEL_TOKENS // 2)  # forward and backward
    return Case(row, batch * tokens, work, prepare, gate, 16 * architecture.parameters, checked)


def training_settings(fields: dict[str, Any], batch: int, tokens: int) -> Any:
    """A recipe's ``training:`` for one shape.

    Raises:
        Missing: what recipes and training need is not installed.
    """
    try:
        from wuneng.recipe import Training
    except ModuleNotFoundError as error:
        raise Missing(f"a training step needs the package {error.name}") from None
    chosen: dict[str, Any] = {"learning_rate": 1e-4, **fields}
    return Training(steps=1, sequence_length=tokens, batch_size=batch, **chosen)
