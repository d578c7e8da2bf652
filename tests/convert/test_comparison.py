"""How far a converted model's logits may be from its source's."""

from __future__ import annotations

import pytest
import torch

from wuneng.convert.comparison import compare


@pytest.mark.parametrize(
    ("lost", "passes"), [(None, False), (1e-6, False), (1e-5, True), (float("nan"), False)]
)
def test_what_the_source_itself_loses_in_float32_is_allowed(
    lost: float | None, passes: bool
) -> None:
    expected = {"full forward": torch.randn(3, 7).clamp(-1, 1)}
    got = {"full forward": expected["full forward"] + 5e-5}
    exact = None if lost is None else {"full forward": expected["full forward"].double() + lost}
    (check,) = compare(expected, got, torch.float32, exact=exact)
    assert check.passed == passes
    assert compare(expected, expected, torch.float32, exact=exact)[0].passed
