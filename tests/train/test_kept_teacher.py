"""What a teacher says of a row is asked once, kept on disk, and read from there ever after."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.train.small_upgrade import recipe, save_sources, train
from tests.train.tiny import UNTIMED, Watcher
from wuneng.convert import ConvertedSources
from wuneng.errors import DiskError, RecipeError
from wuneng.ops.linear_cross_entropy import TopK, top_k_of
from wuneng.records import read_jsonl
from wuneng.records.user_cache import clear, entries
from wuneng.train import teacher_rows
from wuneng.train.distillation import SilentSelf
from wuneng.train.estimate import estimate
from wuneng.train.plan import plan_run
from wuneng.train.teacher_rows import TeacherRows, bytes_of_row, row_name
from wuneng_cli.dry_run import plan_lines
from wuneng_cli.render import short_bytes

ARMS = ("arms={wuneng: {}}", "training.learning_rates={}", "training.steps=6")
STAGES = "stages=[{{align: {{steps: 2}}}}, {{distill: {{steps: 4, temperature: 2.0, {more}}}}}]"
KEPT = STAGES.format(more="teacher_top_k: 5")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_sources(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that a teacher was asked for, each by its name."""
    rows: list[str] = []
    heard = SilentSelf.heard

    def noting(self: SilentSelf, input_ids: Tensor, documents: Tensor | None) -> Any:
        for row, ids in enumerate(input_ids):
            rows.append(row_name(ids, None if documents is None else documents[row]))
        return heard(self, input_ids, documents)

    monkeypatch.setattr(SilentSelf, "heard", noting)
    return rows


def losses(out: Path, arm: str = "wuneng") -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in UNTIMED}
        for row in read_jsonl(out / arm / "metrics.jsonl")
    ]


def files(place: Path) -> list[Path]:
    return sorted((place / "cache" / "teachers").rglob("*.topk"))


def test_a_row_is_asked_for_once_over_epochs_arms_and_seeds(place: Path, asked: list[str]) -> None:
    """Also where another arm's branch is another."""
    arms = "arms={wuneng: {}, other: {model: {cross_head: additive, num_state_heads: 1}}}"
    more = "training.batch_size=12", "seed=[0, 1]", arms  # some rows come in several steps
    train(place, place / "run", *ARMS, *more, KEPT)
    steps = 2 * 2 * 4 * 12
    assert set(Counter(asked).values()) == {1}
    assert len(asked) < steps / 3, "two arms and two seeds, and rows that come again"
    assert len(files(place)) == len(asked)
    assert {path.stem for path in files(place)} == set(asked)
    assert len({path.parents[1] for path in files(place)}) == 1


def test_the_first_run_and_one_that_finds_all_there_have_the_same_bits(
    place: Path, asked: list[str]
) -> None:
    train(place, place / "first", *ARMS, KEPT)
    before = len(asked)
    assert before
    train(place, place / "second", *ARMS, KEPT)
    assert len(asked) == before
    assert losses(place / "first") == losses(place / "second")
    assert any("kl" in row for row in losses(place / "first"))


def test_a_stopped_run_goes_on_to_the_same_bits(place: Path) -> None:
    train(place, place / "whole", *ARMS, KEPT)
    clear(place / "cache", ["teachers"])

    class Stopped(BaseException):
        pass

    def stop(progress: Any) -> None:
        if progress.step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train(place, place / "stopped", *ARMS, KEPT, display=Watcher(stop))
    files(place)[0].unlink()
    train(place, place / "stopped", *ARMS, KEPT)
    assert losses(place / "stopped") == losses(place / "whole")


def test_with_all_words_it_learns_as_from_the_teacher_itself(place: Path) -> None:
    train(place, place / "kept", *ARMS, STAGES.format(more="teacher_top_k: 257"))
    train(place, place / "asked", *ARMS, STAGES.format(more="kl: 1.0"))
    kept, plain = (
        [(row["loss"], row["kl"], row["ce"]) for row in losses(place / name) if "kl" in row]
        for name in ("kept", "asked")
    )
    assert len(kept) == 4
    # Log-probabilities lose half a unit of float16's eleven bits: 2^-11 of up to 8 nats or so.
    assert torch.allclose(torch.tensor(kept), torch.tensor(plain), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "change",
    [
        "stages=[{align: {steps: 2}}, {distill: {steps: 4, teacher_top_k: 6, temperature: 2.0}}]",
        "stages=[{align: {steps: 2}}, {distill: {steps: 4, teacher_top_k: 5, temperature: 1.0}}]",
        "training.precision=bf16",
    ],
)
def test_another_teacher_is_another(place: Path, asked: list[str], change: str) -> None:
    train(place, place / "first", *ARMS, KEPT)
    before = len(asked)
    train(place, place / "second", *ARMS, KEPT, change)
    assert len(asked) == 2 * before
    assert len({path.parents[1] for path in files(place)}) == 2


