"""From a recipe's text settings to the batches of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from wuneng.data.batch import EPOCHS, Prepared, TrainingData, ValidationData
from wuneng.data.cache_directory import cache_root
from wuneng.data.corpus_tokenizer import choose_tokenizer
from wuneng.data.encoding import Encoder
from wuneng.data.mixture import MixedTraining, MixedValidation, ValidationPart
from wuneng.data.packing import PackedRows
from wuneng.data.question_rows import question_rows
from wuneng.data.questions import QuestionSource, open_questions
from wuneng.data.segments import Segments, cut_document, segments_of
from wuneng.data.sources import DocumentSource, MixedSources, Source, open_mixture, open_source
from wuneng.data.split import choose_half, choose_validation, falls_in_validation
from wuneng.data.stream_sample import held_out_sample, leading_sample
from wuneng.data.streamed import StreamedDataset
from wuneng.data.streaming import StreamedTraining
from wuneng.data.text_batches import Rows, TextTraining, TextValidation
from wuneng.data.token_cache import Corpus, Watch, tokenized
from wuneng.data.tokenizer import load_tokenizer
from wuneng.distributed.processes import ALONE, Processes
from wuneng.errors import DataError
from wuneng.recipe.data import HubDataset, TextData, TrainedTokenizer
from wuneng.recipe.training import EndEvaluation, Training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["prepare_text", "text_tokenizer"]

# Validation during training is there to watch, and must not cost much.
_TOKENS_WATCHED = 1 << 16

# Rows that are scored of a streamed data set, whose end may be days away.
_ROWS_OF_A_STREAM = 256


def prepare_text(
    data: TextData,
    training: Training,
    evaluation: EndEvaluation,
    seed: int,
    tokenizer: PreTrainedTokenizerFast | None = None,
    watch: Watch | None = None,
    processes: Processes = ALONE,
) -> Prepared:
    """Read, split, tokenise and pack the text of a recipe.

    ``seed`` orders the training rows and nothing else: the split is the same for every seed.
    ``tokenizer`` takes the place of ``data.tokenizer`` (to score another model on the same text).
    ``watch`` is told how far the tokenising of a source is. All of ``processes``, which train
    together, call this: a stream is read and tokenised in the first of them.

    Raises DataError for text that is missing, malformed or too short for one sequence, DiskError
    when the token cache cannot be written.
    """
    root = cache_root(data.cache_dir)
    train, validation = _open_sources(data, seed)
    if tokenizer is None:
        tokenizer = choose_tokenizer(data, train, validation, root, processes)
    encoder = Encoder(tokenizer)
    job = _Preparation(data, training, evaluation, seed, encoder, root, watch, processes)
    scored: Rows | list[Rows]
    if isinstance(train, QuestionSource):
        kept, scored, notes = question_rows(
            train, validation, data, encoder, training, job._tokenized
        )
        batches: TrainingData = TextTraining(kept, training.batch_size, seed, len(tokenizer))
        job.notes += notes
    elif isinstance(train, MixedSources):
        batches, scored = job.mixed(train, validation)
    else:
        batches, scored = job.of_one(train, validation)
    rows = evaluation.batch_size or training.batch_size
    limit = evaluation.max_batches * rows if evaluation.max_batches else None
    watched = max(1, _TOKENS_WATCHED // training.sequence_length)
    mixed = train if isinstance(train, MixedSources) else None
    return Prepared(
        train=batches,
        validation=_validation(scored, mixed, rows, min(watched, limit or watched)),
        final=_validation(scored, mixed, rows, limit),
        tokenizer=tokenizer,
        vocab_size=job.encoder.vocab_size,
        description="\n".join(job.notes),
    )


def text_tokenizer(
    data: TextData, processes: Processes = ALONE, learned: Path | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer that ``data`` names, or that is learned from its training text and kept: of
    stored text in the cache, of a stream at ``learned``. All of ``processes`` call this.

    Raises DataError, DiskError as ``prepare_text``.
    """
    if isinstance(data.tokenizer, TrainedTokenizer):
        root = cache_root(data.cache_dir)
        return choose_tokenizer(data, *_open_sources(data), root, processes, learned)
    return load_tokenizer(data.tokenizer)


