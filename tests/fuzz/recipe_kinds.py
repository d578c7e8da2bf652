"""Recipes and changes of recipes."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tests.fuzz.changes import Call, command
from tests.fuzz.mutation import mutated_bytes, mutated_text, value_text

if TYPE_CHECKING:
    from tests.fuzz.kinds import Originals

__all__ = ["EVERY_FIELD", "Overrides", "Recipes"]


EVERY_FIELD = """\
name: everything
description: A recipe with most fields
seed: [0, 1]
train: all
model: {preset: none, hidden_size: 64, num_hidden_layers: 2, intermediate_size: 96,
  max_position_embeddings: 2k, norm: layernorm, rms_norm_eps: 1e-6, ffn: mlp, hidden_act: gelu,
  num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, rope_theta: 1e5,
  rope_scaling: {rope_type: yarn, factor: 4.0, original_max_position_embeddings: 512},
  sliding_window: 32, sliding_window_layers: [0], num_state_heads: 2, state_layers: [0, 1],
  state_a_max: 2.0, decay_rank: 8, snapshots: 1, snapshot_every: 32}
arms:
  wuneng: {}
  mha: {match: flops, training: {learning_rate: 2e-3}}
  own: {model: {num_state_heads: 1}}
data:
  kind: text
  train: [texts/, more.txt]
  validation: held.txt
  tokenizer: {train_bpe: 512}
  pack_documents: true
  max_documents: 10
training:
  tokens: 64k
  sequence_length: 64
  batch_size: 8
  micro_batch_size: 4
  learning_rates: {cross_head: 2.0}
  schedule: wsd
  betas: [0.9, 0.95]
  validate_every: 10
evaluation: {length_multiples: [1, 2], examples: 64, max_batches: 4}
loggers: [tensorboard]
"""


class Recipes:
    """Mutated recipes: loaded, written back and loaded again; one in forty planned."""

    name = "recipe"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.recipe import dump_recipe, load_recipe

        text = mutated_text(random, random.choice(self.originals.recipes))
        content = text.encode("utf-8", "surrogatepass")
        if random.random() < 0.1:
            content = mutated_bytes(random, content)
        file = directory / "r.yaml"
        file.write_bytes(content)
        if random.random() < 0.025:
            return lambda: command("train", "r.yaml", "--dry-run", "--no-measure")

        def twice() -> None:
            recipe = load_recipe(file)
            again = directory / "again.yaml"
            again.write_text(dump_recipe(recipe), encoding="utf-8")
            assert load_recipe(again) == recipe, "written back, it is another recipe"

        return twice


class Overrides:
    """Mutated ``--set`` options on good recipes."""

    name = "override"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.recipe import load_recipe

        (directory / "r.yaml").write_text(self.originals.recipes[2], encoding="utf-8")
        changes = [_override(random) for _ in range(random.randint(1, 3))]
        if random.random() < 0.05:
            flags = [flag for change in changes for flag in ("--set", change)]
            return lambda: command("train", "r.yaml", "--dry-run", "--no-measure", *flags)
        return lambda: load_recipe(directory / "r.yaml", changes)


#: Values that some field takes, so that what lies behind the first check is reached as well.
_PLAIN = (
    *("1", "2", "4", "64", "1000", "8k", "1M", "0.5", "1e-3", "cpu", "true", "parity", "[1, 2]"),
    *("{learning_rate: 0.01}", "{num_state_heads: 0}", "{task: recall, pairs: 3}", "[mha]", "null"),
)


def _override(random: Random) -> str:
    field = random.choice(
        (
            *(
                "seed",
                "name",
                "description",
                "device",
                "model.hidden_size",
                "model",
                "arms",
                "data",
            ),
            *("arms.mha", "arms.mha.model", "arms.mha.training.learning_rate", "data.tasks.0"),
            *("data.tasks.1.group", "data.tasks.0.pairs", "training.steps", "training.betas"),
            *("training.batch_size", "training.sequence_length", "evaluation.length_multiples"),
            *(
                "model.rope_scaling.factor",
                "model.num_hidden_layers",
                "model.state_layers",
                "train",
            ),
            *(
                "data.tasks.9",
                "data.tasks.x.y",
                "training.learning_rates.x",
                "arms.new",
                ".",
                "",
                "a..b",
            ),
        )
    )
    plain = random.random() < 0.6
    change = f"{field}={random.choice(_PLAIN) if plain else value_text(random)}"
    return mutated_text(random, change, 1) if random.random() < 0.2 else change
