"""Text from a model, streamed as it is written."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import TextStreamer

from wuneng.errors import InputError, NonFiniteError
from wuneng.evaluate.loading import LoadedModel
from wuneng.evaluate.not_finite import not_finite_error
from wuneng.model.finite import FiniteScores, NotFinite
from wuneng.model.pretrained import encoded

__all__ = ["COLDEST", "Generated", "Sampling", "generate_text"]

#: Logits are divided by the temperature: far below it they would no longer be finite.
COLDEST = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_tokens: tokens to write at most, 1 or more.
        temperature: 0 takes the likeliest token; else at least ``COLDEST``.
        top_p: choose among the likeliest tokens that have this probability together, in (0, 1].
        seed: None draws one, which the result tells.
    """

    max_tokens: int = 200
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"--max-tokens: expected 1 or more, got {self.max_tokens}")
        if self.temperature and not COLDEST <= self.temperature < float("inf"):
            raise InputError(
                "--temperature: expected 0 (the likeliest token), or a number of at least "
                f"{COLDEST}, got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: expected a number above 0, up to 1, got {self.top_p}")


@dataclass(frozen=True)
class Generated:
    """What was written: the text after the prompt, how much, how fast, and why it ended."""

    text: str
    tokens: int
    prompt_tokens: int
    seconds: float
    seed: int
    ended: str

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def generate_text(
    loaded: LoadedModel,
    prompt: str,
    sampling: Sampling,
    write: Callable[[str], None] = lambda piece: None,
) -> Generated:
    """Continue a prompt.

    Args:
        write: called with each piece of text as soon as it is certain.

    Raises:
        ModelError: the model has no tokenizer.
        InputError: an empty prompt for a model without a beginning-of-text token, or a prompt
            that fills the model's context.
        NonFiniteError: logits that are NaN or infinite.
    """
    tokens = _encoded(loaded, prompt)
    seed = random.SystemRandom().randrange(2**31) if sampling.seed is None else sampling.seed
    torch.manual_seed(seed)
    tokenizer = loaded.require_tokenizer()
    streamer = _Pieces(tokenizer, write)
    started = time.perf_counter()
    try:
        with torch.no_grad(), FiniteScores().watching(loaded.model) as finite:
            output = loaded.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                streamer=streamer,
                pad_token_id=_pad_token(tokenizer),
                logits_processor=[finite],
                **_arguments(sampling),
            )
    except NotFinite as found:
        raise _not_finite(loaded, found, tokens.shape[1]) from None
    written = output[0, tokens.shape[1] :].tolist()
    complete = len(written) < sampling.max_tokens
    return Generated(
        text=streamer.text,
        tokens=len(written),
        prompt_tokens=tokens.shape[1],
        seconds=time.perf_counter() - started,
        seed=seed,
        ended="end of text" if complete else "token limit",
    )


def _not_finite(loaded: LoadedModel, found: NotFinite, prompt_tokens: int) -> NonFiniteError:
    read = found.read[None]
    return not_finite_error(
        loaded.model,
        loaded.label,
        f"--prompt: after {read.shape[1] - prompt_tokens} new tokens",
        lambda: loaded.model(read, use_cache=False),
    )


class _Pieces(TextStreamer):
    """Hands on each piece of text; transformers' own class prints to stdout."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """A piece that later tokens cannot change any more."""
        self.text += text
        self.write(text)


def _encoded(loaded: LoadedModel, prompt: str) -> torch.Tensor:
    """The prompt's tokens `[1, T]`; an empty prompt is the beginning of a text."""
    tokenizer = loaded.require_tokenizer()
    ids = encoded(tokenizer, prompt)
    if not ids:
        start = next(
            (one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id) if one is not None),
            None,
        )
        if start is None:
            raise InputError("--prompt: empty, and the model has no beginning-of-text token")
        ids = [start]
    context = getattr(loaded.model.config, "max_position_embeddings", None)
    if context is not None and len(ids) >= context:
        raise InputError(
            f"--prompt: {len(ids)} tokens leave no room in the model's context of {context}"
        )
    return torch.tensor([ids], device=loaded.model.device)


def _pad_token(tokenizer: Any) -> int | None:
    # A single sequence is never padded; a value here keeps transformers from remarking on it.
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _arguments(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"max_new_tokens": sampling.max_tokens, "do_sample": False, "top_p": None}
    return {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
    }
