"""Make a tokenizer fit for prompts, and see that it belongs to its model.

A prompt is the beginning of a text. A tokenizer made for training or classification may append an
end-of-text token (or [SEP]) to whatever it encodes; a model then continues after the end of a text,
and every answer is scored there. Such an ending is dropped; what stands in front (a beginning of
text) stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wuneng.errors import ModelError
from wuneng.model.pretrained import readable_text
from wuneng.model.token_ids import names_by_id

__all__ = ["check_rows", "drop_appended"]

_PROBE = "a"


def drop_appended(tokenizer: Any) -> str | None:
    """Keep ``tokenizer`` from appending tokens; a remark on what it appended, or None."""
    probe = readable_text(tokenizer, _PROBE)
    if probe is None:
        return None
    plain = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    before, after = _around(plain, list(tokenizer(probe)["input_ids"]))
    if not after:
        return None
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        _rewrite_template(tokenizer, before)
    else:
        _rewrite_method(tokenizer, len(after))
    found = list(tokenizer(probe)["input_ids"])
    if found != [*before, *plain]:
        raise ModelError(
            f"the tokenizer appends {_spelled(tokenizer, after)} to every prompt and cannot be "
            "kept from it; a model then continues after the end of a text"
        )
    return (
        f"the tokenizer appends {_spelled(tokenizer, after)} to what it encodes; dropped, because "
        "a prompt is no finished text"
    )


def check_rows(path: Path, tokenizer: Any, rows: int) -> None:
    """Every token has a row in the embedding. ModelError, with those that have none."""
    beyond = {index: token for index, token in names_by_id(tokenizer).items() if index >= rows}
    if not beyond:
        return
    shown = ", ".join(f"{beyond[index]!r} ({index})" for index in sorted(beyond)[:3])
    more = ", ..." if len(beyond) > 3 else ""
    raise ModelError(
        f"{path}: the tokenizer has {len(tokenizer):,} tokens, the model only {rows:,} rows in its "
        f"embedding, and ids go up to {max(beyond):,}; without one: {shown}{more}. They do not "
        "belong together, or tokens were added and the model was not resized "
        f"(`model.resize_token_embeddings({max(beyond) + 1})`, and save it)."
    )


def _around(plain: list[int], marked: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and after ``plain`` in ``marked``; nothing where it is not in there."""
    for start in range(len(marked) - len(plain) + 1):
        if marked[start : start + len(plain)] == plain:
            return marked[:start], marked[start + len(plain) :]
    return [], []


def _rewrite_template(tokenizer: Any, before: list[int]) -> None:
    """A fast tokenizer: put ``before`` in front of a text, and nothing behind it."""
    from tokenizers.processors import TemplateProcessing

    names = tokenizer.convert_ids_to_tokens(before)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*names, "$A"],
        pair=[*names, "$A", *(f"{name}:1" for name in names), "$B:1"],
        special_tokens=list(dict.fromkeys(zip(names, before, strict=True))),
    )


def _rewrite_method(tokenizer: Any, appended: int) -> None:
    """A tokenizer in Python: take off what it puts behind a text, one by one."""
    build = tokenizer.build_inputs_with_special_tokens

    def without_ending(first: list[int], second: list[int] | None = None) -> list[int]:
        whole: list[int] = build(first, second)
        return whole[:-appended]

    tokenizer.build_inputs_with_special_tokens = without_ending


def _spelled(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(map(str, tokenizer.convert_ids_to_tokens(ids)))
