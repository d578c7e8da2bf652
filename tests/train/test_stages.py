"""Upgrades in stages: what each trains and from whom; a stopped one goes on bit for bit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.convert.sources import save_source, tensors_of
from tests.train.small_upgrade import recipe, train
from tests.train.tiny import Watcher
from wuneng.convert import ConvertedSources
from wuneng.device import autocast_dtype
from wuneng.distributed.processes import Processes
from wuneng.errors import InputError, RecipeError
from wuneng.model.branch_way import silenced
from wuneng.model.pretrained import load_whole_model
from wuneng.recipe import Parallel
from wuneng.records import read_jsonl
from wuneng.train import Results
from wuneng.train.plan import plan_run
from wuneng.train.spread import arm_degrees

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")

ARM = "arms={wuneng: {lora: {rank: 2}}}"
#: Every kind of stage, and both ways of aligning.
CHAIN = (
    "stages=[{align: {steps: 2, layers: in_turn}}, {align: {steps: 2, target: hidden}}, "
    "{distill: {steps: 2, ce: 0.5, temperature: 2}}, {tune: {train: new+lora}}]"
)
STEPS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random Llama of bytes and a few documents."""
    place = tmp_path_factory.mktemp("stages")
    save_source(place / "llama", vocab_size=257, tie_word_embeddings=True)
    documents = [f"Number {n} is followed by {n + 1}, and {n + 1} by {n + 2}." for n in range(60)]
    rows = (json.dumps({"text": text}) for text in documents)
    (place / "texts.jsonl").write_text("\n".join(rows))
    return place


def chain(place: Path, out: Path, *changes: str, **options: Any) -> tuple[Results, Watcher]:
    given = (ARM, f"training.steps={STEPS}", "training.keep_checkpoints=9", CHAIN)
    return train(place, out, *given, *changes, **options)


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    if importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft")
    return chain(place, place / "finished")[0].directory / "wuneng"


def of_step(arm: Path, step: int, file: str) -> dict[str, torch.Tensor]:
    return load_file(arm / "checkpoints" / f"step-{step}" / file)


def test_every_stage_trains_its_own_and_nothing_else(place: Path, finished: Path) -> None:
    before = of_step(finished, 1, "model.safetensors")
    moved: dict[int, set[str]] = {}
    for step in range(2, STEPS + 1):
        after = of_step(finished, step, "model.safetensors")
        changed = {n for n in after if not torch.equal(after[n], before[n])}
        moved[step] = {
            "adapter" if ".lora_" in n else f"new {n.split('.')[2]}" if "_head" in n else "base"
            for n in changed
        }
        before = after
    assert moved[2] == {"new 1"}  # the first step was layer 0's
    assert moved[3] == moved[5] == {"new 0", "new 1"}
    assert moved[7] == moved[8] == {"new 0", "new 1", "adapter"}
    source, own = tensors_of(place / "llama"), of_step(finished, STEPS, "model.safetensors")
    assert torch.equal(own["model.norm.weight"], source["model.norm.weight"])


def test_moments_are_the_stages_own(finished: Path) -> None:
    for step, layers in ((1, {"0"}), (2, {"1"}), (3, {"0", "1"})):
        moments = of_step(finished, step, "optimizer.safetensors")
        assert {name.split(".")[2] for name in moments} == layers
        assert not any(".lora_" in name for name in moments)
    steps = {
        step: {v.item() for k, v in of_step(finished, step, "optimizer.safetensors").items()
               if k.startswith("step/")}
        for step in (3, 4, 5, 7)
    }  # fmt: skip
    assert steps == {3: {1.0}, 4: {2.0}, 5: {1.0}, 7: {1.0}}


