"""One bar of ours while a model answers, on a terminal only; the harness' own never show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wuneng.evaluate.harness_model import HarnessModel

Make = Callable[..., Path]
THEIRS = ("Tokenizing inputs", "Running generate_until", "Running loglikelihood", "Scoring", "it/s")
KINDS = {
    "loglikelihood": (("owls", " hoot"), "scoring", "tokens"),
    "loglikelihood by the harness": (("owls", " hoot"), "scoring", "1/1 answers"),
    "loglikelihood_rolling": (("owls",), "reading", "1/1 texts"),
    "generate_until": (("owls", {"until": ["\n"], "max_gen_toks": 2}), "writing", "1/1 answers"),
}


@pytest.mark.parametrize("place", ["terminal", "not wanted", "pipe"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_bar_of_ours(
    load: Callable[..., Any],
    tiny: Make,
    kind: str,
    place: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval.api.instance import Instance

    arguments, what, done = KINDS[kind]
    name = kind.partition(" ")[0]
    asked = [Instance(name, {}, arguments, 0, metadata=("task", 0, 1))]  # type: ignore[arg-type]
    loaded = load(tiny("llama"))
    monkeypatch.setenv("TTY_COMPATIBLE", "0" if place == "pipe" else "1")
    if place != "pipe":  # how a rich before 14 is told
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
    shares = "by the harness" not in kind
    model = HarnessModel(loaded, 2, progress=place != "not wanted", share=shares)
    capfd.readouterr()  # what saving the model has shown
    getattr(model, name)(asked)
    out, err = capfd.readouterr()
    assert out == ""
    if place == "terminal":
        assert f"{what} {loaded.label}" in " ".join(err.split())
        assert done in err
        assert [word for word in THEIRS if word in err] == []
    else:
        assert err == ""
