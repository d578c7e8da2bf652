"""What is not plain training, in several processes: compiled blocks, adapters, a teacher, and
keeping the best checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.distributed.cases import (
    SMALLER,
    Case,
    best_steps,
    compiled_losses,
    losses,
    run_text,
    run_upgrade,
)
from tests.distributed.pool import Pool, pool
from tests.distributed.test_resume import metrics, recipe
from tests.train.small_upgrade import RECIPE, STEPS, save_sources
from wuneng.distributed.degrees import Degrees
from wuneng.distributed.processes import ALONE
from wuneng.model.pretrained import load_whole_model
from wuneng.records import read_json, read_jsonl

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
CUT = ("parallel.shard=2",)


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    with pool(2) as started:
        yield started


@pytest.mark.parametrize("degrees", [Degrees(replicate=2), Degrees(shard=2)], ids=["ddp", "fsdp"])
def test_blocks_are_compiled_by_themselves(processes: Pool, degrees: Degrees) -> None:
    case = Case(degrees=degrees, changes=(*SMALLER, "training.compile=true"))
    compiled = processes.run(2, compiled_losses, case)
    plain = processes.run(2, losses, replace(case, changes=SMALLER))[0]
    for found, graphs in compiled:
        assert graphs > 0
        for mine, its in zip(found, plain, strict=True):
            assert mine == pytest.approx(its, rel=1e-4)


@needs_peft
@pytest.mark.parametrize("changes", [(), CUT], ids=["ddp", "fsdp"])
def test_an_upgrade_is_one_process_upgrade(
    processes: Pool, alone: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    """Every kind of arm: scored as it is, new heads alone, adapters, and one with a teacher."""
    place, out = alone.parent, tmp_path / "run"
    processes.run(2, run_upgrade, place, out, changes)
    for arm in RECIPE["arms"]:
        found, expected = (read_json(run / arm / "result.json")["quality"] for run in (out, alone))
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=2e-4), (arm, name)
        if arm == "source":
            continue
        curves = [read_jsonl(run / arm / "metrics.jsonl") for run in (out, alone)]
        assert [row["step"] for row in curves[0]] == list(range(1, STEPS + 1))
        for mine, its in zip(*curves, strict=True):
            shared = {"loss", "kl", "ce"} & its.keys()
            assert {n: mine[n] for n in shared} == pytest.approx({n: its[n] for n in shared}, 2e-4)
    names = {name for name, _ in load_whole_model(out / "lora" / "model").named_parameters()}
    assert not any("lora" in name for name in names), "adapters are merged"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, beside what it starts from."""
    place = tmp_path_factory.mktemp("upgrade")
    save_sources(place)
    run_upgrade(ALONE, place, place / "alone", ())
    return place / "alone"


@pytest.mark.parametrize("changes", [(), CUT], ids=["ddp", "fsdp"])
def test_the_best_is_the_same_for_all(
    processes: Pool, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    """Also where a process measures otherwise, as GPUs do in the last digits."""
    best = ("training.keep_best=true", "training.keep_checkpoints=1", "training.validate_every=3")
    path = recipe(tmp_path / "run")
    kept = processes.run(2, best_steps, path, (*best, *changes), 100.0)
    other = recipe(tmp_path / "alone")
    run_text(ALONE, other, best, None)
    losses = {
        row["step"]: row["validation"]["text/loss"] for row in metrics(other) if "validation" in row
    }
    assert kept == [sorted({min(losses, key=losses.__getitem__), 9})] * 2