def _validation(
    scored: Rows | list[Rows], mixed: MixedSources | None, batch_size: int, max_rows: int | None
) -> ValidationData:
    """At most ``max_rows`` of the rows that are scored; of a list, as many of each one."""
    if mixed is None or not isinstance(scored, list):
        assert not isinstance(scored, list)
        return TextValidation(scored, batch_size, max_rows)
    parts = sum(weight > 0 for weight in mixed.weights)
    each = None if max_rows is None else max(1, max_rows // parts)
    return MixedValidation(
        [
            ValidationPart(name, TextValidation(rows, batch_size, each), weight > 0)
            for name, weight, rows in zip(mixed.names, mixed.weights, scored, strict=True)
        ]
    )


def _open_sources(data: TextData, seed: int = 0) -> tuple[Source | MixedSources, Source | None]:
    """Training and validation text; None where the latter is held out of the former."""
    if data.questions is not None:
        return open_questions(data)
    train: Source | MixedSources
    if data.mixture is not None:
        train = open_mixture(data.mixture, data.text_field, data.max_documents, seed)
    else:
        one = cast("list[str] | HubDataset", data.train)
        train = open_source(one, "data.train", data.text_field, data.max_documents, seed)
    if data.validation is None:
        return train, None
    other = open_source(data.validation, "data.validation", data.text_field, data.max_documents)
    return train, other


def _too_few_to_halve(part: str) -> DataError:
    return DataError(
        f"data.validation_part: {part} is one of two halves of the held-out documents, and there "
        "are not two different ones; hold out more with data.validation_fraction or data.validation"
    )


@dataclass
class _Preparation:
    """The settings of one call, and what there is to say about it."""

    data: TextData
    training: Training
    evaluation: EndEvaluation
    seed: int
    encoder: Encoder
    root: Path
    watch: Watch | None = None
    processes: Processes = ALONE
    notes: list[str] = field(default_factory=list)
    rows: int | None = None
    """Rows of a batch, where not ``training.batch_size``."""
    share: float = 1.0
    """Of the run's tokens that are of the source at hand."""

    def mixed(
        self, train: MixedSources, validation: Source | None
    ) -> tuple[TrainingData, Rows | list[Rows]]:
        """Batches of all sources. Where nothing else is validation text, it is held out of each
        source for itself and scored by source."""
        opened: list[tuple[Any, Rows]] = []
        for number, (source, share) in enumerate(zip(train.sources, train.shares, strict=True)):
            part_of = f"{share:.1%} of the tokens" if share else "scored, and not trained on"
            self.notes.append(f"{part_of}: {train.names[number]}")
            # Sources of as many rows would be read in the same order of rows.
            part = replace(self, seed=self.seed ^ (number << 32), rows=1, share=share)
            opened.append(part.of_one(source, validation))
        scored = [rows for _, rows in opened]
        given = [index for index, share in enumerate(train.shares) if share]
        batches = MixedTraining(
            [opened[index][0] for index in given],
            [train.shares[index] for index in given],
            self.training.batch_size,
        )
        return batches, scored if validation is None else scored[0]

    def of_one(
        self, train: Source, validation: Source | None
    ) -> tuple[TextTraining | StreamedTraining, Rows]:
        """Batches and validation rows of one source."""
        if isinstance(train, StreamedDataset):
            return self.streamed(train, validation)
        return self.stored(train, validation)

    def stored(
        self, train: DocumentSource, validation: Source | None
    ) -> tuple[TextTraining, PackedRows]:
        """Batches and validation rows of a source that is read, tokenised and kept."""
        corpus = self._tokenized(train)
        if validation is None:
            other, kept, scored, how = (corpus, *self._split(corpus))
        else:
            other = self._tokenized(self._finite(validation))
            kept = self._without_shared(corpus, other)
            scored, how = self._part(other), validation.name
        if self.share:
            self._note("training", train.name, corpus, kept)
        self._note("validation", how, other, scored)
        if self.share and kept.tokens < self.training.sequence_length:
            raise DataError(
                f"{train.field}: {train.name} has {kept.tokens} training tokens, fewer than one "
                f"sequence of training.sequence_length = {self.training.sequence_length}"
            )
        rows = self._packed(corpus, kept)
        wanted = self.share * self.training.total_steps * self.training.batch_size
        whose = "the training text" if self.share == 1.0 else train.name
        if self.share:
            self.notes.append(f"{EPOCHS}{wanted / len(rows):.3g} times {whose}")
        batch_size = self.rows or self.training.batch_size
        batches = TextTraining(rows, batch_size, self.seed, self.encoder.vocab_size)
        return batches, self._packed(other, scored)

    def streamed(
        self, train: StreamedDataset, validation: Source | None
    ) -> tuple[StreamedTraining, PackedRows]:
        """Batches of a source that is read while training; validation text is read first."""
        fraction = self.data.validation_fraction
        if validation is None:
            characters = self._characters_scored()
            sample: DocumentSource = self.processes.telling()(
                lambda: held_out_sample(train, fraction, characters)
            )
        else:
            sample = self._finite(validation)
        other = self._tokenized(sample)
        scored = self._part(other)
        if self.share:
            self.notes.append(f"training: {train.name}, {train.order}")
        self._note("validation", sample.name, other, scored)
        known = set(other.digests.tolist())

        def wanted(digest: int) -> bool:
            by_hash = (
                validation is None
                and falls_in_validation(np.array([digest], np.uint64), fraction)[0]
            )
            return not by_hash and digest not in known

        batches = StreamedTraining(
            train,
            self.encoder,
            self.training.sequence_length,
            self.rows or self.training.batch_size,
            wanted,
            boundaries=self.data.pack_documents,
            processes=self.processes,
        )
        return batches, self._packed(other, scored)

    def _tokenized(self, source: DocumentSource) -> Corpus:
        workers = self.data.workers
        return tokenized(source, self.encoder, self.root, workers=workers, watch=self.watch)

    def _split(self, corpus: Corpus) -> tuple[Segments, Segments, str]:
        fraction = self.data.validation_fraction
        digests = np.asarray(corpus.digests)
        if len(np.unique(digests)) < 2:
            if self.data.validation_part != "all":
                raise _too_few_to_halve(self.data.validation_part)
            kept, scored = cut_document(corpus, self.encoder, fraction)
            return kept, scored, "the end of the only document, from a line's start on"
        out = choose_validation(digests, fraction)
        kept = segments_of(corpus, self.encoder, ~out)
        return kept, self._part(corpus, out), "the documents held out by their hash"

    def _part(self, corpus: Corpus, held_out: NDArray[np.bool_] | None = None) -> Segments:
        """What is scored of the documents that are held out; by default all of ``corpus`` are."""
        part, digests = self.data.validation_part, np.asarray(corpus.digests)
        if part == "all":
            return segments_of(corpus, self.encoder, held_out)
        everything = np.ones(len(digests), bool) if held_out is None else held_out
        try:
            half = choose_half(digests, everything, second=part == "final")
        except ValueError:
            raise _too_few_to_halve(part) from None
        return segments_of(corpus, self.encoder, half)

    def _without_shared(self, corpus: Corpus, other: Corpus) -> Segments:
        shared = np.isin(corpus.digests, other.digests, kind="sort")
        if shared.all():
            raise DataError(
                "data.validation: every training document is also a validation document; name "
                "other files, or leave it out to hold out a fraction of data.train"
            )
        if shared.any():
            self.notes.append(f"{shared.sum()} documents are also in validation: not trained on")
        return segments_of(corpus, self.encoder, ~shared)

    def _finite(self, source: Source) -> DocumentSource:
        if isinstance(source, StreamedDataset):
            characters = self._characters_scored()
            return self.processes.telling()(lambda: leading_sample(source, characters))
        return source

    def _characters_scored(self) -> int:
        """About as much text as the end evaluation of a stream scores; a token spells about 4."""
        per_batch = self.evaluation.batch_size or self.training.batch_size
        batches = self.evaluation.max_batches
        rows = batches * per_batch if batches else _ROWS_OF_A_STREAM
        return 4 * rows * self.training.sequence_length

    def _packed(self, corpus: Corpus, segments: Segments) -> PackedRows:
        return PackedRows(
            corpus,
            segments,
            self.encoder,
            self.training.sequence_length,
            boundaries=self.data.pack_documents,
        )

    def _note(self, role: str, how: str, corpus: Corpus, segments: Segments) -> None:
        documents = "1 part" if len(segments.starts) == 1 else f"{len(segments.starts):,} documents"
        self.notes.append(f"{role}: {how}: {documents}, {segments.tokens:,} tokens")
        off = np.abs(corpus.corrections).sum() / max(1, corpus.byte_counts.sum())
        if off > 0.01:
            self.notes.append(
                f"{role}: the tokenizer does not spell {off:.1%} of the text as it is written; "
                "bits per byte still divide by the bytes of the text"
            )
