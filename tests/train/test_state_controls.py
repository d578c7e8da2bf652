"""An arm that is a control of the state: trained and scored without its own text's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small_upgrade import checkpoint_of, recipe, train
from tests.train.test_stages import place  # noqa: F401  # the same Llama and documents
from tests.train.tiny import Watcher
from wuneng.controls.company import InCompany, in_company
from wuneng.controls.names import Control
from wuneng.controls.switch import controlled
from wuneng.convert import ConvertedSources
from wuneng.data.batch import IGNORED, Batch
from wuneng.distributed.processes import Processes
from wuneng.errors import DataError, InputError, RecipeError
from wuneng.model.pretrained import load_whole_model
from wuneng.recipe import Parallel
from wuneng.records import read_jsonl
from wuneng.train.plan import plan_run
from wuneng.train.spread import arm_degrees

ARMS = "arms={wuneng: {}, donor: {state: donor}, permute: {state: permute}, zero: {state: zero}}"


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:  # noqa: F811
    return train(place, place / "controls", ARMS)[0].directory


def test_the_first_loss_is_everyones_and_the_rest_are_not(finished: Path) -> None:
    """The branch is silent at first, whatever it reads."""
    losses = {
        name: [row["loss"] for row in read_jsonl(finished / name / "metrics.jsonl")]
        for name in ("wuneng", "donor", "permute", "zero")
    }
    assert len({tuple(found[:1]) for found in losses.values()}) == 1
    assert len({tuple(found[1:]) for found in losses.values()}) == len(losses)


@pytest.mark.parametrize("name", ["donor", "permute", "zero"])
def test_what_is_scored_is_the_saved_model_under_the_control(
    place: Path,  # noqa: F811
    finished: Path,
    name: str,
) -> None:
    start = f"init_from={finished / name / 'model'}"
    arms = f"arms={{it: {{train: none, state: {name}}}, plain: {{train: none}}}}"
    again, _ = train(
        *(place, place / f"again-{name}", start, "model={}", arms, "training.learning_rates={}"),
        sources=None,
    )
    trained = json.loads((finished / name / "result.json").read_text())
    scored = {arm: record["quality"] for arm, record in again.record["arms"].items()}
    assert scored["it"] == pytest.approx(trained["quality"], rel=1e-6)
    assert scored["plain"] != pytest.approx(trained["quality"], rel=1e-6)
    assert trained["state_control"] == name
    assert name in (finished / name / "model" / "README.md").read_text()


def test_what_is_saved_is_an_ordinary_model(finished: Path) -> None:
    plain, donor = (
        load_whole_model(finished / name / "model", dtype=torch.float32)
        for name in ("wuneng", "donor")
    )
    assert plain.config.to_diff_dict() == donor.config.to_diff_dict()
    ids = torch.arange(20)[None] + 60
    assert torch.isfinite(donor(input_ids=ids, use_cache=False).logits).all()
    with pytest.raises(ValueError, match="two sequences"), controlled(donor, Control("donor")):
        donor(input_ids=ids, use_cache=False)
    assert "state_control" not in json.loads((finished / "wuneng" / "result.json").read_text())


class Stopped(BaseException):
    pass


def test_a_stopped_control_goes_on_the_same_way(place: Path, finished: Path) -> None:  # noqa: F811
    out, arms = place / "stopped", "arms={donor: {state: donor}}"

    def at_step(progress: Any) -> None:
        if progress.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(place, out, arms, display=Watcher(at_step))
    train(place, out, arms)
    one, other = (checkpoint_of(run, "donor", "model.safetensors") for run in (finished, out))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.num_state_heads=0", "train=all"], "keep where there are no state heads, got dono"),
        (["training.compile=true"], "expected keep beside training.compile"),
        (["training.micro_batch_size=2"], "leave training.micro_batch_size out, got 2"),
        (["training.batch_size=1"], "training.batch_size is 1"),
        (["evaluation.batch_size=1"], "evaluation.batch_size is 1"),
    ],
)
def test_what_a_control_cannot_be(place: Path, changes: list[str], message: str) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=message):
        recipe(place, "arms={it: {state: donor}}", *changes)


def test_a_silenced_state_needs_no_company(place: Path) -> None:  # noqa: F811
    recipe(place, "arms={it: {state: zero}}", "training.micro_batch_size=1")


def test_a_name_that_is_none_is_refused(place: Path) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=r"arms\.it\.state"):
        recipe(place, "arms={it: {state: doner}}")


def batch(rows: int, task: str = "text", *, documents: bool = True) -> Batch:
    ids = torch.arange(rows * 3).view(rows, 3)
    return Batch(ids, ids + 1, ids.int() if documents else None, task, 3, (5,) * rows)


def test_nobody_is_alone() -> None:
    found = list(in_company([batch(2), batch(1), batch(1, "other"), batch(3), batch(1)]))
    assert [(len(one.input_ids), one.task) for one in found] == [
        (3, "text"),
        (1, "other"),
        (4, "text"),
    ]
    joined = found[0]
    assert joined.row_bytes == (5, 5, 5)
    assert joined.document_ids is not None
    for part in (joined.input_ids, joined.labels - 1, joined.document_ids):
        assert torch.equal(part[:2], batch(2).input_ids)
        assert torch.equal(part[2:], batch(1).input_ids)
    assert IGNORED not in joined.labels
    apart = list(in_company([batch(2), batch(1, documents=False)]))
    assert [len(one.input_ids) for one in apart] == [2, 1]


def test_a_row_that_stays_alone_is_refused() -> None:
    class Lonely:
        def batches(self):  # type: ignore[no-untyped-def]
            yield batch(1, "one")

    with pytest.raises(DataError, match=r"'one'.*needs two rows"):
        list(InCompany(Lonely()).batches())


def test_several_processes_are_refused(place: Path) -> None:  # noqa: F811
    plan = plan_run(recipe(place, "arms={it: {state: zero}}"), ConvertedSources())
    two = Processes.__new__(Processes)
    object.__setattr__(two, "size", 2)
    with pytest.raises(InputError, match=r"arms\.it: state zero is trained by one process, got 2"):
        arm_degrees(plan.arms["it"], Parallel(), two, torch.device("cpu"))
