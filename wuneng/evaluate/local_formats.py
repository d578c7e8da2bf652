"""The row formats of public test sets, recognised by their fields, as data.

`FORMATS` is the one table: which fields a row must have, which harness tasks they mean, and how a
row becomes what the harness' own task file reads, so that prompts and scores are the stock ones.
`formats_table()` renders it for the README and the help text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FORMATS", "LocalFormat", "format_of_row", "format_of_task", "formats_table"]

Row = dict[str, Any]


@dataclass(frozen=True)
class LocalFormat:
    """One row layout.

    Attributes:
        name: the data set, as people call it.
        fields: the fields that every row has; a file is recognised by its first row's.
        tasks: harness tasks such a file can serve, with the word (regular expression) that the
            file's path must contain to tell several tasks of one layout apart; "" for none. A task
            ending in ``*`` stands for one task per value of the row's ``subject``.
        convert: a row as the stock task expects it; ValueError says what is wrong with the row.
        exact: a row has these fields and no others.
        alternative: another set of fields that is as good.
        labels_beside: the label may stand in a second file, ``<name>-labels.lst``.
    """

    name: str
    fields: tuple[str, ...]
    tasks: Mapping[str, str]
    convert: Callable[[Row], Row]
    exact: bool = False
    alternative: tuple[str, ...] = ()
    labels_beside: bool = False

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has this layout's fields."""
        if self.exact:
            return set(row) == set(self.fields)
        return any(fields and set(fields) <= set(row) for fields in (self.fields, self.alternative))

    def task_of(self, row: Mapping[str, Any], path: str) -> str | None:
        """The harness task that a row of the file at `path` belongs to, if any."""
        for task, word in self.tasks.items():
            if re.search(word, path.lower()):
                return task.replace("*", str(row.get("subject", "")))
        return None


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} must be a string, not {type(value).__name__}")
    return _spelled(value, field)


def _spelled(text: str, field: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"field {field!r} holds half a surrogate pair, which is no text"
        ) from error
    return text


