"""Recipes that nobody meant: refused at once, in one short message with file and line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from wuneng import WuNengConfig
from wuneng.errors import RecipeError
from wuneng.recipe import load_recipe

REST = """
data: {kind: synthetic, tasks: [{task: recall}]}
training: {steps: 10, sequence_length: 64}
"""
#: Ten times ten times ... as aliases of aliases: nine lines for a thousand million values.
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message; it comes within two seconds of processor time and is no page of text."""
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("utf-8"))
    start = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert time.process_time() - start < 8
    message = str(caught.value)
    assert len(message) < 8000
    return message.replace(str(path), "r.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: !!int abc", "'abc' is no !!int"),
        ("model: {rope_theta: !!float abc}", "'abc' is no !!float"),
        ("model: {qk_norm: !!bool foo}", "'foo' is no !!bool"),
        ("description: !!timestamp 2020-99-99", "!!timestamp is not used in recipes"),
        ("description: !!timestamp x", "!!timestamp is not used in recipes"),
        ("description: !!binary x", "!!binary is not used in recipes"),
        ("model: !!set {a}", "!!set is not used in recipes"),
        ("model: !!str {a: 1}", "!!str is not used in recipes"),
        ("x: !!python/object/apply:os.system [ls]", "!!python/object/apply:os.system is not used"),
        ("seed: " + "9" * 5000, "5,000 digits, expected at most 60"),
        ("seed: " + "9" * 50, "a list of different ones, up to 2**62"),
        ("training: {warmup_steps: " + "9" * 50 + "}", "training.warmup_steps: expected at most"),
        ("model: {rope_theta: 1" + "0" * 400 + ".0}", "model.rope_theta: expected a number"),
        ("model: {rope_theta: 1" + "0" * 59 + "}", "training is required"),
        ("x: " + "[" * 1000 + "]" * 1000, "nested more than 40 deep"),
        ("x: " + "{a: " * 1000 + "}" * 1000, "nested more than 40 deep"),
        ("x: " + "[" * 200_000, "nested more than 40 deep"),
        ("name: " + "a" * 300, "name: expected a name of letters"),
        ("arms: {" + "a" * 300 + ": {}}", "expected a name of letters"),
        ("data: {kind: text, train: " + "a" * 5000 + "}", "train.0: expected at most 4096"),
        ("training: {num_threads: 3000000000}", "training.num_threads: expected 16384 or less"),
        ("model: {num_hidden_layers: 1.5M}", "model.num_hidden_layers: expected 1024 or less"),
        ("model: {hidden_size: 1e9}", "model.hidden_size: expected 1048576 or less"),
        ("training: {batch_size: 1G}", "training.batch_size: expected 1048576 or less"),
        ("device: cuda:99999999999999999999", "device: expected auto, cpu, cuda, cuda:N or mps"),
        ('description: "\\ud800"', r"'\ud800' holds a zero byte or half a surrogate pair"),
        ('data: {kind: text, train: "a\\0b"}', r"'a\x00b' holds a zero byte"),
        ("model: {rope_scaling: {rope_type: [1]}}", "training is required"),
        ("train: ['" + "(" * 2000 + "']", "train: expected a regular expression"),
    ],
)  # fmt: skip
def test_values(tmp_path: Path, text: str, message: str) -> None:
    told = refused(tmp_path, text)
    assert "r.yaml, line 1: " in told or message == "training is required"
    assert message in told


@pytest.mark.parametrize("group", ["5", "[1]", "{a: 1}", "null", "mod_1025", "mod_" + "9" * 5000])
def test_groups(tmp_path: Path, group: str) -> None:
    told = refused(
        tmp_path,
        f"data: {{kind: synthetic, tasks: [{{task: state_tracking, group: {group}}}]}}\n"
        "training: {steps: 10, sequence_length: 64}\n",
    )
    assert told.startswith("r.yaml, line 1: data.tasks.0.group: expected parity, s3, s5 or mod_N")


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ("{rope_type: [1]}", "expected rope_type to be one of default, linear"),
        ("{rope_type: {a: 1}}", "expected rope_type to be one of default, linear"),
        ("{rope_type: linear, factor: four}", "expected factor to be a positive number, got"),
        ("{rope_type: linear, factor: 0}", "expected factor to be a positive number, got 0"),
        ("{rope_type: linear, factor: 2, fcator: 2}", "Did you mean 'factor'?"),
        ("{rope_type: longrope, factor: 2, original_max_position_embeddings: 64, "
         "short_factor: [1.0], long_factor: []}", "a list of 32 positive numbers"),
        ("{rope_type: yarn, factor: 2, original_max_position_embeddings: 1}", "2 or more, got 1"),
    ],
)  # fmt: skip
def test_rotary_scaling(tmp_path: Path, scaling: str, message: str) -> None:
    told = refused(tmp_path, f"model: {{rope_scaling: {scaling}}}{REST}")
    assert told.startswith("r.yaml, line 1: model.rope_scaling: ")
    assert message in told


