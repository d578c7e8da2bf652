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
    assert classes | {"nearest"} == set(errors.__all__)
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