def _texts(value: Any, field: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError(f"field {field!r} must be a list of strings")
    return [_spelled(text, field) for text in value]


def _index(row: Row, field: str, count: int) -> int:
    """A choice number, given as a number, a digit string or a truth value."""
    value = row.get(field)
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if not isinstance(value, bool | int) or not 0 <= int(value) < count:
        raise ValueError(f"field {field!r} must be a number from 0 to {count - 1}, not {value!r}")
    return int(value)


def _labelled_choices(row: Row) -> Row:
    choices = row.get("choices")
    if not isinstance(choices, dict) or not {"text", "label"} <= set(choices):
        raise ValueError("field 'choices' must hold the lists 'text' and 'label'")
    text, label = _texts(choices["text"], "choices.text"), _texts(choices["label"], "choices.label")
    answer = _text(row, "answerKey").strip()
    if len(text) != len(label) or answer not in label:
        raise ValueError(f"answerKey {answer!r} is not one of the {len(text)} labels {label}")
    return {"choices": {"text": text, "label": label}, "answerKey": answer}


def _arc(row: Row) -> Row:
    return {"question": _text(row, "question"), **_labelled_choices(row)}


def _openbookqa(row: Row) -> Row:
    return {"question_stem": _text(row, "question_stem"), **_labelled_choices(row)}


def _hellaswag(row: Row) -> Row:
    endings = _texts(row.get("endings"), "endings")
    if "ctx_a" in row and "ctx_b" in row:
        before, after = _text(row, "ctx_a"), _text(row, "ctx_b")
    else:
        # Cleaned copies keep only the joined context. Its text is used as it stands: splitting
        # the last half-sentence off again (to capitalise it) would be a guess.
        before, after = _text(row, "ctx"), ""
    return {
        "activity_label": _text(row, "activity_label"),
        "ctx_a": before,
        "ctx_b": after,
        "endings": endings,
        "label": str(_index(row, "label", len(endings))),
    }


def _piqa(row: Row) -> Row:
    texts = {field: _text(row, field) for field in ("goal", "sol1", "sol2")}
    if "label" not in row:
        raise ValueError("no label: neither a field 'label' nor a file <name>-labels.lst beside it")
    return {**texts, "label": _index(row, "label", 2)}


def _winogrande(row: Row) -> Row:
    texts = {field: _text(row, field) for field in ("sentence", "option1", "option2")}
    answer = str(row.get("answer"))
    if answer not in ("1", "2"):
        raise ValueError(f"field 'answer' must be '1' or '2', not {answer!r}")
    if "_" not in texts["sentence"]:
        raise ValueError("field 'sentence' has no blank '_'")
    return {**texts, "answer": answer}


def _boolq(row: Row) -> Row:
    texts = {field: _text(row, field) for field in ("question", "passage")}
    return {**texts, "label": _index(row, "label", 2)}


def _copa(row: Row) -> Row:
    texts = {field: _text(row, field) for field in ("premise", "choice1", "choice2", "question")}
    if texts["question"] not in ("cause", "effect"):
        raise ValueError(f"field 'question' must be 'cause' or 'effect', not {texts['question']!r}")
    return {**texts, "label": _index(row, "label", 2)}


def _lambada(row: Row) -> Row:
    text = _text(row, "text")
    if " " not in text:
        raise ValueError("field 'text' needs at least two words: a context and the word to predict")
    return {"text": text}


def _mmlu(row: Row) -> Row:
    choices = _texts(row.get("choices"), "choices")
    if len(choices) != 4:
        raise ValueError(f"field 'choices' must hold 4 strings, not {len(choices)}")
    texts = {field: _text(row, field) for field in ("question", "subject")}
    return {**texts, "choices": choices, "answer": _index(row, "answer", 4)}


def _gsm8k(row: Row) -> Row:
    answer = _text(row, "answer")
    if "#### " not in answer:
        raise ValueError("field 'answer' must end in '#### <number>'")
    return {"question": _text(row, "question"), "answer": answer}


_SCIQ = ("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support")


def _sciq(row: Row) -> Row:
    return {field: _text(row, field) for field in _SCIQ}


FORMATS: tuple[LocalFormat, ...] = (
    LocalFormat(
        "ARC",
        ("question", "choices", "answerKey"),
        {"arc_easy": "easy", "arc_challenge": "challenge"},
        _arc,
    ),
    LocalFormat(
        "HellaSwag",
        ("activity_label", "ctx", "endings", "label"),
        {"hellaswag": ""},
        _hellaswag,
        alternative=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    ),
    LocalFormat("PIQA", ("goal", "sol1", "sol2"), {"piqa": ""}, _piqa, labels_beside=True),
    LocalFormat(
        "WinoGrande",
        ("sentence", "option1", "option2", "answer"),
        {"winogrande": ""},
        _winogrande,
    ),
    LocalFormat(
        "OpenBookQA", ("question_stem", "choices", "answerKey"), {"openbookqa": ""}, _openbookqa
    ),
    LocalFormat("BoolQ (SuperGLUE)", ("question", "passage", "label"), {"boolq": ""}, _boolq),
    LocalFormat(
        "COPA (SuperGLUE)",
        ("premise", "choice1", "choice2", "question", "label"),
        {"copa": ""},
        _copa,
    ),
    LocalFormat("LAMBADA", ("text",), {"lambada_openai": "lambada"}, _lambada, exact=True),
    LocalFormat("SciQ", _SCIQ, {"sciq": ""}, _sciq),
    LocalFormat("MMLU", ("question", "subject", "choices", "answer"), {"mmlu_*": ""}, _mmlu),
    LocalFormat("GSM8K", ("question", "answer"), {"gsm8k": ""}, _gsm8k, exact=True),
)


def format_of_row(row: Mapping[str, Any]) -> LocalFormat | None:
    """The layout with the most fields that a row has, or None."""
    fitting = [known for known in FORMATS if known.matches(row)]
    return max(fitting, key=lambda known: len(known.fields), default=None)


def format_of_task(task: str) -> LocalFormat | None:
    """The layout whose files can serve a harness task, or None."""
    for known in FORMATS:
        for name in known.tasks:
            if task == name or (name.endswith("*") and task.startswith(name[:-1])):
                return known
    return None


def formats_table() -> str:
    """`FORMATS` as a Markdown table: task, data set, fields, what else is looked at."""
    lines = ["| task | data set | fields of a row | also |", "|---|---|---|---|"]
    for known in FORMATS:
        for task, word in known.tasks.items():
            also = [f"path contains `{word}`"] if word else []
            also += ["or `ctx_a`, `ctx_b` instead of `ctx`"] if known.alternative else []
            also += ["`label` in the row or in `<name>-labels.lst`"] if known.labels_beside else []
            also += ["no other field"] if known.exact else []
            fields = ", ".join(f"`{field}`" for field in known.fields)
            shown = task.replace("*", "<subject>")
            lines.append(f"| `{shown}` | {known.name} | {fields} | {'; '.join(also)} |")
    return "\n".join(lines)
