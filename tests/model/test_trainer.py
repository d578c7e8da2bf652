"""transformers' Trainer, and TRL's where it is installed, train a small WuNeng as any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.small import small_model

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

from transformers import Trainer, TrainingArguments

STEPS, LENGTH = 6, 24


def rows() -> list[dict[str, Tensor]]:
    """Counting sequences from drawn starts: a small model learns them in a few steps."""
    starts = torch.randint(1, 61, (4 * STEPS,), generator=torch.Generator().manual_seed(0))
    counting = (starts[:, None] + torch.arange(LENGTH)) % 61
    return [{"input_ids": row, "labels": row} for row in counting]


def train(place: Path, model: Any = None, **changes: Any) -> tuple[Any, list[float]]:
    """The trained model and the loss of every step."""
    options: dict[str, Any] = {
        "output_dir": str(place),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
    }
    torch.manual_seed(4)
    trainer = Trainer(
        model=model if model is not None else small_model().train(),
        args=TrainingArguments(**options | changes),
        train_dataset=rows(),
    )
    trainer.train(resume_from_checkpoint=changes.pop("resume_from_checkpoint", None))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer.model, losses


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def assert_same_weights(found: Any, expected: Any, start: Any) -> None:
    """Each parameter within a thousandth of how far training moved it."""
    for name, p in weights(expected).items():
        moved = float((p - weights(start)[name]).abs().max())
        assert float((weights(found)[name] - p).abs().max()) <= 1e-3 * moved, name


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[float]]:
    return train(tmp_path_factory.mktemp("plain"), save_strategy="no")


def test_the_loss_falls_and_every_parameter_moves(plain: tuple[Any, list[float]]) -> None:
    model, losses = plain
    assert len(losses) == STEPS
    assert losses[-1] < 0.9 * losses[0]
    before = weights(small_model())
    still = [name for name, p in weights(model).items() if torch.equal(p, before[name])]
    assert not still


def test_its_loss_is_the_models_own(plain: tuple[Any, list[float]], tmp_path: Path) -> None:
    """The first one, before any step: the mean over tokens, shifted once."""
    model = small_model().train()
    _, losses = train(tmp_path, save_strategy="no", max_steps=1, learning_rate=0.0)
    batches = torch.stack([row["input_ids"] for row in rows()])
    with torch.no_grad():
        own = [float(model(ids[None], labels=ids[None], use_cache=False).loss) for ids in batches]
    assert min(own) <= losses[0] <= max(own)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_train_alike(
    plain: tuple[Any, list[float]], tmp_path: Path, reentrant: bool
) -> None:
    model, losses = train(
        tmp_path,
        save_strategy="no",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    assert losses == pytest.approx(plain[1], rel=1e-5)
    assert_same_weights(model, plain[0], small_model())


def test_accumulated_gradients_train_alike(plain: tuple[Any, list[float]], tmp_path: Path) -> None:
    model, losses = train(
        tmp_path,
        save_strategy="no",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    assert losses == pytest.approx(plain[1], rel=1e-5)
    assert_same_weights(model, plain[0], small_model())


def test_a_checkpoint_continues(plain: tuple[Any, list[float]], tmp_path: Path) -> None:
    train(tmp_path, save_strategy="steps", save_steps=3, max_steps=3)
    checkpoint = tmp_path / "checkpoint-3"
    assert (checkpoint / "config.json").is_file()
    model, _ = train(tmp_path, save_strategy="no", resume_from_checkpoint=str(checkpoint))
    assert_same_weights(model, plain[0], small_model())


def test_adapters_alone_are_trained(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(small_model(), config)
    model, losses = train(tmp_path, wrapped, save_strategy="no", learning_rate=3e-2)
    assert losses[-1] < losses[0]
    base = weights(model.unload())
    assert all(torch.equal(p, base[name]) for name, p in weights(small_model()).items())


def sft_trainer(place: Path, data: list[list[int]], **changes: Any) -> Any:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset

    from wuneng.data.tokenizer import byte_tokenizer

    options: dict[str, Any] = {
        "output_dir": str(place),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
    }
    return trl.SFTTrainer(
        model=small_model().train(),
        args=trl.SFTConfig(**options | changes),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in data]),
        processing_class=byte_tokenizer(),
    )


def losses_of(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trl_trains_it(tmp_path: Path) -> None:
    losses = losses_of(sft_trainer(tmp_path, [row["input_ids"].tolist() for row in rows()]))
    assert losses[-1] < losses[0]


def test_trl_packs_documents_that_do_not_see_each_other(tmp_path: Path) -> None:
    """Several in a row, told apart by positions that start again: the loss is each one's."""
    lengths = [5, 9, 13, 7, 11, 6, 8, 12] * 6
    documents = [[(n + at) % 60 + 1 for at in range(size)] for n, size in enumerate(lengths)]
    trainer = sft_trainer(tmp_path, documents, packing=True, max_length=LENGTH)
    batch = next(iter(trainer.get_train_dataloader()))
    model = small_model().eval()
    with torch.no_grad():
        packed = model(**batch, use_cache=False)
        ids, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
        starts = (batch["position_ids"].flatten() == 0).nonzero().flatten().tolist()
        assert len(starts) > len(batch["input_ids"]) + 2, "nothing was packed"
        apart = [
            model(ids[None, first:end], use_cache=False).logits[0]
            for first, end in zip(starts, [*starts[1:], len(ids)], strict=True)
        ]
        logits = packed.logits.flatten(0, 1)
        assert (torch.cat(apart) - logits).abs().max() < 1e-4 * logits.abs().max()
        scored = labels[1:] != -100
        assert not scored[[first - 1 for first in starts[1:]]].any()
        expected = torch.nn.functional.cross_entropy(logits[:-1][scored], labels[1:][scored])
    assert float(packed.loss) == pytest.approx(float(expected), rel=1e-5)
    losses = losses_of(trainer)
    assert losses[-1] < losses[0]
