"""Questions' tokens, kept in the token cache like those of any text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from wuneng.data.parallel_encoding import Tokens
from wuneng.data.questions import Question, QuestionSource
from wuneng.data.sources import DocumentSource
from wuneng.data.token_cache import Corpus

__all__ = ["KeptQuestions"]


class _PromptsAndAnswers:
    """A source whose documents are the prompt of a question, its answer, the next prompt, ...: each
    is encoded apart, as when the question is asked."""

    def __init__(self, questions: QuestionSource) -> None:
        self.field, self.name = questions.field, questions.name
        self.share_read = 0.0
        self._questions = questions

    def documents(self) -> Iterator[str]:
        """Two of each question."""
        for question in self._questions.questions():
            yield question.prompt
            yield f" {question.answer}"

    def content_key(self) -> str:
        """That of the questions, told from that of their whole texts."""
        return hashlib.sha256(f"apart {self._questions.content_key()}".encode()).hexdigest()

    def place(self, document: int) -> str:
        """Where its question stands."""
        return self._questions.place((document + 1) // 2)


class KeptQuestions:
    """The tokens of a source's questions; ``tokenized`` gives those of its documents."""

    def __init__(
        self, source: QuestionSource, tokenized: Callable[[DocumentSource], Corpus]
    ) -> None:
        self._corpus = tokenized(_PromptsAndAnswers(source))
        self._numbers = {question: n for n, question in enumerate(source.questions())}

    def tokens(self, question: Question) -> tuple[Tokens, Tokens]:
        """Of its prompt and of its answer, each with the marks of a document."""
        number = 2 * self._numbers[question]
        first, second, end = self._corpus.offsets[number : number + 3]
        return self._corpus.tokens[first:second], self._corpus.tokens[second:end]