def test_losses_start_where_silent_heads_have_them(finished: Path) -> None:
    rows = {row["step"]: row for row in read_jsonl(finished / "metrics.jsonl")}
    assert [rows[step]["stage"] for step in (1, 2, 3, 5, 7)] == [
        *("align, layer 0", "align, layer 1", "align", "distill", "tune"),
    ]
    for step in (1, 2, 3):  # |0 - asked|^2 / |asked|^2, and each align ends in silence
        assert rows[step]["loss"] == pytest.approx(1.0, abs=1e-6)
    assert rows[4]["loss"] != pytest.approx(1.0, abs=1e-3)
    assert rows[5]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[6]["kl"] > 1e-6
    assert rows[6]["loss"] == pytest.approx(rows[6]["kl"] + 0.5 * rows[6]["ce"], rel=1e-5)
    assert "kl" not in rows[7]


def test_aligning_changes_no_logit(place: Path, finished: Path) -> None:
    rows = read_jsonl(finished / "metrics.jsonl")
    scored = {row["step"]: row["validation"]["text/loss"] for row in rows if "validation" in row}
    plain = "arms={source: {model: {num_state_heads: 0}, train: none}}"
    source, _ = train(place, place / "source", plain, "training.learning_rates={}")
    loss = source.record["arms"]["source"]["quality"]["text/loss"]
    assert scored[2] == scored[4] == pytest.approx(loss, rel=1e-6)
    assert scored[8] < loss


def test_a_silenced_model_is_its_source(place: Path, tmp_path: Path) -> None:
    """After training too, and its branch comes back."""
    change = ("arms={wuneng: {}}", "training.steps=2", "stages=[{tune: {}}]")
    results, _ = train(place, tmp_path / "run", *change)
    model = load_whole_model(results.directory / "wuneng" / "model", dtype=torch.float32)
    source = load_whole_model(results.directory / "wuneng" / "start", dtype=torch.float32).eval()
    ids = torch.arange(40)[None] + 60
    with torch.no_grad():
        before = model.eval()(input_ids=ids, use_cache=False).logits
        with silenced(model):
            silent = model(input_ids=ids, use_cache=False).logits
        after = model(input_ids=ids, use_cache=False).logits
        expected = source(input_ids=ids, use_cache=False).logits
    assert torch.equal(silent, expected)
    assert torch.equal(before, after)
    assert not torch.equal(before, silent)


class Stopped(BaseException):
    pass


