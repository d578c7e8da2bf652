"""What the harness' long-context tasks need that its task files do not say: RULER, BABILong.

They make their texts when they are loaded, to lengths counted in the tokenizer that the task
manager's metadata names. RULER would load that tokenizer together with any code beside it, fetch
the rules for splitting sentences, and fetch essays to hide its needles in; here it is given the
tokenizer that is loaded already, splits sentences itself where the rules are not there, takes the
text files of ``--data-dir`` for the essays, and is seeded as the harness' own command seeds it. Its
two question-answering tasks and BABILong have data sets that only the network has.
"""

from __future__ import annotations

import contextlib
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from wuneng.data.documents import read_documents
from wuneng.errors import TaskError
from wuneng.evaluate.reader import Reader

__all__ = [
    "RULER_MEAN",
    "generated",
    "interleaved",
    "length_metadata",
    "local_ruler",
    "seeded",
    "too_short",
]

#: How RULER's task files call their mean over the items of one length, -1 for the others.
RULER_MEAN = "aggregate_metrics"

# The seeds that `lm-eval` sets before it loads tasks, and the length that RULER has by itself.
_SEED, _NUMPY_SEED = 0, 1234
_DEFAULT_LENGTHS = (4096,)
# Tokens that these two tasks keep for the answer (and some that their texts vary by), and what the
# solved example before a question may have.
_VT_SPARE, _VT_EXAMPLE = 40, 500
_CWE_SPARE = 220
_ESSAYS = "baber/paul_graham_essays"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def length_metadata(
    reader: Reader | None, lengths: Sequence[int] | None, names: Sequence[str]
) -> dict[str, Any]:
    """The task manager's metadata: the tokenizer, and the lengths as the tasks spell them.

    Raises TaskError for lengths that BABILong cannot take: it has one at a time, in thousands.
    """
    if reader is None:
        return {}
    metadata: dict[str, Any] = {"tokenizer": str(reader.path), "pretrained": str(reader.path)}
    babilong = [name for name in names if name.startswith("babilong")]
    if lengths and babilong:
        if len(lengths) > 1 or lengths[0] % 1024 or len(babilong) < len(names):
            raise TaskError(
                f"--lengths: {babilong[0]} takes one length, as 4k, in a call of its own; got "
                f"{', '.join(map(str, lengths))} for {', '.join(names)}"
            )
        metadata["max_seq_lengths"] = f"{lengths[0] // 1024}k"
    elif lengths:
        metadata["max_seq_lengths"] = list(lengths)
    return metadata


def generated(config: Mapping[str, Any]) -> bool:
    """Whether a task makes its items itself, rather than reading a data set."""
    return "custom_dataset" in config


def interleaved(task: Any) -> None:
    """Let a task's lengths take turns, so that its first items are of all of them."""
    splits = task.dataset if isinstance(task.dataset, dict) else {}
    for split, items in splits.items():
        if {"index", "max_length"} <= set(getattr(items, "column_names", ())):
            task.dataset[split] = items.sort("index")


@contextmanager
def local_ruler(
    reader: Reader | None,
    data_dir: Path | None,
    lengths: Sequence[int] | None,
    limit: int | None,
) -> Iterator[None]:
    """RULER's sources are here while this is open: the reader's tokenizer, the directory's text.

    Raises TaskError where its packages are not installed.
    """
    ruler = _modules()
    shim = SimpleNamespace(
        load_dataset=_essays_of(
            data_dir, max(lengths or _DEFAULT_LENGTHS), ruler.niah.datasets.load_dataset
        )
    )
    given = SimpleNamespace(from_pretrained=lambda *_, **__: reader and reader.tokenizer)
    ruler.common.get_tokenizer.cache_clear()  # it goes by the path alone
    ruler.niah.cached_sent_tokenize.cache_clear()
    with (
        contextlib.redirect_stdout(sys.stderr),  # one of them prints; stdout is for results
        _replaced(ruler.niah, "datasets", shim),
        # Its bar goes through the numbers of the samples: no more needles are hidden than wanted.
        _replaced(ruler.niah, "tqdm", lambda numbers, **_: numbers[:limit]),
        _replaced(ruler.common, "AutoTokenizer", given),
        _replaced(ruler.niah, "sent_tokenize", ruler.sentences),
    ):
        yield
    ruler.common.get_tokenizer.cache_clear()


def too_short(leaf: str, reader: Reader | None, lengths: Sequence[int] | None) -> str | None:
    """Why a RULER task would look for a text that fits for ever, or None; call it while
    `local_ruler` is open."""
    lengths = lengths or _DEFAULT_LENGTHS
    if reader is None or leaf not in ("ruler_vt", "ruler_cwe"):
        return None
    state = random.getstate()
    try:
        if leaf == "ruler_vt":
            from lm_eval.tasks.ruler import vt_utils

            shown, names = vt_utils.generate_input_output(5, 1, 4, is_icl=True)
            needs = reader.count(f"{shown} {names}") + _VT_SPARE
            if needs > _VT_EXAMPLE:
                return f"its solved example may have {_VT_EXAMPLE} tokens and needs {needs:,}"
            text, names = vt_utils.generate_input_output(10, 1, 4)
            needs += reader.count(f"{text} {names}") + _VT_SPARE
        else:
            from lm_eval.tasks.ruler import cwe_utils

            order = cwe_utils.RNG.getstate()
            text = "\n".join(cwe_utils.generate_input_output(10, min(lengths))[:2])
            cwe_utils.RNG.setstate(order)
            needs = reader.count(text) + _CWE_SPARE
    finally:
        random.setstate(state)
    if needs > min(lengths):
        return f"its shortest text has about {needs:,} tokens, and --lengths {min(lengths):,}"
    return None


@contextmanager
def seeded() -> Iterator[None]:
    """The seeds of the harness' command for one task, so that its items do not depend on those made
    before; the random numbers of others go on as if nothing were."""
    states = random.getstate(), np.random.get_state()
    random.seed(_SEED)
    np.random.seed(_NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _modules() -> SimpleNamespace:
    try:
        import nltk
        import wonderwords  # noqa: F401
    except ImportError as error:
        raise TaskError(
            f"RULER's tasks need the package {error.name}: pip install 'wuneng[ruler]'"
        ) from error
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:  # the module would fetch it as it is imported
        with _replaced(nltk, "download", lambda *_, **__: False):
            return SimpleNamespace(**_imported(), sentences=_SENTENCE_END.split)
    return SimpleNamespace(**_imported(), sentences=nltk.sent_tokenize)


def _imported() -> dict[str, Any]:
    from lm_eval.tasks.ruler import common_utils, prepare_niah

    return {"niah": prepare_niah, "common": common_utils}


def _essays_of(data_dir: Path | None, longest: int, load: Any) -> Any:
    """``datasets.load_dataset``, with the directory's text in the essays' place, repeated until it
    has as many words as the longest haystack has tokens."""

    def load_dataset(name: str, **arguments: Any) -> Any:
        if name != _ESSAYS or data_dir is None:
            return load(name, **arguments)
        paths = sorted(path for kind in ("*.txt", "*.md") for path in data_dir.rglob(kind))
        texts = [text for path in paths for text in read_documents(path, "text")]
        if not texts:
            raise TaskError(
                f"--data-dir: RULER hides its needles in text, and {data_dir} has no .txt or .md "
                "file with any; add some, or leave --data-dir out to fetch the usual essays"
            )
        words = sum(len(text.split()) for text in texts)
        return {"text": texts * -(-longest // max(1, words))}

    return load_dataset
