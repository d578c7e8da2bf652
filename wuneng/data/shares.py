"""What a run takes of each source of a mixture, before anything is tokenised for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wuneng.data.cache_directory import cache_root
from wuneng.data.encoding import Encoder
from wuneng.data.sources import open_mixture
from wuneng.data.streamed import StreamedDataset
from wuneng.data.token_cache import cached
from wuneng.recipe.data import TextData
from wuneng.recipe.training import Training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["source_shares"]


def source_shares(
    data: TextData, training: Training, tokenizer: PreTrainedTokenizerFast | None
) -> list[dict[str, Any]]:
    """``name``, ``share`` (0 to 1), ``tokens`` of the run and ``epochs`` of each source of a
    mixture, ready for JSON; nothing where there is one source only.

    ``epochs``, how often the source is read, is None unless its tokens are in the cache already.
    """
    if data.mixture is None:
        return []
    mixed = open_mixture(data.mixture, data.text_field, data.max_documents)
    encoder = None if tokenizer is None else Encoder(tokenizer)
    kept = 1.0 if data.validation is not None else 1.0 - data.validation_fraction
    found = []
    for name, source, share in zip(mixed.names, mixed.sources, mixed.shares, strict=True):
        tokens, epochs = share * training.total_tokens, None
        if encoder is not None and not isinstance(source, StreamedDataset):
            corpus = cached(source, encoder, cache_root(data.cache_dir))
            epochs = None if corpus is None else tokens / (kept * len(corpus.tokens))
        found.append({"name": name, "share": share, "tokens": round(tokens), "epochs": epochs})
    return found