def test_aliases_of_aliases(tmp_path: Path) -> None:
    assert "with its aliases written out, more than 40,000 values" in refused(tmp_path, LAUGHS)
    assert "with its aliases" in refused(tmp_path, LAUGHS + "<<: *a8\n")


def test_unknown_keys_without_number(tmp_path: Path) -> None:
    told = refused(tmp_path, "".join(f"key{i}: {i}\n" for i in range(5_000)) + REST).splitlines()
    assert told[0] == "r.yaml, line 1: key0 is not a known field."
    assert told[-1] == "and 4,980 more problems"
    assert len(told) == 21
    told = refused(tmp_path, "".join(f"key{i}: {i}\n" for i in range(50_000)))
    assert told == "r.yaml, line 10000: more than 20,000 values"
    told = refused(tmp_path, "".join(f"key{i}: {i}\n" for i in range(100_000)))
    assert told == "r.yaml: more than 1 MiB, which no recipe needs"


def test_keys_without_end(tmp_path: Path) -> None:
    assert refused(tmp_path, "k" * 100_000 + ": 1" + REST).startswith("r.yaml, line 1: not valid")
    told = refused(tmp_path, "? " + "k" * 100_000 + "\n: 1" + REST)
    assert told == f"r.yaml, line 1: {'k' * 80}... is not a known field."


def test_files_without_end(tmp_path: Path) -> None:
    assert refused(tmp_path, "# " + "x" * (1 << 20)).endswith(
        "more than 1 MiB, which no recipe needs"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=!!int abc", "'abc' is no !!int"),
        ("seed=" + "9" * 5000, "5,000 digits"),
        ("model.hidden_size=1e9", "expected 1048576 or less"),
        ("x=" + "[" * 1000, "nested more than 40 deep"),
        ("x=" + "y" * 3_000_000, "more than 1 MiB"),
        (".".join(["a"] * 5000) + "=1", "5,000 fields deep, expected at most 40"),
        ("data.tasks." + "9" * 5000 + "=1", "expected the number of an entry of data.tasks"),
        ("data.tasks.²=1", "expected the number of an entry of data.tasks"),
        ("na\udcffme=x", "expected UTF-8 text, got other bytes"),
        ("name=\udcff", "not valid YAML"),
        ("z" * 100_000 + "=1", "is not a known field"),
        ("description=" + "{a: &a [" + "x, " * 100 + "], b: [" + "*a, " * 600 + "]}",
         "with its aliases written out"),
    ],
)  # fmt: skip
def test_overrides(tmp_path: Path, override: str, message: str) -> None:
    told = refused(tmp_path, REST, override)
    assert told.startswith("--set ")
    assert message in told


def test_places_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe a+\.\.\. cannot be read: File name too long"):
        load_recipe(Path("a" * 5000))
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(Path("a\0b"))


def test_a_long_file_name_makes_a_name_that_fits(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240 + ".yaml")
    path.write_text(REST)
    assert load_recipe(path).name == "n" * 100


def test_large_recipes_that_are_meant(tmp_path: Path) -> None:
    files = [f"texts/part-{i:05}.txt" for i in range(5_000)]
    path = tmp_path / "r.yaml"
    path.write_text(f"data: {{kind: text, train: {files}}}\ntraining: {{steps: 10}}\n")
    assert load_recipe(path).data.train == files


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_state_heads": 10**23}, "num_state_heads must be int of at most 4611686018427387904"),
        ({"num_hidden_layers": -(10**23)}, "num_hidden_layers must be int of at most 46116860184"),
        ({"rms_norm_eps": 10**23}, "rms_norm_eps must be float of at most 4611686018427387904"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a finite number, got inf"),
        (
            {"state_layers": [0, 10**23]},
            r"state_layers must be list\[int\] \| None of at most 46116",
        ),
        ({"state_layers": [0, "x"]}, r"state_layers must be list\[int\] \| None, got"),
        ({"num_state_heads": True}, "num_state_heads must be int, got True"),
    ],
)
def test_a_number_of_the_right_type_that_is_too_large(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        WuNengConfig(**fields)