def test_other_weights_are_another_teacher(place: Path, asked: list[str]) -> None:
    train(place, place / "first", *ARMS, KEPT)
    before = len(asked)
    [file] = (place / "llama").glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"][3] += 0.01
    save_file(tensors, file, {"format": "pt"})
    train(place, place / "second", *ARMS, KEPT)
    assert len(asked) == 2 * before


@pytest.mark.parametrize("damage", ["flipped", "cut", "other", "empty"])
def test_what_is_damaged_is_told_of_and_asked_again(
    place: Path, asked: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    train(place, place / "first", *ARMS, KEPT)
    before, chosen = len(asked), files(place)[3]
    whole = chosen.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "cut": whole[:-40],
        "other": b"WNTK" + whole[:-4],
        "empty": b"",
    }
    chosen.write_bytes(damaged[damage])
    train(place, place / "second", *ARMS, KEPT)
    assert asked[before:] == [chosen.stem]
    assert f"what the teacher said in {chosen} is damaged; it is asked again" in caplog.text
    assert chosen.read_bytes() == whole
    assert losses(place / "first") == losses(place / "second")


def test_a_full_disk_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(teacher_rows, "_put", full)
    with pytest.raises(DiskError, match=r"the disk is full .*leave out teacher_top_k"):
        train(place, place / "run", *ARMS, KEPT)


def test_more_words_than_there_are_are_refused(place: Path) -> None:
    with pytest.raises(RecipeError, match=r"teacher_top_k: .* 257 tokens, got 258"):
        train(place, place / "run", *ARMS, STAGES.format(more="teacher_top_k: 258"))


def test_what_it_takes_is_said_before(place: Path) -> None:
    plan = plan_run(recipe(place, *ARMS, KEPT), ConvertedSources())
    planned = estimate(plan)
    said = planned["arms"]["wuneng"]["teacher_bytes"]
    train(place, place / "run", *ARMS, KEPT)
    sizes = [path.stat().st_size for path in files(place)]
    assert set(sizes) == {bytes_of_row(32, 5)}
    assert sum(sizes) == said, "no row came twice in these sixteen"
    [kept] = [entry for entry in entries(place / "cache") if entry.kind == "teachers"]
    assert kept.bytes == said
    lines = "\n".join(plan_lines({**planned, "seeds": [0]}))
    assert f"(teacher_top_k): at most {short_bytes(said)} in the cache" in lines
    without = estimate(plan_run(recipe(place, *ARMS), ConvertedSources()))
    assert without["arms"]["wuneng"]["teacher_bytes"] == 0
    assert "teacher_top_k" not in "\n".join(plan_lines({**without, "seeds": [0]}))


def test_a_row_comes_back_as_it_was_rounded(tmp_path: Path) -> None:
    rows = TeacherRows(tmp_path, 4)
    found = top_k_of(torch.randn(7, 50) * 5, 4, 1.0)
    written, read = rows.write("ab12", found), rows.read("ab12", 7)
    assert isinstance(read, TopK)
    for field in ("tokens", "log_probabilities", "log_rest"):
        assert torch.equal(getattr(written, field), getattr(read, field))
    assert torch.equal(read.tokens.long(), found.tokens)
    assert torch.equal(read.log_probabilities, found.log_probabilities.half().float())
    assert torch.equal(read.log_rest, found.log_rest)
    assert rows.read("ab12", 8) is None
    assert rows.read("cd34", 7) is None


def test_rows_are_named_by_what_is_in_them() -> None:
    ids, documents = torch.arange(9), torch.tensor([0] * 4 + [1] * 5)
    names = {
        row_name(ids, None),
        row_name(ids, documents),
        row_name(ids, documents.flip(0)),
        row_name(ids + 1, documents),
    }
    assert len(names) == 4
    assert row_name(ids.clone(), documents.int()) == row_name(ids, documents)
