"""The tree of errors: every class is exported, drawn, and has the exit code that it promises."""

from __future__ import annotations

import pytest

from wuneng import errors


def test_every_class_is_exported_and_drawn() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.WuNengError)
    }
    assert classes | {"file_errors", "nearest", "reason", "shortened"} == set(errors.__all__)
    assert all(name in (errors.__doc__ or "") for name in classes)


def test_exit_codes() -> None:
    for name in errors.__all__:
        value = getattr(errors, name)
        if isinstance(value, type):
            assert value.exit_code == (2 if issubclass(value, errors.InputError) else 1), name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("num_state_head", " Did you mean 'num_state_heads'?"),
        ("MHA_shift", " Did you mean 'mha-shift'?"),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_nearest(name: str, hint: str) -> None:
    assert errors.nearest(name, ["num_state_heads", "mha-shift", "mha"]) == hint


def test_names_without_end_are_like_nothing() -> None:
    assert errors.nearest("x" * 1_000_000, ["x" * 199]) == ""


class Panic(BaseException):
    """As pyo3's PanicException: not an Exception."""


@pytest.mark.parametrize("raised", [Panic("two\nlines"), ValueError("two\nlines"), KeyError("two")])
def test_what_a_library_raises_over_a_file(raised: BaseException) -> None:
    with (
        pytest.raises(errors.DataError, match=r"^x\.json: not readable: '?two'?$") as caught,
        errors.file_errors("x.json: not readable", errors.DataError),
    ):
        raise raised
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), MemoryError(), errors.TaskError("x")])
def test_what_is_not_the_files_fault_passes(raised: BaseException) -> None:
    with pytest.raises(type(raised)), errors.file_errors("x", errors.DataError):
        raise raised


def test_messages_end_somewhere() -> None:
    assert len(str(errors.DataError("x" * 100_000))) == 8003


def test_reasons_are_one_short_line() -> None:
    assert errors.reason(ValueError("\n  first\nsecond")) == "first"
    assert errors.reason(ValueError()) == "ValueError"
    assert errors.reason(ValueError("x" * 1000), 10) == "x" * 10 + "..."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Validation error for field 'x':\n    TypeError: expected int, got 'a'\nmore",
            "int, got 'a'",
        ),
        ("one:\n\ntwo:\nthree\nfour", "one: two: three"),
        ("alone:", "alone:"),
        ("\n  \n", "ValueError"),
    ],
)
def test_a_line_that_announces_the_next(text: str, said: str) -> None:
    assert errors.reason(ValueError(text)).endswith(said)
