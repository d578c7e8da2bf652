"""How requests become tokens: the harness' rules, remembered; what is cut or merged is counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from wuneng.model.pretrained import encoded

__all__ = ["HarnessEncoding"]


class HarnessEncoding(HFLM):
    """The harness' Hugging Face model with an encoding that remembers.

    Attributes:
        truncated_requests: questions that were cut from the left to fit the context.
        least_kept: share of its tokens that the question cut most has kept.
        merged_requests: answers whose tokens merge into the end of the question.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.truncated_requests = 0
        self.least_kept = 1.0
        self.merged_requests = 0
        self._encoded: dict[tuple[str, bool | None], list[int]] = {}

    def _count_cuts(self, requests: list[Any]) -> None:
        """What the harness cuts from the left to leave room for the answer."""
        for request in requests:
            question, asked = request.args
            room = self.max_length - normalize_gen_kwargs(asked, self.max_gen_toks)["max_gen_toks"]
            self._cut(len(self.tok_encode(question)), room)

    def _cut(self, tokens: int, room: int) -> None:
        if tokens > room:
            self.truncated_requests += 1
            self.least_kept = min(self.least_kept, max(0, room) / tokens)

    def _encode_all(self, pairs: list[tuple[str, str]]) -> None:
        """Have at hand what the harness will encode of these (question, answer) pairs, one by one;
        four answers to one question encode the question once."""
        texts: dict[tuple[str, bool | None], None] = {}
        for question, answer in pairs:
            if question == "":
                texts[(answer, False)] = None
            else:
                texts[(question + answer, None)] = None
                texts[(question.rstrip(), None)] = None
        self._encode_texts(texts)

    def _encode_texts(self, texts: Mapping[tuple[str, bool | None], None]) -> None:
        """Texts, and whether they get marks, all at once: a quarter of the time."""
        mark = self.tokenizer.decode(self.prefix_token_id)
        by_marks: dict[bool | None, list[tuple[str, bool | None]]] = {}
        for text, special in texts:
            # The harness' rules for tokens that begin a text.
            marks = False if special is None and text.startswith(mark) else special
            marks = self.add_bos_token if marks is None else marks
            by_marks.setdefault(marks, []).append((text, special))
        for marks, keys in by_marks.items():
            arguments = {} if marks is None else {"add_special_tokens": marks}
            found = encoded(self.tokenizer, [text for text, _ in keys], **arguments)
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
