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
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from wuneng.errors import ModelError, TaskError
from wuneng.evaluate.loading import LoadedModel
from wuneng.evaluate.scoring import CallLimits, can_share, score_answers
from wuneng.evaluate.task_loading import quiet_harness

__all__ = ["HarnessModel"]

# Generation on the CPU: nothing runs out of memory at a size that one could find by trying, and a
# larger batch is no faster, so "auto" is simply this.
_CPU_BATCH = 16
_GENERATED_TOKENS = 256


class HarnessModel(HFLM):
    """A loaded model as the harness' `LM`.

    Args:
        loaded: model and tokenizer, on their device.
        batch_size: requests per forward call, or "auto".
        progress: whether to show the harness' progress bar while requests run.
        companion: whether every forward call holds at least two sequences (see `_with_companion`);
            then the harness scores, because neighbours in a batch matter.
        share: whether to compute common beginnings once; False leaves scoring to the harness.

    Raises:
        ModelError: no tokenizer, or one with neither a beginning nor an end of text.
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
        self.progress = progress
        self.companion = companion
        self.truncated_requests = 0
        self.merged_requests = 0
        self._previous: Tensor | None = None
        self._encoded: dict[tuple[str, bool | None], list[int]] = {}

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate when a task does not say: at most half of the context."""
        return min(_GENERATED_TOKENS, self.max_length // 2)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits `[B, T, V]` of right-padded token ids `[B, T]`, without gradients."""
        return self._model_call(tokens.to(self.device))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """The harness' scoring; the bar only where wanted, and texts tokenised all at once."""
        self._encode_all([request.args for request in requests])
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not self.progress)
        finally:
            self._encoded.clear()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The harness' generation; the bar only where wanted."""
        return super().generate_until(requests, disable_tqdm=disable_tqdm or not self.progress)

    def _encode_all(self, pairs: list[tuple[str, str]]) -> None:
        """Have at hand what the harness will encode of these (question, answer) pairs, one by one.

        A fast tokenizer takes a quarter of the time for a list, and four answers to one question
        encode the question once.
        """
        texts: dict[tuple[str, bool | None], None] = {}
        for question, answer in pairs:
            if question == "":
                texts[(answer, False)] = None
            else:
                texts[(question + answer, None)] = None
                texts[(question.rstrip(), None)] = None
        mark = self.tokenizer.decode(self.prefix_token_id)
        by_marks: dict[bool | None, list[tuple[str, bool | None]]] = {}
        for text, special in texts:
            # The harness' rules for tokens that begin a text.
            marks = False if special is None and text.startswith(mark) else special
            marks = self.add_bos_token if marks is None else marks
            by_marks.setdefault(marks, []).append((text, special))
        for marks, keys in by_marks.items():
            arguments = {} if marks is None else {"add_special_tokens": marks}
            found = self.tokenizer([text for text, _ in keys], **arguments)["input_ids"]
            self._encoded.update(zip(keys, found, strict=True))

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a text, remembered or encoded."""
        if left_truncate_len is None and not kwargs:
            known = self._encoded.get((string, add_special_tokens))
            if known is not None:
                return known
        found: list[int] = super().tok_encode(
            string, add_special_tokens, left_truncate_len, **kwargs
        )
        return found

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Question and answer tokens; the harness' split by the question's token count.

        A tokenizer that merges across blanks may need no more tokens for both than for the
        question alone, which leaves nothing to score. Then the split is where the two encodings
        part: the answer is the tokens that the question alone would not have.
        """
        question, answer = super()._encode_pair(context, continuation)
        if answer:
            return question, answer
        self.merged_requests += 1
        whole = self.tok_encode(context + continuation)
        pairs = zip(whole[:-1], question, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), len(whole) - 1)
        return whole[:shared] or [self.prefix_token_id], whole[shared:]

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        longest = max((len(answer) for _, _, answer in requests), default=0)
        if longest > self.max_length:
            raise TaskError(
                f"an answer of {longest} tokens does not fit into the model's context of "
                f"{self.max_length}: leave the task out, or use a model with a longer context."
            )
        self.truncated_requests += sum(
            len(question) + len(answer) > self.max_length + 1 for _, question, answer in requests
        )
        if not self.share:
            return super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm or not self.progress, override_bs=override_bs
            )
        with tqdm(
            desc="Scoring",
            unit=" tokens",
            unit_scale=True,
            disable=disable_tqdm or not self.progress,
        ) as bar:
            return score_answers(
                self.model,
                [(question, answer) for _, question, answer in requests],
                self.max_length,
                self.limits,
                softmax_dtype=self.softmax_dtype,
                on_tokens=bar.update,
            )

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
        logits: Tensor = super()._model_call(self._with_companion(inps), attn_mask, labels)
        return logits[: len(inps)]

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any
    ) -> Tensor:
        batch = self._with_companion(context)
        if len(batch) > len(context):
            mask = kwargs.get("attention_mask")
            if mask is not None:
                kwargs["attention_mask"] = torch.cat([mask, torch.ones_like(mask)])
        generated: Tensor = super()._model_generate(batch, max_length, stop, **kwargs)
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