@needs_peft
def test_stopped_in_every_step_it_continues_bit_for_bit(
    place: Path, finished: Path, tmp_path: Path
) -> None:
    """Each step is lost once: the run goes on from the middle of every stage, and from its end."""
    lost: set[int] = set()

    def at_step(progress: Any) -> None:
        if progress.step not in lost:
            lost.add(progress.step)
            raise Stopped

    for step in range(1, STEPS + 1):
        with pytest.raises(Stopped):
            chain(place, tmp_path / "run", display=Watcher(at_step))
        assert max(lost) == step
    _, watcher = chain(place, tmp_path / "run", display=Watcher(at_step))
    assert any(f"continuing after step {STEPS - 1}" in note for note in watcher.notes)
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, two = of_step(finished, STEPS, file), of_step(tmp_path / "run" / "wuneng", STEPS, file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


@needs_peft
def test_adapters_are_for_what_the_new_heads_were_added_to(place: Path, tmp_path: Path) -> None:
    """Not for the heads' own projections of the same names, which train themselves; and what has an
    adapter may train beside it."""
    own = "model: {state_key_source: own, state_value_source: own}, lora: {rank: 1}"
    arms = f"arms={{wuneng: {{{own}}}}}"
    stages = "stages=[{tune: {steps: 1, train: new+lora}}, {tune: {steps: 1, train: all}}]"
    train(place, tmp_path / "run", arms, "training.steps=2", stages)
    before, after = (of_step(tmp_path / "run" / "wuneng", n, "model.safetensors") for n in (1, 2))
    heads, attention = (f"model.layers.0.{part}.k_proj" for part in ("state_heads", "self_attn"))
    assert f"{heads}.weight" in after
    assert f"{attention}.lora_A.default.weight" in after
    name = f"{attention}.base_layer.weight"
    assert torch.equal(before[name], tensors_of(place / "llama")[f"{attention}.weight"])
    assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize("kind", ["align", "distill", "tune"])
def test_a_stage_may_stand_alone(place: Path, tmp_path: Path, kind: str) -> None:
    changes = ("arms={wuneng: {}}", "training.steps=2", f"stages=[{kind}]")
    results, _ = train(place, tmp_path / "run", *changes)
    before, after = (tensors_of(results.directory / "wuneng" / n) for n in ("start", "model"))
    name = "model.layers.0.state_heads.r_proj.weight"
    assert not torch.equal(before[name], after[name])
    silent = not after["model.layers.0.cross_head.branch_proj.weight"].any()
    assert silent == (kind == "align")


def test_activation_checkpointing_changes_nothing(place: Path, tmp_path: Path) -> None:
    changes = ("arms={wuneng: {}}", "training.steps=3")
    stages = "stages=[{align: {steps: 1}}, {distill: {steps: 1}}, tune]"
    losses = []
    for on in ("true", "false"):
        again = f"training.activation_checkpointing={on}"
        results, _ = train(place, tmp_path / on, *changes, stages, again)
        rows = read_jsonl(results.directory / "wuneng" / "metrics.jsonl")
        losses.append([row["loss"] for row in rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_more_layers_than_steps_are_refused(place: Path, tmp_path: Path) -> None:
    changes = ("arms={wuneng: {}}", "stages=[{align: {steps: 1, layers: in_turn}}, tune]")
    with pytest.raises(RecipeError, match=r"stages.0.align.steps: .*each of the 2 layers.*got 1"):
        train(place, tmp_path / "run", *changes)


def test_stages_are_for_one_process(place: Path, tmp_path: Path) -> None:
    plan = plan_run(recipe(place, "arms={wuneng: {}}", "stages=[tune]"), ConvertedSources())
    two = Processes.__new__(Processes)
    object.__setattr__(two, "size", 2)
    with pytest.raises(InputError, match="stages are trained by one process, got 2"):
        arm_degrees(plan.arms["wuneng"], Parallel(), two, torch.device("cpu"))


def test_a_run_in_stages_cannot_be_made_longer(place: Path, tmp_path: Path) -> None:
    changes = ("arms={wuneng: {}}", "stages=[tune]", "training.schedule=constant")
    train(place, tmp_path / "run", *changes, "training.steps=1")
    with pytest.raises(InputError, match="'wuneng' cannot be extended: its stages share all steps"):
        train(place, tmp_path / "run", *changes, "training.steps=2")


@needs_peft
def test_a_frozen_base_in_bf16_changes_no_figure(place: Path, tmp_path: Path) -> None:
    """What is multiplied in bf16 anyway may be held in it; what trains stays in float32."""
    given = (ARM, CHAIN, f"training.steps={STEPS}", "training.precision=bf16")
    losses = []
    for held in ("fp32", "bf16"):
        train(place, tmp_path / held, *given, f"training.frozen_precision={held}")
        rows = read_jsonl(tmp_path / held / "wuneng" / "metrics.jsonl")
        losses.append([(row["loss"], row.get("validation")) for row in rows])
    assert losses[0] == losses[1]
    stored = of_step(tmp_path / "bf16" / "wuneng", STEPS, "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    for name, kind in kinds.items():
        frozen = "base_layer.weight" in name
        assert kind == (torch.bfloat16 if frozen else torch.float32), name
    assert torch.bfloat16 in kinds.values()
    merged = tensors_of(tmp_path / "bf16" / "wuneng" / "model")
    other = tensors_of(tmp_path / "fp32" / "wuneng" / "model")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(merged[name], other[name], rtol=0, atol=2**-9)


def test_a_frozen_base_in_bf16_needs_its_arithmetic(place: Path, tmp_path: Path) -> None:
    changes = ("arms={wuneng: {}}", "training.steps=1", "training.frozen_precision=bf16")
    with pytest.raises(
        RecipeError, match="frozen_precision: expected fp32 where precision is fp32"
    ):
        train(place, tmp_path / "run", *changes, "training.precision=fp32")
    if autocast_dtype("auto", torch.device("cpu")) is None:
        with pytest.raises(InputError, match="frozen_precision: bf16 needs arithmetic in bf16"):
            train(place, tmp_path / "run", *changes)
