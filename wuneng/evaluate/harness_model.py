"""lm-evaluation-harness' own Hugging Face model around a live model: the same figures, sooner.

Requests are formed by the harness' code; :mod:`wuneng.evaluate.scoring` computes what it would,
each common beginning once. Models that module does not know are scored by the harness itself.
Added are: a score where the harness stops because a tokenizer merges an answer's tokens into its
question, a clear error where an answer does not fit into the model's context, a count of questions
cut from the left, room for generation in short contexts, and the companion sequence that the
permuted-state control needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.errors import ModelError, NonFiniteError, TaskError
from wuneng.evaluate.harness_encoding import HarnessEncoding
from wuneng.evaluate.loading import LoadedModel
from wuneng.evaluate.not_finite import not_finite_error
from wuneng.evaluate.progress import EvaluationBar
from wuneng.evaluate.request_check import check_texts, settings_errors
from wuneng.evaluate.scoring import CallLimits, can_share, score_answers
from wuneng.evaluate.task_loading import quiet_harness
from wuneng.model.finite import FiniteScores, NotFinite, all_finite
from wuneng.ops.native.model_token import MOST_SEQUENCES

__all__ = ["HarnessModel"]

# Generation on the CPU: nothing runs out of memory at a size that one could find by trying, so
# "auto" is as many as a decoded token's one call takes: twice as many, module by module, take 1.1
# to 1.5 times as long at width 256, and as long at 768.
_CPU_BATCH = MOST_SEQUENCES
_GENERATED_TOKENS = 256


class HarnessModel(HarnessEncoding):
    """A loaded model as the harness' `LM`.

    Args:
        loaded: model and tokenizer, on their device.
        batch_size: requests per forward call, or "auto".
        progress: whether to show a bar while requests run; the harness' own never show.
        companion: whether every forward call holds at least two sequences (see `_with_companion`);
            then the harness scores, because neighbours in a batch matter.
        share: whether to compute common beginnings once; False leaves scoring to the harness.

    Raises:
        ModelError: no tokenizer, or one with neither a beginning nor an end of text.

    Its three kinds of request raise NonFiniteError, with task, item and layer, where logits that
    would become a score or a token are NaN or infinite.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        batch_size: int | str = "auto",
        *,
        progress: bool = False,
        companion: bool = False,
        share: bool = True,
    ) -> None:
        tokenizer = loaded.require_tokenizer()
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ModelError(
                f"{loaded.path}: the tokenizer has neither a beginning-of-text nor an end-of-text "
                "token; evaluation needs one of them."
            )
        rows = None if batch_size == "auto" else int(batch_size)
        self.limits = CallLimits.on(loaded.model.device, rows)
        self.share = share and not companion and can_share(loaded.model)
        if batch_size == "auto" and loaded.model.device.type == "cpu":
            batch_size = _CPU_BATCH
        with quiet_harness():
            super().__init__(pretrained=loaded.model, tokenizer=tokenizer, batch_size=batch_size)
        # Scoring reads every text once; generation asks for its cache itself.
        loaded.model.config.use_cache = False
        self.label = loaded.label
        self.bar = EvaluationBar(wanted=progress)
        self.companion = companion
        self._previous: Tensor | None = None
        self._asked: list[str] = []

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate when a task does not say: at most half of the context."""
        return min(_GENERATED_TOKENS, self.max_length // 2)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits `[B, T, V]` of right-padded token ids `[B, T]`, without gradients."""
        return self._model_call(tokens.to(self.device))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """The harness' scoring, with texts tokenised all at once. TaskError for what is no text."""
        check_texts(requests)
        self._encode_all([request.args for request in requests])
        try:
            return super().loglikelihood(requests, disable_tqdm=True)
        except NotFinite as found:
            raise self._error(requests[found.row], found) from None
        finally:
            self._encoded.clear()

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The harness' scoring of whole texts. TaskError for what is no text."""
        check_texts(requests)
        try:
            with self.bar.in_place_of_the_harness(f"reading {self.label}", len(requests), "texts"):
                return list(super().loglikelihood_rolling(requests))
        except NotFinite as found:  # its row is a window's: whose, each text alone tells
            for request in requests if len(requests) > 1 else ():
                self.loglikelihood_rolling([request])
            raise self._error(requests[0], found) from None

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The harness' generation, with cut questions counted. TaskError for what is no text and
        for settings that transformers refuses."""
        check_texts(requests)
        self._encode_texts({(request.args[0], None): None for request in requests})
        try:
            self._count_cuts(requests)
            writing = f"writing {self.label}"
            bar = self.bar.in_place_of_the_harness(writing, len(requests), "answers")
            with bar, settings_errors(requests):
                return super().generate_until(requests)
        except NotFinite as found:
            text = self._asked[min(found.row, len(self._asked) - 1)]
            asked = next(request for request in requests if request.args[0] == text)
            raise self._error(asked, found) from None
        finally:
            self._encoded.clear()

    def _error(self, request: Any, found: NotFinite) -> NonFiniteError:
        return not_finite_error(
            self.model,
            self.label,
            f"{request.task_name}, item {request.doc_id}",
            lambda: self.logits(found.read[None]),
        )

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest > self.max_length:
            raise TaskError(
                f"an answer of {longest} tokens does not fit into the model's context of "
                f"{self.max_length}: leave the task out, or use a model with a longer context."
            )
        for _, question, answer in requests:
            self._cut(len(question), self.max_length + 1 - len(answer))
        try:
            return self._scores(requests, override_bs)
        except NotFinite as found:
            row = found.row if self.share else self._first_not_finite(requests)
            raise NotFinite(row, self._read_of(requests[row])) from None

    def _read_of(self, request: Any) -> Tensor:
        """Tokens `[T]` that the model reads of a request."""
        _, question, answer = request
        return torch.tensor((question + answer)[-(self.max_length + 1) : -1])

    def _first_not_finite(self, requests: list[Any]) -> int:
        """The first request that fails alone, or the first of all where only batches fail."""
        for row, request in enumerate(requests):
            logits = self.logits(self._read_of(request)[None])
            if not all_finite(logits[0, -len(request[2]) :]):
                return row
        return 0

    def _scores(self, requests: list[Any], override_bs: int | None) -> Any:
        what = f"scoring {self.label}"
        if not self.share:
            with self.bar.in_place_of_the_harness(what, len(requests), "answers"):
                return super()._loglikelihood_tokens(requests, override_bs=override_bs)
        with self.bar.counting(what, None, "tokens") as counted:
            return score_answers(
                self.model,
                [(question, answer) for _, question, answer in requests],
                self.max_length,
                self.limits,
                softmax_dtype=self.softmax_dtype,
                on_tokens=counted,
            )

    def _select_cont_toks(
        self, logits: Tensor, contlen: int | None = None, inplen: int | None = None
    ) -> Tensor:
        """An answer's log-probabilities, where the harness scores. NotFinite where they are not."""
        chosen: Tensor = super()._select_cont_toks(logits, contlen=contlen, inplen=inplen)
        if not all_finite(chosen):
            raise NotFinite(0)
        return chosen

    def tok_batch_encode(self, strings: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The harness' own; a failure needs to know what was asked."""
        self._asked = list(strings)
        found: tuple[Tensor, Tensor] = super().tok_batch_encode(strings, *args, **kwargs)
        return found

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
        logits: Tensor = super()._model_call(self._with_companion(inps), attn_mask, labels)
        return logits[: len(inps)]

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any
    ) -> Tensor:
        batch = self._with_companion(context)
        mask = kwargs.get("attention_mask")
        if len(batch) > len(context) and mask is not None:
            kwargs["attention_mask"] = torch.cat([mask, torch.ones_like(mask)])
        try:
            with FiniteScores().watching(self.model) as finite:
                kwargs["logits_processor"] = [finite]
                generated: Tensor = super()._model_generate(batch, max_length, stop, **kwargs)
        except NotFinite as found:
            row = found.row // int(kwargs.get("num_beams") or 1)
            pads = 0 if mask is None else int((mask[min(row, len(mask) - 1)] == 0).sum())
            raise NotFinite(row, found.read[pads:]) from None
        return generated[: len(context)]

    def _with_companion(self, inps: Tensor) -> Tensor:
        """`[B, T]` token ids, with a second row when B is 1 and a companion is asked for.

        A permutation across sequences needs two of them. The companion is the previous call's
        first row, cropped or padded with the prefix token; never this row's own tokens, whose
        answer would leak.
        """
        if not self.companion:
            return inps
        previous, self._previous = self._previous, inps[:1].detach()
        if len(inps) > 1:
            return inps
        row = torch.full_like(inps, self.prefix_token_id)
        if previous is not None:
            shared = min(previous.shape[1], inps.shape[1])
            row[:, :shared] = previous[:, :shared]
        return torch.cat([inps, row])
