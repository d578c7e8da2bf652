"""What contradicts itself in a generated task is told when the recipe is read, with its field."""

from __future__ import annotations

from pathlib import Path

import pytest

from wuneng.errors import RecipeError
from wuneng.recipe import load_recipe

RECIPE = """
model: {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
data: {{kind: synthetic, tasks: [{task}]}}
training: {{steps: 20, sequence_length: 64, batch_size: 4}}
"""


def told(tmp_path: Path, task: str) -> str:
    path = tmp_path / "tasks.yaml"
    path.write_text(RECIPE.format(task=task))
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{task: boxs}", "Did you mean 'boxes'?"),
        ("{name: mine}", "data.tasks.0: expected a task with task: recall, state_tracking, "),
        ("recall", "got 'recall'"),
        ("{task: recall, distinct_values: true, rewrites: 1}",
         "data.tasks.0.distinct_values: expected false where there are rewrites, got true"),
        ("{task: recall, distinct_values: true, values: 7}",
         "data.tasks.0.values: expected at least as many as pairs (8), got 7"),
        ("{task: compose, group: s4}",
         "data.tasks.0.group: expected parity, s3, s5 or mod_N with N of 2 or more, got 's4'"),
        ("{task: boxes, boxes: 1}", "data.tasks.0.boxes: expected 2 or more, got 1"),
        ("{task: boxes, moves: 0}", "data.tasks.0.moves: expected 1 or more, got 0"),
        ("{task: boxes, move: 3}", "Did you mean 'moves'?"),
        ("{task: chain, hops: 0}", "data.tasks.0.hops: expected 1 or more, got 0"),
        ("{task: chain, hops: 65}", "data.tasks.0.hops: expected 64 or less, got 65"),
        ("{task: brackets, types: 3}",
         "data.tasks.0.depth: expected a multiple of types (3), got 8"),
        ("{task: selective_copy, symbols: 2000}",
         "data.tasks.0.symbols: expected 1024 or less, got 2000"),
        ("{task: induction, symbols: 8}",
         "data.tasks.0.queries: expected fewer than symbols (8), got 8"),
        ("{task: needle, needles: 0}", "data.tasks.0.needles: expected 1 or more, got 0"),
        ("{task: functions, family: affin}",
         "data.tasks.0.family: expected 'shift' or 'affine', got 'affin'. Did you mean 'affine'?"),
        ("{task: functions, family: affine, modulus: 15}",
         "data.tasks.0.modulus: expected a prime for affine, got 15"),
        ("{task: functions, family: affine, examples: 1}",
         "data.tasks.0.examples: expected 2 or more for affine, got 1"),
        ("{task: functions, examples: 13}",
         "data.tasks.0.examples: expected fewer than modulus (13), got 13"),
        ("{task: addition, base: 1}", "data.tasks.0.base: expected 2 or more, got 1"),
        ("{task: addition}, {task: addition}",
         "data.tasks.1: expected a name of its own, got 'addition' as tasks.0 has"),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused(tmp_path: Path, task: str, message: str) -> None:
    assert message in told(tmp_path, task)
    assert "tasks.yaml, line 3" in told(tmp_path, task)
